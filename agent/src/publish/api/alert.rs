//! Alerts in JSON: what fires, and which detections could not judge.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SCHEMA_VERSION, Source};
use crate::{
    detect::{
        Judged,
        alert::{self, Verdicts},
        rule::Evidence,
    },
    input::Absent,
    time::UnixTime,
};

/// `/api/v1/alerts`: what is wrong on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alerts {
    /// Version of this form.
    pub schema_version: u32,
    /// When the sample that was judged was taken, in seconds since 1970.
    pub unix_time_seconds: f64,
    /// Who judged.
    pub source: Source,
    /// All that fires, worst first; what another alert says better is among it.
    pub alerts: Vec<Alert>,
    /// Detections that could not judge all of their subjects.
    pub unknown: Vec<Unknown>,
}

/// One alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alert {
    /// Which detection; rules for Prometheus have the prefix `Backlogd` before it.
    pub alert: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// What it is about: `listener`, `process`, …
    pub kind: String,
    /// Its name, for people.
    pub subject: String,
    /// Its names, as the metrics' labels.
    pub labels: BTreeMap<String, String>,
    /// Processes behind it.
    pub pids: Vec<u32>,
    /// What is wrong, always the same sentence.
    pub summary: String,
    /// What was seen last.
    pub seen: String,
    /// What was seen when it was raised.
    pub seen_at_raise: String,
    /// Why that matters.
    pub why: String,
    /// What is behind it; null where that is not known.
    pub cause: Option<String>,
    /// What shows or mends it, as text for a shell; what no command does is a comment.
    pub mend: String,
    /// The numbers, by name.
    pub values: BTreeMap<String, f64>,
    /// When it was seen first, in seconds since 1970.
    pub since_unix_seconds: f64,
    /// When it had lasted long enough to be told.
    pub raised_unix_seconds: f64,
    /// The alert that says it better, while that fires, too.
    pub inhibited_by: Option<String>,
    /// There while it cannot be told whether it still is so: `seen` is from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Untold>,
}

/// Since when, and why, an alert that fires cannot be judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Untold {
    /// In seconds since 1970.
    pub since_unix_seconds: f64,
    /// The reason.
    pub why: Absent,
}

/// A detection that could not judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Unknown {
    /// Which one.
    pub alert: String,
    /// Why, of the first of the subjects.
    pub why: Absent,
    /// How many subjects.
    pub subjects: usize,
    /// Of how many.
    pub of: usize,
}

impl Unknown {
    /// Whether its input is one that some kernels give only while somebody looks closer.
    #[must_use]
    pub fn needs_closer_look(&self) -> bool {
        (self.alert.as_str(), self.why) == ("AcceptErrors", Absent::TooEarly)
    }
}

impl Alerts {
    /// What was judged of a snapshot.
    #[must_use]
    pub fn new(judged: &Judged, source: Source) -> Self {
        let Verdicts { alerts, unknown, .. } = &*judged.verdicts;
        Self {
            schema_version: SCHEMA_VERSION,
            unix_time_seconds: seconds(judged.snapshot.unix_time),
            source,
            alerts: alerts.iter().map(|alert| Alert::new(alert)).collect(),
            unknown: unknown.iter().map(Unknown::new).collect(),
        }
    }
}

impl Alert {
    /// One alert.
    #[must_use]
    pub fn new(alert: &alert::Alert) -> Self {
        let Evidence { seen, cause, mend, values } = &*alert.latest;
        let labels = alert.subject.labels.pairs().into_iter();
        Self {
            alert: alert.about.name.to_owned(),
            severity: alert.severity.name().to_owned(),
            kind: alert.subject.kind.name().to_owned(),
            subject: alert.subject.name.clone(),
            labels: labels.map(|(name, value)| (name.to_owned(), value)).collect(),
            pids: alert.subject.pids.iter().map(|pid| pid.0).collect(),
            summary: alert.about.summary.to_owned(),
            seen: seen.clone(),
            seen_at_raise: alert.at_raise.seen.clone(),
            why: alert.about.why.to_owned(),
            cause: cause.clone(),
            mend: mend.clone(),
            values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
            since_unix_seconds: seconds(alert.since),
            raised_unix_seconds: seconds(alert.raised),
            inhibited_by: alert.inhibited_by.map(str::to_owned),
            unknown: alert.unknown.map(|alert::Untold { since, why }| Untold {
                since_unix_seconds: seconds(since),
                why,
            }),
        }
    }
}

impl Unknown {
    fn new(unknown: &alert::Unknown) -> Self {
        let alert::Unknown { alert, why, subjects, of } = *unknown;
        Self { alert: alert.to_owned(), why, subjects, of }
    }
}

fn seconds(time: UnixTime) -> f64 {
    Duration::from_nanos(time.0).as_secs_f64()
}
