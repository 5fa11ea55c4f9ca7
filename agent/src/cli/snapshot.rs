//! Where the reading verbs get their data: the daemon on this host, or samples of our own.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    http::{self, AskError},
    out,
};
use crate::{
    config::Config,
    daemon,
    model::{Model, snapshot::Snapshot},
    publish::api::{Listeners, SCHEMA_VERSION, Source},
    sources::Sources,
};

/// What the daemon is asked for.
const LISTENERS: &str = "/api/v1/listeners";

/// How to get data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Leave the daemon alone.
    pub(super) standalone: bool,
    /// Say so when the daemon cannot be reached; otherwise a missing one is passed over.
    pub(super) insist: bool,
    /// Time between the two samples that rates need.
    pub(super) interval: Duration,
}

/// One source of data, kept for as long as a verb runs.
pub(super) enum Reader {
    /// The daemon behind this socket, and its first answer.
    Daemon(Box<Path>, Option<Listeners>),
    /// Our own samples.
    Own(Box<Own>),
}

/// Our own samples, as a reader of listeners.
pub(super) struct Own {
    sampler: Sampler,
    interval: Duration,
    has_sampled: bool,
}

/// Sources and a model of our own.
pub(super) struct Sampler {
    sources: Sources,
    model: Model,
}

impl Reader {
    /// Asks the daemon, and makes a sampler when there is none.
    pub(super) fn open(config: &Config, request: Request) -> anyhow::Result<Self> {
        if let Some(socket) = config.socket.as_deref().filter(|_| !request.standalone) {
            match ask(socket, LISTENERS, http::PATIENCE) {
                Ok(first) => return Ok(Self::Daemon(socket.into(), Some(first))),
                Err(err) if is_nobody(&err) && !request.insist => {}
                Err(err) => out::note(&format!("{err:#}; taking own samples")),
            }
        }
        Ok(Self::Own(Box::new(Own::open(config, request.interval)?)))
    }

    /// The listeners now.
    pub(super) fn read(&mut self) -> anyhow::Result<Listeners> {
        match self {
            Self::Daemon(socket, first) => match first.take() {
                Some(first) => Ok(first),
                None => ask(socket, LISTENERS, http::PATIENCE),
            },
            Self::Own(own) => Ok(own.read()),
        }
    }

    /// In words, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Daemon(socket, _) => format!("from the daemon at {}", socket.display()),
            Self::Own(own) => {
                format!("from own samples {} ms apart", own.interval.as_millis())
            }
        }
    }
}

impl Own {
    fn open(config: &Config, interval: Duration) -> anyhow::Result<Self> {
        Ok(Self { sampler: Sampler::open(config)?, interval, has_sampled: false })
    }

    fn read(&mut self) -> Listeners {
        if !self.has_sampled {
            self.sampler.next();
            self.has_sampled = true;
            thread::sleep(self.interval);
        }
        Listeners::new(&self.sampler.next(), Source::Standalone)
    }
}

impl Sampler {
    /// Opens what it reads.
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        let options = daemon::options(config);
        let sources = Sources::open(&options).context("cannot take own samples")?;
        let model = Model::new(daemon::settings(config), sources.hooks());
        Ok(Self { sources, model })
    }

    /// What there is now.
    pub(super) fn next(&mut self) -> Snapshot {
        let snapshot = self.model.apply(&self.sources.sample());
        self.sources.look_at_threads(self.model.wants_threads_of());
        snapshot
    }

    /// Has the accepts of a listener that stalls looked at, where that is due, or `now`.
    pub(super) fn look_closer(&mut self, now: bool) {
        self.sources.look_closer(now || self.model.wants_closer_look());
    }
}

/// One question to the daemon, whose answer has a version.
pub(super) fn ask<T: DeserializeOwned>(
    socket: &Path,
    target: &str,
    patience: Duration,
) -> anyhow::Result<T> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let place = || format!("the daemon at {}", socket.display());
    let bytes = http::get(socket, target, patience).with_context(place)?;
    let Version { schema_version } = serde_json::from_slice(&bytes).with_context(place)?;
    ensure!(
        schema_version == SCHEMA_VERSION,
        "{}: got schema version {schema_version}, expected {SCHEMA_VERSION}",
        place(),
    );
    serde_json::from_slice(&bytes).with_context(place)
}

/// Whether no daemon runs.
pub(super) fn is_nobody(err: &anyhow::Error) -> bool {
    err.downcast_ref().is_some_and(AskError::is_nobody)
}

/// Whether a daemon has been waited for in vain.
pub(super) fn is_late(err: &anyhow::Error) -> bool {
    err.downcast_ref().is_some_and(AskError::is_late)
}
