//! What fires, as it is told.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::Arc,
};

use crate::{
    detect::{
        phase::{Change, Severity},
        rule::{About, Evidence},
        subject::{Labels, Subject, SubjectKind},
    },
    input::Absent,
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
    /// The alert about the same listener that says it better.
    pub inhibited_by: Option<&'static str>,
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
    /// The listeners that the configuration wants to be there, and whether they are.
    pub expected: Vec<(Labels, bool)>,
    /// Places of the entries of the configuration that have taken no subject so far.
    pub idle: Vec<Arc<str>>,
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
}

/// Marks alerts that others say better.
pub(super) fn inhibit(alerts: &mut [Arc<Alert>]) {
    let all = alerts.to_vec();
    for alert in alerts.iter_mut().filter(|alert| !alert.about.inhibited_by.is_empty()) {
        let by = all.iter().find(|other| {
            alert.about.inhibited_by.contains(&other.about.name)
                && is_same_listener(&other.subject, &alert.subject)
        });
        let inhibited_by = by.map(|other| other.about.name);
        if alert.inhibited_by != inhibited_by {
            Arc::make_mut(alert).inhibited_by = inhibited_by;
        }
    }
}

/// Whether `by` is about the same listener as `of`, or about the tasks that serve it.
fn is_same_listener(by: &Subject, of: &Subject) -> bool {
    let (theirs, ours) = (&by.labels, &of.labels);
    match by.kind {
        // what a failed connect tells names all destinations without a port that is left
        SubjectKind::Caller if of.kind == SubjectKind::Destination => true,
        SubjectKind::Caller | SubjectKind::Process => {
            // others may have the same name, and a thread another one than its process
            if by.pids.is_empty() || of.pids.is_empty() {
                theirs.comm.is_some() && theirs.comm == ours.comm
            } else {
                by.pids.iter().any(|pid| of.pids.contains(pid))
            }
        }
        SubjectKind::Host | SubjectKind::Agent => true,
        SubjectKind::Namespace => theirs.netns == ours.netns,
        SubjectKind::Listener
        | SubjectKind::Expected
        | SubjectKind::Destination
        | SubjectKind::Udp => {
            (theirs.netns, theirs.addr, theirs.port, theirs.dst, theirs.dst_port)
                == (ours.netns, ours.addr, ours.port, ours.dst, ours.dst_port)
        }
    }
}
