//! Which alerts one receiver has to be told of, and when; pure.
//!
//! In: what is told, look by look, and how requests went. Out: what is due. It holds the newest state
//! of each alert, so what still fires is never lost; memory is bounded by [`MOST`].

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use crate::{
    detect::{
        alert::{Alert, AlertId, Verdicts},
        subject::SubjectKind,
    },
    outlet::Form,
    time::{Monotonic, Nanos, UnixTime},
};

/// Most alerts that are kept for a receiver.
pub(super) const MOST: usize = 10_000;
/// Most alerts of one request.
pub(super) const BATCH: usize = 500;
/// How long a receiver is tried to be told that something is over. Alertmanager knows by then
/// by itself.
const OVER_FOR: Nanos = Nanos(15 * 60 * 1_000_000_000);
/// First and longest wait after a request that failed.
const BACKOFF: (u64, u64) = (1_000_000_000, 60_000_000_000);

/// What a receiver has to be told of.
pub(super) struct Queue {
    form: Form,
    resend: Nanos,
    /// Makes the waits of many agents differ.
    seed: u64,
    items: BTreeMap<u64, Item>,
    round: u64,
    failures: u32,
    not_before: Monotonic,
}

/// The newest state of an alert.
struct Item {
    alert: Arc<Alert>,
    over: Option<Over>,
    /// Why it is over, where that is not because all is well.
    reason: Option<String>,
    due: Monotonic,
    /// Whether the receiver has been told of this state.
    is_told: bool,
    /// When it was seen last.
    round: u64,
}

impl Item {
    /// Of the detection.
    fn name(&self) -> &'static str {
        self.alert.about.name
    }
}

#[derive(Clone, Copy)]
struct Over {
    at: Monotonic,
    unix: UnixTime,
}

/// An alert as it is told.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    /// The same as long as its labels are the same.
    pub(super) key: u64,
    pub(super) alert: Arc<Alert>,
    /// Since when it is over.
    pub(super) ended: Option<UnixTime>,
    /// Why, where that is not because all is well.
    pub(super) reason: Option<String>,
    /// Whether any alert of its name fires, also one that is not due.
    pub(super) group_fires: bool,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it.
    Taken,
    /// It never will have it.
    Refused,
    /// Another try may help.
    Failed,
}

impl Queue {
    pub(super) fn new(form: Form, resend: Nanos, seed: u64) -> Self {
        let not_before = Monotonic::default();
        Self { form, resend, seed, items: BTreeMap::new(), round: 0, failures: 0, not_before }
    }

    /// Takes in what is told at a time. How many alerts found no room: they come with a later look.
    pub(super) fn look(&mut self, now: Monotonic, verdicts: &Verdicts) -> usize {
        self.round += 1;
        let (mut left_out, mut over) = (0, None);
        for alert in verdicts.told() {
            let key = key(alert);
            let is_new = !self.items.contains_key(&key);
            if is_new && self.items.len() >= MOST && !self.forget_one_that_is_over(&mut over) {
                left_out += 1;
                continue;
            }
            let item = self.items.entry(key).or_insert_with(|| Item {
                alert: alert.clone(),
                over: None,
                reason: None,
                due: now,
                is_told: false,
                round: 0,
            });
            if item.over.take().is_some() || has_gained_a_process(&item.alert, alert) {
                (item.due, item.is_told) = (now, false);
            }
            item.alert = alert.clone();
            item.reason = None;
            item.round = self.round;
        }
        let reasons = reasons(verdicts);
        let ended = |item: &&mut Item| item.round != self.round && item.over.is_none();
        for item in self.items.values_mut().filter(ended) {
            item.over = Some(Over { at: now, unix: verdicts.unix_time });
            item.reason = reasons.get(&item.alert.id).cloned();
            (item.due, item.is_told) = (now, false);
        }
        self.items.retain(|_, item| item.over.is_none_or(|over| now - over.at < OVER_FOR));
        left_out
    }

    /// Forgets what has been over for longest. `over`: the keys of what is over, newest first, which are
    /// sorted once for all alerts of a look.
    fn forget_one_that_is_over(&mut self, over: &mut Option<Vec<u64>>) -> bool {
        let keys = over.get_or_insert_with(|| {
            let over = self.items.iter().filter_map(|(key, item)| Some((item.over?.at, *key)));
            let mut over: Vec<_> = over.collect();
            over.sort_unstable_by_key(|it| Reverse(*it));
            over.into_iter().map(|(_, key)| key).collect()
        });
        while let Some(key) = keys.pop() {
            // it may fire again by now
            if self.items.get(&key).is_some_and(|item| item.over.is_some()) {
                self.items.remove(&key);
                return true;
            }
        }
        false
    }

