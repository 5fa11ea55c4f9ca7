//! Names that are constants of the program, and that a recording brings as text: of hooks, programs,
//! kernel counters, sysctls, sources.
//!
//! A name that is read is kept for as long as the process lives, in the one table of the program that
//! changes; so there is a bound to how many there are and how long they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, de};

use crate::{input::Known, time::Nanos};

/// A name of a few hundred that there are. (An alias, since serde takes a field of type `&str` to
/// borrow from what is read.)
pub type Name = &'static str;

/// So many names may come from files.
pub const MOST: usize = 1024;
/// So long may each be, in bytes.
pub const LONGEST: usize = 64;

static NAMES: Mutex<BTreeSet<Name>> = Mutex::new(BTreeSet::new());

/// Why a name is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InternError {
    /// Too long.
    #[error("a name of {got} bytes, expected at most {LONGEST}")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// Too many others.
    #[error("more than {MOST} different names")]
    TooMany,
}

/// The name that is spelled like `text`.
///
/// # Errors
/// When it is too long, or the table is full.
pub fn intern(text: &str) -> Result<Name, InternError> {
    intern_in(&mut NAMES.lock().unwrap_or_else(PoisonError::into_inner), text)
}

fn intern_in(names: &mut BTreeSet<Name>, text: &str) -> Result<Name, InternError> {
    if let Some(name) = names.get(text) {
        return Ok(name);
    }
    if LONGEST < text.len() {
        return Err(InternError::TooLong { got: text.len() });
    }
    if MOST <= names.len() {
        return Err(InternError::TooMany);
    }
    let name: Name = Box::leak(Box::from(text));
    names.insert(name);
    Ok(name)
}

/// Reads a name.
///
/// # Errors
/// The format's, and [`InternError`].
pub fn name<'de, D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
    Interned::deserialize(from).map(|it| it.0)
}

/// Reads what is kept by name.
///
/// # Errors
/// As [`name`].
pub fn by_name<'de, D, V>(from: D) -> Result<BTreeMap<Name, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    BTreeMap::deserialize(from).map(unwrapped)
}

/// As [`by_name`], for what is shared.
///
/// # Errors
/// As [`name`].
pub fn shared_by_name<'de, D, V>(from: D) -> Result<Arc<BTreeMap<Name, V>>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    by_name(from).map(Arc::new)
}

/// As [`shared_by_name`], for what may be absent.
///
/// # Errors
/// As [`name`].
pub fn known_by_name<'de, D, V>(from: D) -> Result<Known<Arc<BTreeMap<Name, V>>>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    let map = Known::<BTreeMap<Interned, V>>::deserialize(from)?;
    Ok(map.map(|map| Arc::new(unwrapped(map))))
}

/// Reads the runs that were skipped: event, program, count.
///
/// # Errors
/// As [`name`].
pub fn missed<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(Name, Name, u64)>, D::Error> {
    let rows = Vec::<(Interned, Interned, u64)>::deserialize(from)?;
    Ok(rows.into_iter().map(|(event, program, n)| (event.0, program.0, n)).collect())
}

/// Reads the runs there were: program, count, time.
///
/// # Errors
/// As [`name`].
pub fn runs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(Name, u64, Nanos)>, D::Error> {
    let rows = Vec::<(Interned, u64, Nanos)>::deserialize(from)?;
    Ok(rows.into_iter().map(|(program, n, time)| (program.0, n, time)).collect())
}

fn unwrapped<V>(map: BTreeMap<Interned, V>) -> BTreeMap<Name, V> {
    map.into_iter().map(|(name, value)| (name.0, value)).collect()
}

/// A name on its way in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Interned(Name);

impl<'de> Deserialize<'de> for Interned {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Interned;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Interned, E> {
                intern(text).map(Interned).map_err(E::custom)
            }
        }

        from.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_the_same_name() {
        let (one, other) = (intern("ListenDrops").unwrap(), intern("ListenDrops").unwrap());
        assert!(std::ptr::eq(one, other));
        assert_eq!("ListenDrops", one);
    }

    #[test]
    fn names_beyond_the_bounds_are_refused() {
        let names = &mut BTreeSet::new();
        let long = "x".repeat(LONGEST + 1);
        assert_eq!(Err(InternError::TooLong { got: 65 }), intern_in(names, &long));
        for n in 0..MOST {
            intern_in(names, &n.to_string()).unwrap();
        }
        assert_eq!(Err(InternError::TooMany), intern_in(names, "one more"));
        assert_eq!(Ok("7"), intern_in(names, "7"));
    }
}
