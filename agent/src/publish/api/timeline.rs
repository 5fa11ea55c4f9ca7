//! What `replay FILE alerts` tells: when each alert was told, and when it was over.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alert, SCHEMA_VERSION, Source};
use crate::{
    detect::{alert::Verdicts, phase::Change},
    time::Nanos,
};

/// Changes that are kept: a recording may come from anybody.
const MOST: usize = 100_000;

/// What changed in a recording, in the order of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timeline {
    /// Version of this form.
    pub schema_version: u32,
    /// Who took the samples.
    pub source: Source,
    /// Each time that an alert was raised, changed its severity, or was over.
    pub changes: Vec<Changed>,
    /// Changes after the first 100,000, which are not in `changes`.
    pub left_out: u64,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// When, in seconds since the first snapshot.
    pub time_seconds: f64,
    /// The same in seconds since 1970.
    pub unix_time_seconds: f64,
    /// `raised`, `severity` or `cleared`.
    pub change: String,
    /// As it is from then on, or was before it was over.
    #[serde(flatten)]
    pub alert: Alert,
}

impl Default for Timeline {
    /// Nothing so far.
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            source: Source::Recording,
            changes: Vec::new(),
            left_out: 0,
        }
    }
}

impl Timeline {
    /// Takes in what changed at `time` since the start.
    pub fn push(&mut self, time: Nanos, verdicts: &Verdicts) {
        for (change, alert) in &verdicts.changes {
            let change = match change {
                Change::None => continue,
                Change::Raised => "raised",
                Change::Severity => "severity",
                Change::Cleared => "cleared",
            };
            if MOST <= self.changes.len() {
                self.left_out += 1;
                continue;
            }
            self.changes.push(Changed {
                time_seconds: time.as_seconds(),
                unix_time_seconds: Duration::from_nanos(verdicts.unix_time.0).as_secs_f64(),
                change: change.to_owned(),
                alert: Alert::new(alert),
            });
        }
    }
}
