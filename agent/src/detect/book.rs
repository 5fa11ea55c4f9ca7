//! All subjects of one kind, from snapshot to snapshot: what is remembered of each, and where each
//! detection stands with it.

use std::{collections::BTreeMap, hash::Hash, sync::Arc};

use crate::{
    detect::{
        alert::{Alert, AlertId, Unknown, Untold},
        history::History,
        phase::{Change, Lost, Phase, Timing},
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

    /// Adds to its names what a snapshot does not show and memory has.
    fn recall(_: &Self::Memory, _: &mut Subject) {}
}

/// All subjects of one kind.
pub(super) struct Book<K: Kind> {
    /// Boxed: half of a tree's places are empty.
    subjects: BTreeMap<K::Key, Box<Tracked<K>>>,
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
    firing: Vec<Fires>,
}

/// What fires for a subject.
struct Fires {
    rule: usize,
    alert: Arc<Alert>,
    /// How long it goes on when the subject is seen no more.
    outlives: Nanos,
}

/// What the books of one snapshot write into.
pub(super) struct Round<'a> {
    pub(super) now: &'a Snapshot,
    pub(super) tuning: &'a Tuning,
    /// Which entries of `tuning` have taken a subject.
    pub(super) matched: &'a mut [bool],
    pub(super) alerts: Vec<Arc<Alert>>,
    /// Why alerts ended that did not because all is well.
    pub(super) ends: BTreeMap<AlertId, Change>,
    /// How many of these for want of room.
    pub(super) no_room: u64,
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
            let tracked =
                subjects.entry(key.clone()).or_insert_with(|| Box::new(Tracked::new(now.at)));
            tracked.see(&key, item, defaults, round, &mut unknown);
        });
        let counts = K::RULES.iter().zip(unknown).filter(|(_, (n, _))| 0 < *n);
        round.unknown.extend(counts.map(|(rule, (subjects, why))| Unknown {
            alert: rule.about.name,
            why,
            subjects,
            of: seen,
        }));
        self.forget(round);
        for tracked in self.subjects.values() {
            round.alerts.extend(tracked.firing.iter().map(|fires| fires.alert.clone()));
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
    fn forget(&mut self, round: &mut Round<'_>) {
        let at = round.now.at;
        let mut n_gone = 0;
        self.subjects.retain(|_, tracked| {
            let away = at - tracked.last;
            if away == Nanos(0) {
                return true;
            }
            tracked.outlive(away, round);
            let stays = tracked.fires() || away < MISSED;
            n_gone += usize::from(stays);
            stays
        });
        let too_many = n_gone.saturating_sub(MAX_OUTLIVING);
        if too_many == 0 {
            return;
        }
        let gone = self.subjects.iter().filter(|(_, tracked)| tracked.last < at);
        let mut gone: Vec<_> =
            gone.map(|(key, tracked)| (tracked.fires(), tracked.last, key.clone())).collect();
        gone.sort();
        for (_, _, key) in gone.into_iter().take(too_many) {
            for fires in self.subjects.remove(&key).into_iter().flat_map(|it| it.firing) {
                round.ends.insert(fires.alert.id, Change::Lost(Lost::NoRoom));
                round.no_room += 1;
            }
        }
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
            let before = std::mem::replace(self, Self::new(now.at));
            let lost = before.firing.iter().map(|it| (it.alert.id, Change::Lost(Lost::Gap)));
            round.ends.extend(lost);
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
            let timing = Timing { raise_for: tuned.raise_for, clear_for: tuned.clear_for };
            if tuned.silent {
                let change = self.phases[i].silence();
                self.note((i, timing), change, key, item, round);
                continue;
            }
            let sight = if age < rule.about.min_age {
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
            let change = self.phases[i].next(now.at, sight, timing);
            self.note((i, timing), change, key, item, round);
        }
    }

    fn fires(&self) -> bool {
        !self.firing.is_empty()
    }

    /// It is seen no more for `away`.
    fn outlive(&mut self, away: Nanos, round: &mut Round<'_>) {
        self.firing.retain(|Fires { rule, alert, outlives }| {
            let stays = away < *outlives;
            if !stays {
                // what it does when it is there again is raised anew
                self.phases[*rule] = Phase::default();
                let lost = alert.unknown.map(|it| Change::Lost(Lost::Unknown(it.why)));
                round.ends.extend(lost.map(|lost| (alert.id, lost)));
            }
            stays
        });
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
        (i, timing): (usize, Timing),
        change: Change,
        key: &K::Key,
        item: K::Item<'_>,
        round: &mut Round<'_>,
    ) {
        let (about, now) = (&K::RULES[i].about, round.now);
        let before = self.firing.iter().position(|fires| fires.rule == i);
        let Some(firing) = self.phases[i].firing() else {
            let over = before.map(|at| self.firing.remove(at));
            if let Some(over) = over.filter(|_| change != Change::Cleared) {
                round.ends.insert(over.alert.id, change);
            }
            return;
        };
        let unix = |at| UnixTime(now.unix_time.0.saturating_sub((now.at - at).0));
        let known = before.map(|at| &self.firing[at].alert);
        let mut subject = K::subject(item, now);
        K::recall(&self.memory, &mut subject);
        let alert = Arc::new(Alert {
            id: AlertId::new(about.name, key),
            about,
            subject: Arc::new(subject),
            severity: firing.severity,
            since: known.map_or_else(|| unix(firing.since), |alert| alert.since),
            raised: known.map_or(now.unix_time, |alert| alert.raised),
            at_raise: Arc::new(firing.at_raise.clone()),
            latest: Arc::new(firing.latest.clone()),
            unknown: firing.unknown().map(|(since, why)| Untold { since: unix(since), why }),
            inhibited_by: None,
        });
        let fires = Fires { rule: i, alert, outlives: about.outlives.max(timing.clear_for) };
        match before {
            Some(at) => self.firing[at] = fires,
            None => self.firing.push(fires),
        }
    }
}
