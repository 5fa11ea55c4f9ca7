//! The snapshots of a recording up to a time, for verbs that replay.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::At;
use crate::{
    cli::{Exit, out},
    model::snapshot::Snapshot,
    recording::{Header, Place, Recording, RecordingError, Snapshots, clock},
    time::{Monotonic, Nanos},
};

/// An iterator over snapshots; where the recording is cut it ends and [`Playback::exit`] tells.
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
    cut: Option<RecordingError>,
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
            cut: None,
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
            see(last.insert(snapshot?));
        }
        let path = self.path.display();
        match (last, self.at, &self.cut) {
            (Some(last), At::Time(at), _) if !self.reaches(at, &last) => {
                bail!("{path}: it ends at {}, before {}", clock(self.played.time), clock(at))
            }
            (Some(last), ..) => Ok(last),
            (None, _, Some(cut)) => bail!("{path}: {cut}"),
            (None, ..) => bail!("{path}: a recording without snapshots"),
        }
    }

    /// The exit code of a verb that saw all; says so where the recording is cut.
    pub(super) fn exit(&self) -> Exit {
        match &self.cut {
            Some(cut) => {
                out::note(&format!("{}: {cut}; what is shown is from before", self.path.display()));
                Exit::Warning
            }
            None => Exit::Fine,
        }
    }

    /// Whether the recording goes on to `at`, or nearly so.
    fn reaches(&self, at: Nanos, last: &Snapshot) -> bool {
        self.is_past || at <= self.played.time + last.interval.unwrap_or_default()
    }
}

impl Iterator for Playback {
    type Item = anyhow::Result<Snapshot>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let snapshot = match self.snapshots.next() {
            Some(Ok(snapshot)) => snapshot,
            other => {
                self.is_over = true;
                return match other? {
                    Err(cut @ RecordingError::Cut(_)) => {
                        self.cut = Some(cut);
                        None
                    }
                    Err(err) => Some(Err(err).with_context(|| self.path.display().to_string())),
                    Ok(_) => None,
                };
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
        Some(Ok(snapshot))
    }
}
