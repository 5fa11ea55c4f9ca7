//! The newest snapshot while a recording is read: only what a line changes is read anew, the rest
//! stays shared with the snapshot before.
//!
//! Listeners are many and move, so that changes of them go from the line to where they belong
//! (`listeners.rs`, `patch.rs`). All else is kept as JSON, too, for deltas to be applied to.

use std::collections::BTreeSet;

use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed as _, Error as _},
};
use serde_json::{Map, Value, json};

use super::{
    LISTENERS, MOST_LISTENERS,
    delta::{self, DeltaError},
    line::{Changed, Line, Read, Whole},
    listeners::Listeners,
};
use crate::{
    intern,
    model::snapshot::Snapshot,
    serial::{self, Keyed},
};

/// See the module.
pub(super) struct State {
    /// All but the listeners.
    rest: Value,
    /// The same, without listeners.
    snapshot: Snapshot,
    listeners: Listeners,
}

/// Why a line is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error(transparent)]
    Delta(#[from] DeltaError),
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    #[error("it begins with changes, expected a whole snapshot")]
    NothingToChange,
    #[error("more than {MOST_LISTENERS} listeners")]
    TooManyListeners,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All of a snapshot.
    Whole,
    /// What changed since the line before.
    Delta,
}

impl State {
    /// Moves on to the next snapshot. After an error nothing more can be done with `state`.
    pub(super) fn read(state: &mut Option<Self>, line: &[u8]) -> Result<Kind, StateError> {
        let mut from = serde_json::Deserializer::from_slice(line);
        let listeners = state.as_mut().map(|state| &mut state.listeners);
        let read = Line(listeners).deserialize(&mut from)?;
        from.end()?;
        let (kind, listeners) = match (read, &mut *state) {
            (Read::Whole(whole), state) => {
                (Kind::Whole, &state.insert(Self::new(whole)?).listeners)
            }
            (Read::Delta(Some(changes)), Some(state)) => {
                state.apply(changes)?;
                (Kind::Delta, &state.listeners)
            }
            (Read::Delta(_), _) => return Err(StateError::NothingToChange),
        };
        check_count(listeners.list().len()).map(|()| kind)
    }

    /// As the file has it.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { listeners: self.listeners.list().to_vec(), ..self.snapshot.clone() }
    }

    fn new(Whole { rest, listeners }: Whole) -> Result<Self, StateError> {
        let missing = || serde_json::Error::missing_field(LISTENERS);
        let listeners = listeners.ok_or_else(missing)?;
        Ok(Self { snapshot: without_listeners(&rest)?, rest, listeners })
    }

    /// Those of listeners were applied when they were read.
    fn apply(&mut self, changes: Changed) -> Result<(), StateError> {
        let Changed { whole, rest, gone } = changes;
        if let Some(whole) = whole {
            *self = Self::new(whole)?;
        }
        delta::apply(&rest, &mut self.rest)?;
        for (name, delta) in parts(&rest).and_then(|it| it.changes).into_iter().flatten() {
            let new = self.rest.get(name).unwrap_or(&Value::Null);
            refresh(&mut self.snapshot, name, new, delta)?;
        }
        if gone.iter().any(|name| name == LISTENERS) {
            return Err(DeltaError::Needed.into());
        }
        if !gone.is_empty() {
            delta::apply(&json!({ "-": gone }), &mut self.rest)?;
            self.snapshot = without_listeners(&self.rest)?;
        }
        Ok(())
    }
}

fn check_count(listeners: usize) -> Result<(), StateError> {
    match listeners <= MOST_LISTENERS {
        true => Ok(()),
        false => Err(StateError::TooManyListeners),
    }
}

/// All but the listeners, of which there are none.
fn without_listeners(rest: &Value) -> Result<Snapshot, StateError> {
    Ok(Snapshot::deserialize(rest)?)
}

/// What a delta does to an object.
struct Parts<'a> {
    /// By keys that changed or came.
    changes: Option<&'a Map<String, Value>>,
    /// Keys that went.
    gone: &'a [Value],
}

/// `None` when the delta replaces the whole.
fn parts(delta: &Value) -> Option<Parts<'_>> {
    let delta = delta.as_object().filter(|delta| !delta.contains_key("="))?;
    let gone = delta.get("-").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    Some(Parts { changes: delta.get("~").and_then(Value::as_object), gone })
}

/// Reads a field anew. What is none is passed over, as in a whole snapshot.
fn refresh(
    snapshot: &mut Snapshot,
    name: &str,
    new: &Value,
    delta: &Value,
) -> Result<(), serde_json::Error> {
    // a field that is forgotten here would stay what it was
    let Snapshot {
        at,
        unix_time,
        samples,
        interval,
        listeners: _,
        namespaces,
        udp,
        processes,
        threads,
        host,
        errors,
        hooks,
        degraded,
        agent,
    } = snapshot;
    match name {
        "at" => read(at, new),
        "unix_time" => read(unix_time, new),
        "samples" => read(samples, new),
        "interval" => read(interval, new),
        "namespaces" => refresh_list(namespaces, new, delta),
        "udp" => refresh_list(udp, new, delta),
        "processes" => read(processes, new),
        "threads" => read(threads, new),
        "host" => read(host, new),
        "errors" => read(errors, new),
        "agent" => read(agent, new),
        "hooks" => read(hooks, new),
        "degraded" => {
            *degraded = intern::by_name(new)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(field: &mut T, new: &Value) -> Result<(), serde_json::Error> {
    *field = T::deserialize(new)?;
    Ok(())
}

/// Reads the items that changed or came, and drops those that went.
fn refresh_list<T: Keyed + DeserializeOwned>(
    list: &mut Vec<T>,
    new: &Value,
    delta: &Value,
) -> Result<(), serde_json::Error> {
    let Some(Parts { changes, gone }) = parts(delta) else {
        *list = serial::by_key::deserialize(new)?;
        return Ok(());
    };
    if !gone.is_empty() {
        let gone: BTreeSet<_> = gone.iter().filter_map(Value::as_str).collect();
        list.retain(|item| !gone.contains(&*item.key().to_string()));
    }
    let mut came = Vec::new();
    for key in changes.into_iter().flat_map(Map::keys) {
        let item = T::deserialize(new.get(key).unwrap_or(&Value::Null))?;
        match list.binary_search_by_key(&item.key(), Keyed::key) {
            Ok(at) => list[at] = item,
            Err(_) => came.push(item),
        }
    }
    if !came.is_empty() {
        list.append(&mut came);
        list.sort_by_key(Keyed::key);
    }
    // somebody gave items other keys than their own
    if new.as_object().is_none_or(|items| items.len() != list.len()) {
        *list = serial::by_key::deserialize(new)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_bound_to_listeners() {
        assert!(check_count(100_000).is_ok());
        let err = check_count(100_001).unwrap_err();
        assert_eq!("more than 100000 listeners", err.to_string());
    }
}
