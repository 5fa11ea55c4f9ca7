//! Deltas (`delta.rs` has their forms), applied to values of their types while they are read; pure.
//!
//! Nothing is copied but what changes, so that the work is that of reading the delta.

use std::{borrow::Cow, fmt, marker::PhantomData, net::IpAddr, sync::Arc};

use backlogd_abi::histogram::BUCKETS;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
    },
};

use super::delta::DeltaError;
use crate::{
    histogram::Histogram,
    id::{Cookie, Inode, ListenerKey, NetnsId, Pid},
    input::{Connections, Known, Workload},
    model::snapshot::{Counters, DropsBy, Found, Listener, Member, Rates},
    time::Nanos,
};

/// What a delta can be applied to.
pub(super) trait Patch: Sized {
    /// Reads a delta, and makes of this what it was when the delta was taken.
    fn patch<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error>;

    /// Reads a delta that holds all of a value.
    fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
}

/// What is an object in the file.
trait Object: DeserializeOwned {
    /// Reads the delta of one key, which is next in `map`. What is unknown is passed over.
    fn change<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;

    /// A key that went.
    fn remove(&mut self, key: &str) -> Result<(), DeltaError>;
}

/// Text that is borrowed, but where it has escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Applies what is read to a value.
pub(super) struct Delta<'a, T>(pub(super) &'a mut T);

impl<'de, T: Patch> DeserializeSeed<'de> for Delta<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.0.patch(from)
    }
}

/// Reads a value from a delta that holds all of it.
pub(super) struct Whole<T>(pub(super) PhantomData<T>);

impl<'de, T: Patch> DeserializeSeed<'de> for Whole<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        T::whole(from)
    }
}

impl<T: Object> Patch for T {
    fn patch<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(Delta(self))
    }

    fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Form<T> {
            #[serde(rename = "=")]
            whole: T,
        }
        Form::deserialize(from).map(|form| form.whole)
    }
}

impl<'de, T: Object> Visitor<'de> for Delta<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes of an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut is_delta = false;
        while let Some(Text(word)) = map.next_key()? {
            match &*word {
                "=" => *self.0 = map.next_value()?,
                "~" => map.next_value_seed(Keys(&mut *self.0))?,
                "-" => {
                    for Text(key) in map.next_value::<Vec<Text<'_>>>()? {
                        self.0.remove(&key).map_err(A::Error::custom)?;
                    }
                }
                _ => return Err(A::Error::custom(DeltaError::NoDelta)),
            }
            is_delta = true;
        }
        if is_delta { Ok(()) } else { Err(A::Error::custom(DeltaError::NoDelta)) }
    }
}

/// Deltas by key.
struct Keys<'a, T>(&'a mut T);

impl<'de, T: Object> DeserializeSeed<'de> for Keys<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, T: Object> Visitor<'de> for Keys<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes by key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            self.0.change(&key, &mut map)?;
        }
        Ok(())
    }
}

/// Types that are no object in the file, nor an array.
macro_rules! values {
    ($($type:ty),+) => {
        $(impl Patch for $type {
            fn patch<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
                *self = Self::deserialize(from)?;
                Ok(())
            }

            fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::deserialize(from)
            }
        })+
    };
}

values!(bool, u16, u32, u64, f64, IpAddr, Cookie, Inode, NetnsId, Nanos, Pid);
values!(Option<f64>, Option<Pid>, Option<Arc<str>>);

/// Structures, with all of their fields: one that is left out does not compile.
macro_rules! structure {
    ($type:ty: $($field:ident),+) => {
        impl Object for $type {
            fn change<'de, A: MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                let Self { $($field),+ } = self;
                match key {
                    $(stringify!($field) => map.next_value_seed(Delta($field)),)+
                    _ => map.next_value::<IgnoredAny>().map(drop),
                }
            }

            fn remove(&mut self, key: &str) -> Result<(), DeltaError> {
                match key {
                    $(stringify!($field))|+ => Err(DeltaError::Needed),
                    _ => Ok(()),
                }
            }
        }
    };
}

structure!(
    Listener: key, v6only, members, owners, comm, workload, length, limit, length_max,
    fill_ratio_max, syn_queue, counters, accept_wait, connection_duration, rates, open, connections,
    since_accept, stalled
);
structure!(ListenerKey: netns, addr, port);
structure!(
    Member: cookie, inode, pid, length, limit, socket_drops, waiting, stalled
);
structure!(Workload: unit, container_id, pod_uid, namespace, pod, container);
structure!(
    Counters: established, found, accepted, closed, aborted_listener_closed, aborted_reset, syns,
    syncookies, drops, drops_by, socket_drops, full
);
structure!(Found: waiting, open);
structure!(
    DropsBy: accept_queue_full_syn, accept_queue_full_ack, syn_queue_full, other, unspecified
);
structure!(Rates: established, accepted, drops);
structure!(
    Connections: accepted, close_wait, fin_wait, queued, time_wait, unread_bytes, unread_bytes_max,
    unsent_bytes, unsent_bytes_max
);

