//! A line after the header, as it is read.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, json};

use super::{
    LISTENERS,
    delta::DeltaError,
    listeners::{Changes, Listeners},
    patch::Text,
};

/// Reads a line, and applies changes of listeners to those there are.
pub(super) struct Line<'a>(pub(super) Option<&'a mut Listeners>);

/// What a line says.
pub(super) enum Read {
    /// All of a snapshot.
    Whole(Whole),
    /// What else changed since the line before; `None`: there is none.
    Delta(Option<Changed>),
}

/// A snapshot.
pub(super) struct Whole {
    /// All but the listeners: an object, in which they are none.
    pub(super) rest: Value,
    /// `None`: not in the line.
    pub(super) listeners: Option<Listeners>,
}

/// What changed, but for listeners.
pub(super) struct Changed {
    /// All of it.
    pub(super) whole: Option<Whole>,
    /// A delta of the fields that changed or came.
    pub(super) rest: Value,
    /// Fields that went.
    pub(super) gone: Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Read, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`whole` or `delta`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let key = map.next_key::<Text<'_>>()?;
        let read = match (key.as_ref().map(|Text(key)| &**key), self.0) {
            (Some("whole"), _) => Read::Whole(map.next_value()?),
            (Some("delta"), Some(listeners)) => {
                Read::Delta(Some(map.next_value_seed(Deltas(listeners))?))
            }
            (Some("delta"), None) => {
                map.next_value::<IgnoredAny>()?;
                Read::Delta(None)
            }
            (key, _) => {
                let got = key.map_or("no key".into(), |key| format!("the key {key:?}"));
                return Err(A::Error::custom(format!("{got}, expected `whole` or `delta`")));
            }
        };
        match map.next_key::<IgnoredAny>()? {
            None => Ok(read),
            Some(_) => Err(A::Error::custom("a second key, expected one")),
        }
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Fields)
    }
}

/// Reads a snapshot.
struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a snapshot")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Whole, A::Error> {
        let (mut rest, mut listeners) = (Map::new(), None);
        rest.insert(LISTENERS.into(), json!({}));
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                LISTENERS => listeners = Some(map.next_value()?),
                _ => drop(rest.insert(name.into(), map.next_value()?)),
            }
        }
        Ok(Whole { rest: Value::Object(rest), listeners })
    }
}

/// Reads what changed.
struct Deltas<'a>(&'a mut Listeners);

impl<'de> DeserializeSeed<'de> for Deltas<'_> {
    type Value = Changed;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Changed, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Deltas<'_> {
    type Value = Changed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes of a snapshot")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Changed, A::Error> {
        let (mut whole, mut rest, mut gone) = (None, None, None);
        while let Some(Text(word)) = map.next_key()? {
            match &*word {
                "=" if whole.is_none() => whole = Some(map.next_value()?),
                "~" if rest.is_none() => {
                    rest = Some(map.next_value_seed(Changing(&mut *self.0))?);
                }
                "-" if gone.is_none() => gone = Some(map.next_value()?),
                _ => return Err(A::Error::custom(DeltaError::NoDelta)),
            }
        }
        // either all, or what changed
        if whole.is_some() == (rest.is_some() || gone.is_some()) {
            return Err(A::Error::custom(DeltaError::NoDelta));
        }
        let rest = json!({ "~": Value::Object(rest.unwrap_or_default()) });
        Ok(Changed { whole, rest, gone: gone.unwrap_or_default() })
    }
}

/// Reads the fields that changed.
struct Changing<'a>(&'a mut Listeners);

impl<'de> DeserializeSeed<'de> for Changing<'_> {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Changing<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes by field")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut rest, mut listeners) = (Map::new(), Some(self.0));
        while let Some(Text(name)) = map.next_key()? {
            if &*name != LISTENERS {
                rest.insert(name.into(), map.next_value()?);
                continue;
            }
            let twice = || A::Error::custom(DeltaError::NoDelta);
            map.next_value_seed(Changes(listeners.take().ok_or_else(twice)?))?;
        }
        Ok(rest)
    }
}
