//! From snapshots to a recording.

use std::{
    io::{self, Write},
    mem,
};

use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Header, LISTENERS, LONGEST_CHANGES, LONGEST_LINE, Limit, Place, RecordingError, VERSION,
    WHOLE_EVERY, delta, to_file,
};
use crate::{
    model::snapshot::{Listener, Snapshot},
    time::{Monotonic, Nanos, UnixTime},
};

/// After so many snapshots all is in the file, whatever becomes of the writer.
const FLUSH_EVERY: u64 = 5;

/// A line after the header.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    /// All of a snapshot.
    Whole(&'a Value),
    /// What changed since the line before.
    Delta(&'a Value),
}

/// Writes a recording.
#[derive(Debug)]
pub struct Writer<W: Write> {
    to: GzEncoder<W>,
    newest: Newest,
    /// Bytes of changes since the newest whole snapshot.
    changes: usize,
    first: Monotonic,
    place: Place,
}

impl<W: Write> Writer<W> {
    /// Begins a recording with its header; `host` is the kernel's release.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn new(to: W, host: &str, now: UnixTime) -> Result<Self, RecordingError> {
        let header = Header {
            version: VERSION,
            agent: env!("CARGO_PKG_VERSION").into(),
            unix_time_seconds: Nanos(now.0).as_seconds(),
            host: host.into(),
        };
        let (to, newest) = (GzEncoder::new(to, Compression::default()), Newest::default());
        let (first, place) = (Monotonic::default(), Place::default());
        let mut writer = Self { to, newest, changes: 0, first, place };
        let line = writer.line(&header)?;
        writer.put(&line).and_then(|()| writer.to.flush()).map_err(RecordingError::Write)?;
        Ok(writer)
    }

    /// Adds a snapshot.
    ///
    /// # Errors
    /// Those of what it writes to, and [`Limit::Line`].
    pub fn push(&mut self, snapshot: &Snapshot) -> Result<(), RecordingError> {
        let is_due = self.place.snapshots.is_multiple_of(WHOLE_EVERY);
        let unwritable = |err: serde_json::Error| RecordingError::Write(err.into());
        let delta = self.newest.advance(to_file(snapshot.clone())).map_err(unwritable)?;
        // equal ones differ by nothing that a delta could say
        let delta = delta.filter(|_| !is_due);
        let changes = delta.map(|delta| self.line(&Line::Delta(&delta))).transpose()?;
        let fits = |line: &Vec<u8>| self.changes + line.len() <= LONGEST_CHANGES;
        let line = match changes.filter(fits) {
            Some(line) => {
                self.changes += line.len();
                line
            }
            None => {
                self.changes = 0;
                self.line(&Line::Whole(&self.newest.value))?
            }
        };
        self.put(&line).map_err(RecordingError::Write)?;
        if self.place.snapshots == 0 {
            self.first = snapshot.at;
        }
        self.place.snapshots += 1;
        self.place.time = snapshot.at - self.first;
        if self.place.snapshots % FLUSH_EVERY == 1 {
            self.to.flush().map_err(RecordingError::Write)?;
        }
        Ok(())
    }

    /// How far it is.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Ends the recording. Without it, it is one that is cut.
    ///
    /// # Errors
    /// Those of what it writes to.
    pub fn finish(self) -> Result<W, RecordingError> {
        let end = |mut to: W| to.flush().map(|()| to);
        self.to.finish().and_then(end).map_err(RecordingError::Write)
    }

    fn line(&self, line: &impl Serialize) -> Result<Vec<u8>, RecordingError> {
        let mut bytes =
            serde_json::to_vec(line).map_err(|err| RecordingError::Write(err.into()))?;
        bytes.push(b'\n');
        match bytes.len() <= LONGEST_LINE {
            true => Ok(bytes),
            false => Err(RecordingError::TooLarge { at: self.place, limit: Limit::Line }),
        }
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        self.to.write_all(line)
    }
}

/// The newest snapshot, as JSON, and its listeners: most do not change, and need not be made JSON.
#[derive(Debug, Default)]
struct Newest {
    value: Value,
    listeners: Vec<Listener>,
}

impl Newest {
    /// Moves on to `new`; what changed, `None`: nothing.
    fn advance(&mut self, mut new: Snapshot) -> Result<Option<Value>, serde_json::Error> {
        let listeners = mem::take(&mut new.listeners);
        let mut items = match self.value.get_mut(LISTENERS).map(Value::take) {
            Some(Value::Object(items)) => items,
            _ => Map::new(),
        };
        let changes = diff_listeners(&self.listeners, &listeners, &mut items)?;
        let mut value = serde_json::to_value(new)?;
        let listed = value.get_mut(LISTENERS).map(Value::take);
        let delta = delta::diff(&self.value, &value);
        if listed.is_some() {
            value[LISTENERS] = Value::Object(items);
        }
        (self.value, self.listeners) = (value, listeners);
        Ok(match (delta, changes) {
            (Some(mut delta), Some(changes)) => {
                delta["~"][LISTENERS] = changes;
                Some(delta)
            }
            (None, Some(changes)) => Some(json!({ "~": { LISTENERS: changes } })),
            (delta, None) => delta,
        })
    }
}

/// What changed from `old`, which `items` hold as JSON, to `new`, which they hold then.
fn diff_listeners(
    old: &[Listener],
    new: &[Listener],
    items: &mut Map<String, Value>,
) -> Result<Option<Value>, serde_json::Error> {
    let find = |among: &[Listener], key| among.binary_search_by_key(&key, |it| it.key);
    let mut changed = Map::new();
    for listener in new {
        if find(old, listener.key).is_ok_and(|at| old[at] == *listener) {
            continue;
        }
        let (key, item) = (listener.key.to_string(), serde_json::to_value(listener)?);
        let delta = match items.get(&key) {
            Some(old) => delta::diff(old, &item),
            None => Some(json!({ "=": item })),
        };
        changed.extend(delta.map(|delta| (key.clone(), delta)));
        items.insert(key, item);
    }
    let gone = old.iter().filter(|it| find(new, it.key).is_err());
    let gone: Vec<String> = gone.map(|it| it.key.to_string()).collect();
    gone.iter().for_each(|key| drop(items.remove(key)));
    let mut delta = Map::new();
    if !gone.is_empty() {
        delta.insert("-".into(), json!(gone));
    }
    if !changed.is_empty() {
        delta.insert("~".into(), Value::Object(changed));
    }
    Ok((!delta.is_empty()).then_some(Value::Object(delta)))
}