impl<T: Patch + DeserializeOwned> Object for Known<T> {
    fn change<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match (key, &mut *self) {
            ("Ok", Ok(value)) => map.next_value_seed(Delta(value))?,
            ("Ok", Err(_)) => *self = Ok(map.next_value_seed(Whole(PhantomData))?),
            ("Err", _) => *self = Err(map.next_value()?),
            _ => return Err(A::Error::custom(DeltaError::NoDelta)),
        }
        Ok(())
    }

    fn remove(&mut self, _: &str) -> Result<(), DeltaError> {
        // the other one comes
        Ok(())
    }
}

impl<T: Patch + Clone> Patch for Arc<T> {
    fn patch<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        Self::make_mut(self).patch(from)
    }

    fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::whole(from).map(Self::new)
    }
}

impl Object for Histogram {
    fn change<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let (mut buckets, mut sum) = (Buckets(*self.buckets()), self.sum());
        match key {
            "buckets" => map.next_value_seed(Delta(&mut buckets))?,
            "sum" => sum = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        *self = Self::new(buckets.0, sum);
        Ok(())
    }

    fn remove(&mut self, _: &str) -> Result<(), DeltaError> {
        Err(DeltaError::Needed)
    }
}

/// Of a histogram.
struct Buckets([u64; BUCKETS]);

impl Buckets {
    fn at(&mut self, index: &str) -> Result<&mut u64, DeltaError> {
        index.parse().ok().and_then(|at: usize| self.0.get_mut(at)).ok_or(DeltaError::NoBucket)
    }
}

impl<'de> Deserialize<'de> for Buckets {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut buckets = Self([0; BUCKETS]);
        Keys(&mut buckets).deserialize(from)?;
        Ok(buckets)
    }
}

impl Object for Buckets {
    fn change<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        *self.at(key).map_err(A::Error::custom)? = map.next_value()?;
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), DeltaError> {
        *self.at(key)? = 0;
        Ok(())
    }
}

impl<T: Patch + DeserializeOwned> Patch for Vec<T> {
    fn patch<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        if let Some(whole) = from.deserialize_any(Array(self))? {
            *self = whole;
        }
        Ok(())
    }

    fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::deserialize(from)
    }
}

impl<T: Patch + DeserializeOwned + Clone> Patch for Arc<[T]> {
    fn patch<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        if let Some(whole) = from.deserialize_any(Array(Self::make_mut(self)))? {
            *self = whole.into();
        }
        Ok(())
    }

    fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Vec::deserialize(from).map(Into::into)
    }
}

/// Changes elements, or reads an array that takes the place of all.
struct Array<'a, T>(&'a mut [T]);

impl<'de, T: Patch + DeserializeOwned> Visitor<'de> for Array<'_, T> {
    type Value = Option<Vec<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array, or changes of one")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut whole = Vec::new();
        while let Some(element) = seq.next_element()? {
            whole.push(element);
        }
        Ok(Some(whole))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut is_delta = false;
        while let Some(Text(word)) = map.next_key()? {
            match &*word {
                "@" => map.next_value_seed(Elements(&mut *self.0))?,
                _ => return Err(A::Error::custom(DeltaError::NoDelta)),
            }
            is_delta = true;
        }
        if is_delta { Ok(None) } else { Err(A::Error::custom(DeltaError::NoDelta)) }
    }
}

/// Deltas by index: `[[INDEX, DELTA], …]`.
struct Elements<'a, T>(&'a mut [T]);

impl<'de, T: Patch> DeserializeSeed<'de> for Elements<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, T: Patch> Visitor<'de> for Elements<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes by index")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Element(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

/// One of them.
struct Element<'a, T>(&'a mut [T]);

impl<'de, T: Patch> DeserializeSeed<'de> for Element<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, T: Patch> Visitor<'de> for Element<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index and a change")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let no_delta = || A::Error::custom(DeltaError::NoDelta);
        let at: usize = seq.next_element()?.ok_or_else(no_delta)?;
        let element = self.0.get_mut(at).ok_or_else(|| A::Error::custom(DeltaError::NotAnArray))?;
        seq.next_element_seed(Delta(element))?.ok_or_else(no_delta)
    }
}
