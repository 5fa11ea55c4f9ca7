//! The newest snapshot while a recording is read, as JSON and as a [`Snapshot`]: only what a line
//! changes is read anew, the rest stays shared with the snapshot before.

use std::collections::BTreeSet;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    MOST_LISTENERS,
    delta::{self, DeltaError},
};
use crate::{
    intern,
    model::snapshot::Snapshot,
    serial::{self, Keyed},
};

/// See the module.
pub(super) struct State {
    value: Value,
    snapshot: Snapshot,
}

/// Why a line is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error(transparent)]
    Delta(#[from] DeltaError),
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    #[error("more than {MOST_LISTENERS} listeners")]
    TooManyListeners,
}

impl State {
    /// From a whole snapshot.
    pub(super) fn new(value: Value) -> Result<Self, StateError> {
        let snapshot = whole(&value)?;
        Ok(Self { value, snapshot })
    }

    /// As the file has it.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Moves on to the next snapshot. After an error nothing more can be done with it.
    pub(super) fn apply(&mut self, delta: &Value) -> Result<(), StateError> {
        delta::apply(delta, &mut self.value)?;
        match parts(delta) {
            Some(Parts { changes: Some(changes), gone: [] }) => {
                check_listeners(&self.value)?;
                for (name, delta) in changes {
                    let new = self.value.get(name).unwrap_or(&Value::Null);
                    refresh(&mut self.snapshot, name, new, delta)?;
                }
            }
            _ => self.snapshot = whole(&self.value)?,
        }
        Ok(())
    }
}

fn whole(value: &Value) -> Result<Snapshot, StateError> {
    check_listeners(value)?;
    Ok(Snapshot::deserialize(value)?)
}

fn check_listeners(value: &Value) -> Result<(), StateError> {
    let listeners = value.get("listeners").and_then(Value::as_object);
    match listeners.is_some_and(|listeners| MOST_LISTENERS < listeners.len()) {
        true => Err(StateError::TooManyListeners),
        false => Ok(()),
    }
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
        listeners,
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
        "listeners" => refresh_list(listeners, new, delta),
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
