//! All subjects of one kind, from snapshot to snapshot: what is remembered of each, and where each
//! detection stands with it.

use std::{collections::BTreeMap, hash::Hash, sync::Arc};

use crate::{
    detect::{
        alert::{Alert, AlertId, Unknown},
        history::History,
        phase::{Change, Phase, Timing},
        rule::{About, COUNTERS, Evidence, Look, Rule, Sight, minutes, seconds},
        subject::{Subject, SubjectKind},
        tuning::{Target, Tuned, Tuning},
    },
    input::Absent,
    model::snapshot::Snapshot,
    time::{Monotonic, Nanos, UnixTime},
};

/// Subjects that are seen no more and are kept.
const MAX_OUTLIVING: usize = 1_024;

/// How long a subject is remembered that nothing fires for: what cannot be read once is there again.
const MISSED: Nanos = seconds(30);

/// A subject that was away for longer is judged as a new one.
const GAP: Nanos = minutes(5);

/// One kind of subjects.
pub(super) trait Kind: Sized + 'static {
    /// What tells subjects apart.
    type Key: Ord + Clone + Hash + Send;
    /// What the snapshot shows of one.
    type Item<'a>: Copy;
    /// What is remembered of one beside counters.
    type Memory: Default + Send;
    /// What its subjects are.
    const KIND: SubjectKind;
    /// The detections.
    const RULES: &'static [Rule<Self>];

    /// Visits all subjects of a snapshot, each once.
    fn each<'a>(
        now: &'a Snapshot,
        tuning: &'a Tuning,
        visit: &mut dyn FnMut(Self::Key, Self::Item<'a>),
    );

    /// The counters to remember; `None` for what is not known or not used.
    fn counters(item: Self::Item<'_>, now: &Snapshot) -> [Option<u64>; COUNTERS];

    /// Takes in what else is to be remembered, after the counters.
    fn remember(
        memory: &mut Self::Memory,
        item: Self::Item<'_>,
        history: &History<COUNTERS>,
        now: &Snapshot,
    );

    /// Takes in what depends on what is configured, which is there rule by rule.
    fn follow(_: &mut Self::Memory, _: Self::Item<'_>, _: &Snapshot, _: &[Tuned]) {}

    /// What entries of the configuration are matched with.
    fn target(item: Self::Item<'_>) -> Target;

    /// Its names.
    fn subject(item: Self::Item<'_>, now: &Snapshot) -> Subject;
}

/// All subjects of one kind.
pub(super) struct Book<K: Kind> {
    subjects: BTreeMap<K::Key, Tracked<K>>,
    /// How each rule judges where nothing is configured.
    defaults: Box<[Tuned]>,
}

impl<K: Kind> Default for Book<K> {
    fn default() -> Self {
        let defaults = K::RULES.iter().map(|rule| Tuned::by_default(&rule.about)).collect();
        Self { subjects: BTreeMap::new(), defaults }
    }
}

/// One subject.
struct Tracked<K: Kind> {
    first: Monotonic,
    last: Monotonic,
    history: History<COUNTERS>,
    memory: K::Memory,
    /// What is configured for it, rule by rule, and by which names; `None`: nothing.
    tuned: Option<(Target, Box<[Tuned]>)>,
    phases: Box<[Phase<Evidence>]>,
    firing: Vec<(usize, Arc<Alert>)>,
}

/// What the books of one snapshot write into.
pub(super) struct Round<'a> {
    pub(super) now: &'a Snapshot,
    pub(super) tuning: &'a Tuning,
    /// Which entries of `tuning` have taken a subject.
    pub(super) matched: &'a mut [bool],
    pub(super) alerts: Vec<Arc<Alert>>,
    pub(super) unknown: Vec<Unknown>,
}

/// A book, whatever its kind.
pub(super) trait Pages {
    /// Takes in one more snapshot.
    fn next(&mut self, round: &mut Round<'_>);

    /// What is configured has changed.
    fn tune_anew(&mut self);

    /// What its subjects are.
    fn kind(&self) -> SubjectKind;

    /// Its detections.
    fn abouts(&self) -> Vec<&'static About>;
}

impl<K: Kind> Pages for Book<K> {
    fn next(&mut self, round: &mut Round<'_>) {
        let (now, tuning) = (round.now, round.tuning);
        let mut unknown: Vec<(usize, Absent)> = vec![(0, Absent::TooEarly); K::RULES.len()];
        let mut seen = 0;
        let Self { subjects, defaults } = self;
        K::each(now, tuning, &mut |key, item| {
            seen += 1;
            let tracked = subjects.entry(key.clone()).or_insert_with(|| Tracked::new(now.at));
            tracked.see(&key, item, defaults, round, &mut unknown);
        });
        let counts = K::RULES.iter().zip(unknown).filter(|(_, (n, _))| 0 < *n);
        round.unknown.extend(counts.map(|(rule, (subjects, why))| Unknown {
            alert: rule.about.name,
            why,
            subjects,
            of: seen,
        }));
        self.forget(now.at);
        for tracked in self.subjects.values() {
            round.alerts.extend(tracked.firing.iter().map(|(_, alert)| alert.clone()));
        }
    }

    fn tune_anew(&mut self) {
        for tracked in self.subjects.values_mut() {
            tracked.tuned = None;
        }
    }

    fn kind(&self) -> SubjectKind {
        K::KIND
    }

    fn abouts(&self) -> Vec<&'static About> {
        K::RULES.iter().map(|rule| &rule.about).collect()
    }
}

impl<K: Kind> Book<K> {
    /// Subjects that are seen no more: what fires for them ends in time.
    fn forget(&mut self, at: Monotonic) {
        let mut outliving = 0;
        self.subjects.retain(|_, tracked| {
            if tracked.last == at {
                return true;
            }
            let away = at - tracked.last;
            tracked.firing.retain(|(i, _)| {
                let about = &K::RULES[*i].about;
                away < about.outlives.max(about.timing.clear_for)
            });
            outliving += 1;
            let stays = !tracked.firing.is_empty() || away < MISSED;
            stays && outliving <= MAX_OUTLIVING
        });
    }
}

impl<K: Kind> Tracked<K> {
    fn new(at: Monotonic) -> Self {
        Self {
            first: at,
            last: at,
            history: History::default(),
            memory: K::Memory::default(),
            tuned: None,
            phases: std::iter::repeat_with(Phase::default).take(K::RULES.len()).collect(),
            firing: Vec::new(),
        }
    }

    fn see(
        &mut self,
        key: &K::Key,
        item: K::Item<'_>,
        defaults: &[Tuned],
        round: &mut Round<'_>,
        unknown: &mut [(usize, Absent)],
    ) {
        let now = round.now;
        if GAP < now.at - self.last {
            // what it did meanwhile is nobody's to judge
            *self = Self::new(now.at);
        }
        self.last = now.at;
        self.history.push(now.at, K::counters(item, now));
        K::remember(&mut self.memory, item, &self.history, now);
        self.tune(item, round);
        let tuned = self.tuned.as_ref().map_or(defaults, |(_, tuned)| tuned);
        K::follow(&mut self.memory, item, now, tuned);
        let age = now.at - self.first;
        for (i, rule) in K::RULES.iter().enumerate() {
            let tuned = self.tuned.as_ref().map_or(&defaults[i], |(_, tuned)| &tuned[i]);
            let sight = if tuned.silent || age < rule.about.min_age {
                Sight::Fine
            } else {
                let look =
                    Look { now, it: item, history: &self.history, memory: &self.memory, tuned };
                (rule.judge)(&look).unwrap_or_else(Sight::Unknown)
            };
            if let Sight::Unknown(why) = sight {
                let (n, first) = &mut unknown[i];
                if *n == 0 {
                    *first = why;
                }
                *n += 1;
            }
            let clear_for = if tuned.silent { Nanos(0) } else { tuned.clear_for };
            let timing = Timing { raise_for: tuned.raise_for, clear_for };
            let change = self.phases[i].next(now.at, sight, timing);
            self.note(i, change, &rule.about, key, item, now);
        }
    }

    /// What is configured for it, when that or its names have changed.
    fn tune(&mut self, item: K::Item<'_>, round: &mut Round<'_>) {
        if round.tuning.entries.is_empty() {
            return;
        }
        let target = K::target(item);
        if self.tuned.as_ref().is_some_and(|(known, _)| known.is(&target)) {
            return;
        }
        for (entry, matched) in round.tuning.entries.iter().zip(round.matched.iter_mut()) {
            let is_ours = |name| K::RULES.iter().any(|rule| rule.about.name == name);
            *matched |= entry.alert.is_none_or(is_ours) && entry.only.takes(&target);
        }
        let tuned = K::RULES
            .iter()
            .map(|rule| Tuned::new(&rule.about, &round.tuning.entries, &target))
            .collect();
        self.tuned = Some((target, tuned));
    }

    /// Keeps the alert of rule `i` as its phase has it.
    fn note(
        &mut self,
        i: usize,
        change: Change,
        about: &'static About,
        key: &K::Key,
        item: K::Item<'_>,
        now: &Snapshot,
    ) {
        let Some(firing) = self.phases[i].firing() else {
            if change == Change::Cleared {
                self.firing.retain(|(rule, _)| *rule != i);
            }
            return;
        };
        let before = self.firing.iter().position(|(rule, _)| *rule == i);
        let raised = before.map_or(now.unix_time, |at| self.firing[at].1.raised);
        let since = before.map_or_else(
            || UnixTime(now.unix_time.0.saturating_sub((now.at - firing.since).0)),
            |at| self.firing[at].1.since,
        );
        let alert = Arc::new(Alert {
            id: AlertId::new(about.name, key),
            about,
            subject: Arc::new(K::subject(item, now)),
            severity: firing.severity,
            since,
            raised,
            at_raise: Arc::new(firing.at_raise.clone()),
            latest: Arc::new(firing.latest.clone()),
            inhibited_by: None,
        });
        match before {
            Some(at) => self.firing[at].1 = alert,
            None => self.firing.push((i, alert)),
        }
    }
}
