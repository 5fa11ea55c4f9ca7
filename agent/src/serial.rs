//! Forms for serde of what JSON has no form for, or none whose parts can be named.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::input::Known;

/// What a list is ordered by.
pub trait Keyed {
    /// The key; its text is different for each key.
    type Key: Ord + fmt::Display;

    /// The key.
    fn key(&self) -> Self::Key;
}

/// A map whose keys are not text, as pairs of key and value.
pub mod pairs {
    use std::collections::BTreeMap;

    use super::{Deserialize, Serialize};

    /// Writes it.
    ///
    /// # Errors
    /// The format's.
    pub fn serialize<K, V, S>(map: &BTreeMap<K, V>, to: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: serde::Serializer,
    {
        to.collect_seq(map)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The format's.
    pub fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: serde::Deserializer<'de>,
    {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}

/// [`pairs`], for what is shared and may be absent.
pub mod known_pairs {
    use std::{collections::BTreeMap, sync::Arc};

    use super::{Deserialize, Known, Serialize};

    /// Writes it.
    ///
    /// # Errors
    /// The format's.
    pub fn serialize<K, V, S>(map: &Known<Arc<BTreeMap<K, V>>>, to: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: serde::Serializer,
    {
        map.as_ref().map(|map| map.iter().collect::<Vec<_>>()).serialize(to)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The format's.
    pub fn deserialize<'de, K, V, D>(from: D) -> Result<Known<Arc<BTreeMap<K, V>>>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: serde::Deserializer<'de>,
    {
        let pairs = Known::<Vec<(K, V)>>::deserialize(from)?;
        Ok(pairs.map(|pairs| Arc::new(pairs.into_iter().collect())))
    }
}

/// A list in the order of its keys as a map, so that each of its items has a name.
pub mod by_key {
    use std::collections::BTreeMap;

    use super::{Deserialize, Keyed, Serialize};

    /// Writes it.
    ///
    /// # Errors
    /// The format's.
    pub fn serialize<T, S>(list: &[T], to: S) -> Result<S::Ok, S::Error>
    where
        T: Keyed + Serialize,
        S: serde::Serializer,
    {
        to.collect_map(list.iter().map(|item| (item.key().to_string(), item)))
    }

    /// Reads it.
    ///
    /// # Errors
    /// The format's.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: Keyed + Deserialize<'de>,
        D: serde::Deserializer<'de>,
    {
        let map = BTreeMap::<String, T>::deserialize(from)?;
        let mut list: Vec<T> = map.into_values().collect();
        list.sort_by_key(Keyed::key);
        Ok(list)
    }
}
