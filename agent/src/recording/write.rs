//! From snapshots to a recording.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use serde_json::Value;

use super::{
    Header, LONGEST_CHANGES, LONGEST_LINE, Limit, Line, Place, RecordingError, VERSION,
    WHOLE_EVERY, delta, to_file,
};
use crate::{
    model::snapshot::Snapshot,
    time::{Monotonic, Nanos, UnixTime},
};

/// After so many snapshots all is in the file, whatever becomes of the writer.
const FLUSH_EVERY: u64 = 5;

/// Writes a recording.
#[derive(Debug)]
pub struct Writer<W: Write> {
    to: GzEncoder<W>,
    newest: Option<Value>,
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
        let (to, newest) = (GzEncoder::new(to, Compression::default()), None);
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
        let value = serde_json::to_value(to_file(snapshot.clone()));
        let value = value.map_err(|err| RecordingError::Write(err.into()))?;
        let is_due = self.place.snapshots.is_multiple_of(WHOLE_EVERY);
        let old = self.newest.as_ref().filter(|_| !is_due);
        // equal ones differ by nothing that a delta could say
        let delta = old.and_then(|old| delta::diff(old, &value));
        let changes = delta.map(|delta| self.line(&Line::Delta(&delta))).transpose()?;
        let fits = |line: &Vec<u8>| self.changes + line.len() <= LONGEST_CHANGES;
        let line = match changes.filter(fits) {
            Some(line) => {
                self.changes += line.len();
                line
            }
            None => {
                self.changes = 0;
                self.line(&Line::Whole(&value))?
            }
        };
        self.put(&line).map_err(RecordingError::Write)?;
        self.newest = Some(value);
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
