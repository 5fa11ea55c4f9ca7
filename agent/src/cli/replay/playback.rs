//! The snapshots of a recording up to a time, for verbs that replay.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};

use super::At;
use crate::{
    cli::{Exit, out},
    error,
    model::snapshot::Snapshot,
    recording::{Header, Place, Recording, RecordingError, Snapshots, clock},
    time::{Monotonic, Nanos},
};

/// An iterator over snapshots; where the recording is cut or damaged it ends, and [`Playback::exit`] tells.
pub(super) struct Playback {
    path: PathBuf,
    header: Header,
    snapshots: Snapshots<BufReader<File>>,
    /// Time of the first snapshot, once it was read.
    first: Option<Monotonic>,
    /// Where to end.
    at: At,
    /// What was played.
    played: Place,
    is_over: bool,
    /// Whether there is a snapshot later than that.
    is_past: bool,
    /// Why it ends before the recorder did.
    broken: Option<RecordingError>,
}

impl Playback {
    /// Opens a recording.
    pub(super) fn open(path: &Path, at: At) -> anyhow::Result<Self> {
        let place = || path.display().to_string();
        let recording = File::open(path).map_err(anyhow::Error::new);
        let recording = recording.and_then(|file| Ok(Recording::open(BufReader::new(file))?));
        let recording = recording.with_context(place)?;
        Ok(Self {
            path: path.into(),
            header: recording.header().clone(),
            snapshots: recording.snapshots(),
            first: None,
            at,
            played: Place::default(),
            is_over: false,
            is_past: false,
            broken: None,
        })
    }

    /// Its first line.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// How much was played.
    pub(super) fn played(&self) -> Place {
        self.played
    }

    /// The last snapshot; `see` has seen it and all before.
    ///
    /// # Errors
    /// When there is none, or the recording ends before the time that was asked for.
    pub(super) fn play(&mut self, mut see: impl FnMut(&Snapshot)) -> anyhow::Result<Snapshot> {
        let mut last = None;
        for snapshot in self.by_ref() {
            see(last.insert(snapshot));
        }
        let path = self.path.display().to_string();
        let Some(last) = last else {
            return Err(match self.broken.take() {
                Some(broken) => anyhow::Error::new(broken).context(path),
                None => anyhow!("{path}: a recording without snapshots"),
            });
        };
        match self.at {
            At::Time(at) if !self.reaches(at, &last) => {
                let end =
                    format!("{path}: it ends at {}, before {}", clock(self.played.time), clock(at));
                Err(match self.broken.take() {
                    Some(broken) => anyhow::Error::new(broken).context(end),
                    None => anyhow!(end),
                })
            }
            At::Last | At::Time(_) => Ok(last),
        }
    }

    /// What the exit code is at least; says where the recording is cut or damaged.
    pub(super) fn exit(&self) -> Exit {
        let Some(broken) = &self.broken else { return Exit::Fine };
        let (path, why) = (self.path.display(), error::chain(broken));
        out::note(&format!("{path}: {why}; what is shown is from before"));
        match broken {
            RecordingError::Cut(_) => Exit::Warning,
            RecordingError::Write(_)
            | RecordingError::Read { .. }
            | RecordingError::NotARecording { .. }
            | RecordingError::Newer { .. }
            | RecordingError::NoVersion { .. }
            | RecordingError::Damaged { .. }
            | RecordingError::TooLarge { .. } => Exit::CannotTell,
        }
    }

    /// Whether the recording goes on to `at`, or nearly so.
    fn reaches(&self, at: Nanos, last: &Snapshot) -> bool {
        self.is_past || at <= self.played.time + last.interval.unwrap_or_default()
    }
}

impl Iterator for Playback {
    type Item = Snapshot;

    fn next(&mut self) -> Option<Snapshot> {
        if self.is_over {
            return None;
        }
        let snapshot = match self.snapshots.next() {
            Some(Ok(snapshot)) => snapshot,
            end => {
                self.is_over = true;
                self.broken = end.and_then(Result::err);
                return None;
            }
        };
        let time = snapshot.at - *self.first.get_or_insert(snapshot.at);
        if let At::Time(at) = self.at
            && at < time
        {
            (self.is_over, self.is_past) = (true, true);
            return None;
        }
        self.played = Place { snapshots: self.played.snapshots + 1, time };
        Some(snapshot)
    }
}
