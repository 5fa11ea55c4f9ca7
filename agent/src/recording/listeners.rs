//! The listeners of the newest snapshot while a recording is read: only what a line changes is read
//! anew, the rest stays shared with the snapshot before.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt,
    marker::PhantomData,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor},
};

use super::{
    delta::DeltaError,
    patch::{Delta, Text, Whole},
};
use crate::{id::ListenerKey, model::snapshot::Listener, serial::Keyed};

/// Listeners by key, and their names in the file.
#[derive(Default)]
pub(super) struct Listeners {
    list: Vec<Listener>,
    /// Names are for people: it is the item that tells its key.
    keys: HashMap<Box<str>, ListenerKey>,
}

impl Listeners {
    /// By key.
    pub(super) fn list(&self) -> &[Listener] {
        &self.list
    }

    /// The place of the one with this name.
    fn find(&self, name: &str) -> Option<usize> {
        let key = self.keys.get(name)?;
        self.list.binary_search_by_key(key, |it| it.key).ok()
    }

    /// Puts those that came where they belong.
    fn insert(&mut self, came: Vec<(Box<str>, Listener)>) -> Result<(), DeltaError> {
        if came.is_empty() {
            return Ok(());
        }
        for (name, listener) in came {
            match self.keys.entry(name) {
                Entry::Occupied(_) => return Err(DeltaError::SameName),
                Entry::Vacant(entry) => drop(entry.insert(listener.key)),
            }
            self.list.push(listener);
        }
        self.list.sort_by_key(Keyed::key);
        match self.list.windows(2).any(|pair| pair[0].key == pair[1].key) {
            true => Err(DeltaError::SameName),
            false => Ok(()),
        }
    }

    fn remove(&mut self, names: &[Text<'_>]) {
        let gone = names.iter().filter_map(|Text(name)| self.keys.remove(&**name));
        let gone: HashSet<ListenerKey> = gone.collect();
        self.list.retain(|it| !gone.contains(&it.key));
    }
}

impl<'de> Deserialize<'de> for Listeners {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(All)
    }
}

/// Reads all of them, by name.
struct All;

impl<'de> Visitor<'de> for All {
    type Value = Listeners;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("listeners by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listeners, A::Error> {
        let mut came = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            came.push((name.into(), map.next_value()?));
        }
        let mut all = Listeners::default();
        all.insert(came).map_err(A::Error::custom)?;
        Ok(all)
    }
}

/// Reads what changed. Each kind of change comes once, so that the work is bounded by what is read.
pub(super) struct Changes<'a>(pub(super) &'a mut Listeners);

impl<'de> DeserializeSeed<'de> for Changes<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Changes<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes of listeners")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut words = String::new();
        while let Some(Text(word)) = map.next_key()? {
            match &*word {
                word if words.contains(word) => return Err(A::Error::custom(DeltaError::NoDelta)),
                "=" => *self.0 = map.next_value()?,
                "-" => self.0.remove(&map.next_value::<Vec<Text<'_>>>()?),
                "~" => map.next_value_seed(ByName(&mut *self.0))?,
                _ => return Err(A::Error::custom(DeltaError::NoDelta)),
            }
            words += &word;
        }
        if words.is_empty() { Err(A::Error::custom(DeltaError::NoDelta)) } else { Ok(()) }
    }
}

/// Reads those that changed or came.
struct ByName<'a>(&'a mut Listeners);

impl<'de> DeserializeSeed<'de> for ByName<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ByName<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes of listeners by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut came = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            let Some(at) = self.0.find(&name) else {
                came.push((name.into(), map.next_value_seed(Whole(PhantomData))?));
                continue;
            };
            let listener = &mut self.0.list[at];
            let key = listener.key;
            map.next_value_seed(Delta(listener))?;
            if listener.key != key {
                return Err(A::Error::custom(DeltaError::SameName));
            }
        }
        self.0.insert(came).map_err(A::Error::custom)
    }
}
