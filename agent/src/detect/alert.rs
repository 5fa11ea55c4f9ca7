//! What fires, as it is told.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::Arc,
};

use crate::{
    detect::{
        LIMIT_WANTED,
        backlog::whole,
        phase::{Change, Severity},
        rule::{About, Evidence},
        subject::{Labels, Subject},
    },
    id::ListenerKey,
    input::{Absent, Known},
    time::{Monotonic, UnixTime},
};

/// One detection that fires for one subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// The same from the time it is raised until it is over, and of no other that fires.
    pub id: AlertId,
    /// Which detection.
    pub about: &'static About,
    /// About what.
    pub subject: Arc<Subject>,
    /// How bad it is now.
    pub severity: Severity,
    /// When it was seen first.
    pub since: UnixTime,
    /// When it had lasted long enough.
    pub raised: UnixTime,
    /// What was seen then.
    pub at_raise: Arc<Evidence>,
    /// What was seen last.
    pub latest: Arc<Evidence>,
    /// Since when, and why, it cannot be told whether it still is so.
    pub unknown: Option<Untold>,
    /// The alert about the same listener that says it better.
    pub inhibited_by: Option<&'static str>,
}

/// Something fires, and cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold {
    /// Since when.
    pub since: UnixTime,
    /// Why.
    pub why: Absent,
}

/// Names an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlertId(pub u64);

impl AlertId {
    pub(super) fn new(alert: &str, subject: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (alert, subject).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What all detections say of one snapshot.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    /// When the snapshot was taken.
    pub at: Monotonic,
    /// The same by the wall clock.
    pub unix_time: UnixTime,
    /// All that fires, worst first; what is inhibited among it.
    pub alerts: Vec<Arc<Alert>>,
    /// What is told from now on, with another severity, or no more.
    pub changes: Vec<(Change, Arc<Alert>)>,
    /// Detections that could not judge.
    pub unknown: Vec<Unknown>,
    /// The listeners that the configuration wants to be there, and whether they are, where that is known.
    pub expected: Vec<(Labels, Known<bool>)>,
    /// The entries of the configuration that have taken no subject so far, with their places; of
    /// [`SETTLED`](super::tuning::SETTLED) samples on worth telling.
    pub idle: Vec<Arc<str>>,
    /// Alerts that ended so far because more subjects are gone than are kept.
    pub no_room: u64,
}

/// A detection that could not judge some of its subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Which one.
    pub alert: &'static str,
    /// Why, of the first of them.
    pub why: Absent,
    /// How many subjects.
    pub subjects: usize,
    /// Of how many.
    pub of: usize,
}

impl Verdicts {
    /// What is told: what fires and is not inhibited, worst first.
    pub fn told(&self) -> impl Iterator<Item = &Arc<Alert>> {
        self.alerts.iter().filter(|alert| alert.inhibited_by.is_none())
    }

    /// The limit that each socket of a listener should have, if an alert about it says so.
    #[must_use]
    pub fn limit_wanted(&self, of: ListenerKey) -> Option<u64> {
        let is_about = |alert: &&Arc<Alert>| {
            let Labels { netns, addr, port, .. } = alert.subject.labels;
            (netns, addr, port) == (Some(of.netns), Some(of.addr), Some(of.port))
        };
        let about = self.alerts.iter().filter(is_about);
        let values = about.flat_map(|alert| &alert.latest.values);
        values.filter(|(name, _)| *name == LIMIT_WANTED).map(|&(_, n)| whole(n)).max()
    }
}
