//! Recordings: snapshots in a file, to look at an incident again; docs/recording.md has the format.
//!
//! In and out: [`Snapshot`]s, over `io::Write` and `io::Read`. gzip of lines of JSON: a header, then a
//! line for each snapshot, whole or as what changed since the one before. Nothing is trusted that is
//! read: each line, their sum between whole ones, and the listeners have a limit. Not here: files and
//! clocks.

mod delta;
mod line;
mod listeners;
mod patch;
mod read;
mod state;
mod write;

use std::io;

use serde::{Deserialize, Serialize};

pub use self::{
    read::{Recording, Snapshots},
    write::Writer,
};
use crate::{model::snapshot::Snapshot, time::Nanos};

/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// Longest line, in bytes of JSON: some 10,000 busy listeners.
pub const LONGEST_LINE: usize = 64 << 20;
/// Most bytes of changes between two whole snapshots.
pub const LONGEST_CHANGES: usize = 64 << 20;
/// Most listeners of one snapshot.
pub const MOST_LISTENERS: usize = 100_000;
/// Most snapshots of one recording: 46 days of one each second.
pub const MOST_SNAPSHOTS: u64 = 4_000_000;
/// The field of a snapshot.
const LISTENERS: &str = "listeners";
/// Every so many snapshots one is whole.
const WHOLE_EVERY: u64 = 60;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    #[serde(rename = "backlogd_recording")]
    pub version: u32,
    /// Version of the agent that wrote it.
    pub agent: String,
    /// When it began, in seconds since 1970.
    pub unix_time_seconds: f64,
    /// The kernel's release on that host.
    pub host: String,
}

/// Where in a recording something was: the newest snapshot before it, and the time of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of that snapshot, from 1; 0: none.
    pub snapshots: u64,
    /// From the first snapshot to that.
    pub time: Nanos,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.snapshots {
            0 => f.write_str("before its first snapshot"),
            n => write!(f, "after snapshot {n} ({})", clock(self.time)),
        }
    }
}

/// A time since the start, as `00:12:30`.
#[must_use]
pub fn clock(time: Nanos) -> String {
    let seconds = time.0 / 1_000_000_000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Why a recording cannot be written, or read further.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file could not be written.
    #[error("cannot write the recording")]
    Write(#[source] io::Error),
    /// The file could not be read.
    #[error("cannot read the recording {at}")]
    Read {
        /// Where.
        at: Place,
        /// Why.
        source: io::Error,
    },
    /// Something else.
    #[error("not a recording: {got}, expected the gzip file that `backlogd record` writes")]
    NotARecording {
        /// What it is instead.
        got: String,
    },
    /// Written by an agent from after this one.
    #[error(
        "a recording of version {version}, made by backlogd {agent}; this is backlogd {}, which \
         reads up to version {VERSION}",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// Its version.
        version: u64,
        /// That agent's version.
        agent: String,
    },
    /// Of a version that there has never been.
    #[error("a recording of version {version}, expected {VERSION}")]
    NoVersion {
        /// What it says.
        version: serde_json::Number,
    },
    /// It ends in the middle: the recorder was killed, the disk was full, or a copy was not finished.
    /// All before is whole.
    #[error("the recording is cut {0}")]
    Cut(Place),
    /// Bytes were changed or added, or it was not made by a recorder.
    #[error("the recording is damaged {at}: {got}")]
    Damaged {
        /// Where.
        at: Place,
        /// What is wrong.
        got: String,
    },
    /// Beyond a limit.
    #[error("the recording is refused {at}: more than {limit}")]
    TooLarge {
        /// Where.
        at: Place,
        /// Which limit.
        limit: Limit,
    },
}

/// What there may be at most in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// [`LONGEST_LINE`]
    #[error("{LONGEST_LINE} bytes in one line")]
    Line,
    /// [`LONGEST_CHANGES`]
    #[error("{LONGEST_CHANGES} bytes of changes since a whole snapshot")]
    Changes,
    /// [`MOST_LISTENERS`]
    #[error("{MOST_LISTENERS} listeners in one snapshot")]
    Listeners,
    /// [`MOST_SNAPSHOTS`]
    #[error("{MOST_SNAPSHOTS} snapshots")]
    Snapshots,
}

/// `since_accept` moves with time for every listener that rests; in the file it is the instant
/// instead, which stays.
fn to_file(mut snapshot: Snapshot) -> Snapshot {
    let at = snapshot.at.0;
    for listener in &mut snapshot.listeners {
        listener.since_accept = listener.since_accept.map(|since| Nanos(at.wrapping_sub(since.0)));
    }
    snapshot
}

/// The inverse of [`to_file`], which is its own.
fn from_file(snapshot: Snapshot) -> Snapshot {
    to_file(snapshot)
}