    /// When there is something to send, if nothing changes until then.
    pub(super) fn next_at(&self) -> Option<Monotonic> {
        self.items.values().map(|item| item.due).min().map(|due| due.max(self.not_before))
    }

    /// What is due, of that the first [`BATCH`]: what the receiver does not know, worst first, then
    /// the rest. For a webhook only alerts of one name: such a request is about one group.
    pub(super) fn due(&self, now: Monotonic) -> Vec<Telling> {
        if now < self.not_before {
            return Vec::new();
        }
        self.first(|item| item.due <= now)
    }

    /// What the receiver does not know, of that the first [`BATCH`], also if it answers badly.
    pub(super) fn untold(&self) -> Vec<Telling> {
        self.first(|item| !item.is_told)
    }

    /// How much the receiver does not know.
    pub(super) fn pending(&self) -> usize {
        self.items.values().filter(|item| !item.is_told).count()
    }

    fn first(&self, wanted: impl Fn(&Item) -> bool) -> Vec<Telling> {
        let mut wanted: Vec<_> = self.items.iter().filter(|(_, item)| wanted(item)).collect();
        wanted.sort_by_key(|(_, item)| {
            (item.is_told, item.over.is_some(), Reverse(item.alert.severity), item.due)
        });
        if let (Form::Webhook, Some((_, first))) = (self.form, wanted.first()) {
            let name = first.name();
            wanted.retain(|(_, item)| item.name() == name);
        }
        let fires = self.items.values().filter(|item| item.over.is_none());
        let fires: BTreeSet<&str> = fires.map(Item::name).collect();
        let telling = |(key, item): (&u64, &Item)| Telling {
            key: *key,
            alert: item.alert.clone(),
            ended: item.over.map(|over| over.unix),
            reason: item.reason.clone(),
            group_fires: fires.contains(item.name()),
        };
        wanted.into_iter().take(BATCH).map(telling).collect()
    }

    /// Takes in how a request went.
    pub(super) fn answered(&mut self, now: Monotonic, told: &[Telling], outcome: Outcome) {
        if outcome == Outcome::Failed {
            self.not_before = now + self.backoff();
            self.failures = self.failures.saturating_add(1);
            return;
        }
        self.failures = 0;
        self.not_before = now;
        for Telling { key, ended, .. } in told {
            let Some(item) = self.items.get_mut(key) else { continue };
            match (item.over, ended) {
                (Some(_), Some(_)) => drop(self.items.remove(key)),
                (None, None) => (item.due, item.is_told) = (now + self.resend, true),
                // it changed while the request was under way
                (Some(_), None) | (None, Some(_)) => {}
            }
        }
    }

    /// Twice as long after each failure, and up to half as long again.
    fn backoff(&self) -> Nanos {
        let (first, longest) = BACKOFF;
        let wait = first.saturating_mul(1 << self.failures.min(6)).min(longest);
        let mut hasher = DefaultHasher::new();
        (self.seed, self.failures).hash(&mut hasher);
        Nanos((wait + hasher.finish() % (wait / 2)).min(longest))
    }
}

/// Whether an alert about tasks of one name is about another process than before, which whoever was told
/// of it has not been told of.
fn has_gained_a_process(before: &Alert, now: &Alert) -> bool {
    let is_other = |pid| !before.subject.pids.contains(pid);
    now.subject.kind == SubjectKind::Caller && now.subject.pids.iter().any(is_other)
}

/// Why alerts are told no more that have not been cleared.
fn reasons(verdicts: &Verdicts) -> BTreeMap<AlertId, String> {
    let changes = verdicts.changes.iter();
    changes.filter_map(|(change, alert)| Some((alert.id, change.reason()?))).collect()
}

/// Alertmanager takes alerts for the same when all of their labels are, so it is these that count.
fn key(alert: &Alert) -> u64 {
    let Alert { id, severity, subject, .. } = alert;
    let mut hasher = DefaultHasher::new();
    (id, severity, &subject.labels).hash(&mut hasher);
    hasher.finish()
}
