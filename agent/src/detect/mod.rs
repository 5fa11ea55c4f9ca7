//! What is wrong, for how long, and who must know: pure functions of snapshots.
//!
//! In: one [`Snapshot`] after the other, and [`Tuning`] from the configuration. Out: [`Verdicts`]. Each
//! detection is a file of its own below the folder of what it judges, with a [`rule::Rule`]: name, words,
//! times, thresholds, and one function from a look at a subject to what that shows. `book.rs` keeps the
//! subjects, `history.rs` how their counters moved, `phase.rs` is the one state machine of all.
//!
//! To add one: a file, and a line in its folder's `RULES`. Not here: who is told (`publish`).

mod agent;
pub mod alert;
pub mod backlog;
mod book;
mod caller;
mod climb;
pub mod command;
mod destination;
pub mod expected;
pub mod history;
mod host;
mod inhibit;
mod listener;
mod namespace;
mod page;
pub mod phase;
mod process;
pub mod rule;
mod run;
pub mod shell;
pub mod subject;
mod sums;
pub mod tuning;
mod udp;

use std::{collections::BTreeMap, sync::Arc};

use self::{
    alert::{Alert, AlertId, Verdicts},
    book::{Book, Kind as _, Pages, Round},
    inhibit::inhibit,
    phase::{Change, Lost},
    rule::About,
    subject::{Subject, SubjectKind},
    tuning::Tuning,
};
use crate::{
    input::Known,
    model::snapshot::{Listener, Process, Snapshot},
    time::{Monotonic, Nanos},
};

/// Who waits longer for accept waits for a program that is slow: a longer queue does not help.
pub const SLOW_ACCEPT: Nanos = Nanos(250_000_000);
/// Fewer waits for accept say nothing of a program.
pub const MIN_ACCEPTS: u64 = 20;

/// What evidence calls the limit that each socket of a listener should have.
pub const LIMIT_WANTED: &str = "limit_wanted";

/// A number and what it counts.
#[must_use]
pub fn some(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// `docs/DETECTIONS.md`.
#[must_use]
pub fn markdown() -> String {
    page::markdown()
}

/// A snapshot, and what the detections say of it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The host.
    pub snapshot: Arc<Snapshot>,
    /// What is wrong there.
    pub verdicts: Arc<Verdicts>,
}

impl From<Arc<Snapshot>> for Judged {
    /// Nobody judged.
    fn from(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, verdicts: Arc::default() }
    }
}

/// All detections, and what they remember.
pub struct Detector {
    tuning: Arc<Tuning>,
    /// Which entries of `tuning` have taken a subject.
    matched: Vec<bool>,
    /// Which listeners of `tuning` have been there.
    found: Vec<bool>,
    books: Vec<Box<dyn Pages + Send>>,
    /// What is told.
    told: BTreeMap<AlertId, Arc<Alert>>,
    /// Alerts that ended for want of room.
    no_room: u64,
    last: Monotonic,
}

impl Default for Detector {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Detector {
    /// Without a past.
    #[must_use]
    pub fn new(tuning: Arc<Tuning>) -> Self {
        let matched = vec![false; tuning.entries.len()];
        let found = vec![false; tuning.expected.len()];
        let (told, last) = (BTreeMap::new(), Monotonic::default());
        Self { tuning, matched, found, books: books(), told, no_room: 0, last }
    }

    /// Changes what is configured from the next snapshot on; what is remembered stays.
    pub fn tune(&mut self, tuning: Arc<Tuning>) {
        self.matched = vec![false; tuning.entries.len()];
        self.found = vec![false; tuning.expected.len()];
        self.tuning = tuning;
        self.books.iter_mut().for_each(|book| book.tune_anew());
    }

    /// Judges one more snapshot, later than all before. After one that is earlier, as in a recording of
    /// two boots, everything begins anew.
    pub fn judge(&mut self, now: &Snapshot) -> Verdicts {
        let mut over = Change::Cleared;
        if now.at < self.last {
            let (told, no_room) = (std::mem::take(&mut self.told), self.no_room);
            *self = Self { told, no_room, ..Self::new(self.tuning.clone()) };
            over = Change::Lost(Lost::Gap);
        }
        self.last = now.at;
        let tuning = self.tuning.clone();
        let mut round = Round {
            now,
            tuning: &tuning,
            matched: &mut self.matched,
            alerts: Vec::new(),
            ends: BTreeMap::new(),
            no_room: 0,
            unknown: Vec::new(),
        };
        self.books.iter_mut().for_each(|book| book.next(&mut round));
        let Round { mut alerts, ends, no_room, unknown, .. } = round;
        self.no_room += no_room;
        inhibit(&mut alerts);
        alerts.sort_by_key(|alert| (std::cmp::Reverse(alert.severity), alert.raised, alert.id));
        let changes = self.changes(&alerts, |id| ends.get(id).copied().unwrap_or(over));
        for (expected, found) in tuning.expected.iter().zip(&mut self.found) {
            *found = *found || expected::is_up(now, expected) == Ok(true);
        }
        let entries = tuning.entries.iter().map(|entry| &entry.place).zip(&self.matched);
        let expected = tuning.expected.iter().map(|expected| &expected.place).zip(&self.found);
        let idle = entries.chain(expected).filter(|(_, matched)| !**matched);
        Verdicts {
            at: now.at,
            unix_time: now.unix_time,
            alerts,
            changes,
            unknown,
            expected: expected::all(now, &tuning),
            idle: idle.map(|(place, _)| place.as_str().into()).collect(),
            no_room: self.no_room,
        }
    }

    /// What is told now and was not, or otherwise, and what is told no more; `end` knows why of those
    /// that do not fire.
    fn changes(
        &mut self,
        alerts: &[Arc<Alert>],
        end: impl Fn(&AlertId) -> Change,
    ) -> Vec<(Change, Arc<Alert>)> {
        let told = alerts.iter().filter(|alert| alert.inhibited_by.is_none());
        let told: BTreeMap<_, _> = told.map(|alert| (alert.id, alert.clone())).collect();
        let inhibited =
            alerts.iter().filter_map(|alert| Some((alert.id, (alert.inhibited_by?, alert))));
        let inhibited: BTreeMap<_, _> = inhibited.collect();
        let before = std::mem::replace(&mut self.told, told);
        let mut changes = Vec::new();
        for (id, alert) in &self.told {
            match before.get(id) {
                None => changes.push((Change::Raised, alert.clone())),
                Some(it) if it.severity != alert.severity => {
                    changes.push((Change::Severity, alert.clone()));
                }
                Some(_) => {}
            }
        }
        let over = before.into_iter().filter(|(id, _)| !self.told.contains_key(id));
        changes.extend(over.map(|(id, alert)| match inhibited.get(&id) {
            Some(&(by, alert)) => (Change::Inhibited(by), alert.clone()),
            None => (end(&id), alert),
        }));
        changes
    }
}

/// An empty book for each kind of subjects.
fn books() -> Vec<Box<dyn Pages + Send>> {
    vec![
        Box::new(Book::<listener::Listeners>::default()),
        Box::new(Book::<expected::ExpectedListeners>::default()),
        Box::new(Book::<process::Processes>::default()),
        Box::new(Book::<caller::Callers>::default()),
        Box::new(Book::<destination::Destinations>::default()),
        Box::new(Book::<udp::UdpSockets>::default()),
        Box::new(Book::<namespace::Namespaces>::default()),
        Box::new(Book::<host::Host>::default()),
        Box::new(Book::<agent::Agent>::default()),
    ]
}

/// The names of a listener, as alerts have them.
#[must_use]
pub fn subject_of(listener: &Listener, now: &Snapshot) -> Subject {
    listener::Listeners::subject(listener, now)
}

/// Listen drops of a listener since its accept queue was full: by the hooks that tell it, or else all.
///
/// # Errors
/// Why they are not known.
pub fn overflows(listener: &Listener) -> Known<u64> {
    listener::overflows(listener)
}

/// Why nobody accepts on a listener that is stalled, and what shows or mends that. `None`: nobody has
/// looked at the processes that should, or somebody accepts.
#[must_use]
pub fn why_unserved(listener: &Listener, now: &Snapshot) -> Option<(String, String)> {
    listener::why_unserved(listener, now)
}

/// Whether a process has hardly a descriptor left, as far as is known.
#[must_use]
pub fn is_full(process: &Process) -> bool {
    caller::is_full(process)
}

/// The kinds of subjects, and what is detected of each.
#[must_use]
pub fn kinds() -> Vec<(SubjectKind, Vec<&'static About>)> {
    books().iter().map(|book| (book.kind(), book.abouts())).collect()
}

/// All detections, in alphabetical order.
#[must_use]
pub fn all() -> Vec<&'static About> {
    let mut all: Vec<&About> = kinds().into_iter().flat_map(|(_, abouts)| abouts).collect();
    all.sort_by_key(|about| about.name);
    all
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
