//! What of the detections can be set, for all subjects or for some: one syntax for thresholds, times
//! and silences.

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use crate::{
    detect::rule::{About, MAX_THRESHOLDS, Range},
    id::NetnsId,
    input::Workload,
    time::Nanos,
};

/// After so many samples an entry that has taken nothing is told.
pub const SETTLED: u64 = 10;

/// All that is set. Of entries that meet, the last one wins, setting by setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuning {
    /// In the order of the configuration.
    pub entries: Vec<Entry>,
    /// Listeners that must be there.
    pub expected: Vec<Expected>,
}

/// What is set for some alerts of some subjects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Of which detection; `None`: of all.
    pub alert: Option<&'static str>,
    /// Of which subjects.
    pub only: Match,
    /// Whether nothing is told.
    pub silence: Option<bool>,
    /// How long it must last.
    pub raise_for: Option<Nanos>,
    /// How long it must be over.
    pub clear_for: Option<Nanos>,
    /// Thresholds by name; those of other detections are passed over.
    pub thresholds: Vec<(&'static str, f64)>,
    /// Where it is in the configuration, and what it is for, for messages.
    pub place: String,
}

/// An entry that sets one of two thresholds so that they contradict each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contradiction {
    /// The entry, as an index of [`Tuning::entries`].
    pub entry: usize,
    /// What it sets.
    pub key: &'static str,
    /// What that is compared with.
    pub other: &'static str,
    /// What the other one is there.
    pub value: f64,
    /// Which entry sets the other one; `None`: it is the default.
    pub by: Option<usize>,
    /// The range in which one of them names the other.
    pub range: Range,
}

impl Tuning {
    /// The entry that silences all detections of all subjects, if no later one lifts that for some.
    #[must_use]
    pub fn mutes_all(&self) -> Option<&Entry> {
        let is_all = |entry: &Entry| entry.alert.is_none() && entry.only == Match::default();
        let mutes = |entry: &Entry| entry.silence == Some(true) && is_all(entry);
        let at = self.entries.iter().rposition(mutes)?;
        let is_lifted = self.entries[at + 1..].iter().any(|it| it.silence == Some(false));
        (!is_lifted).then(|| &self.entries[at])
    }

    /// The first entry after which two thresholds contradict each other, for what some entry takes.
    #[must_use]
    pub fn contradiction(&self, all: &[&About]) -> Option<Contradiction> {
        let about = |entry: &Entry| all.iter().copied().find(|it| Some(it.name) == entry.alert);
        let found = self.entries.iter().filter_map(|entry| self.contradicts(about(entry)?, entry));
        found.min_by_key(|contradiction| contradiction.entry)
    }

    /// The same for what `only` takes, by the entries that are surely for all of that.
    fn contradicts(&self, about: &About, only: &Entry) -> Option<Contradiction> {
        let at = |name| about.thresholds.iter().position(|threshold| threshold.name == name);
        let mut values: Vec<(f64, Option<usize>)> =
            about.thresholds.iter().map(|threshold| (threshold.default, None)).collect();
        let is_meant = |entry: &Entry| {
            entry.alert == only.alert && [&Match::default(), &only.only].contains(&&entry.only)
        };
        for (i, entry) in self.entries.iter().enumerate().filter(|(_, entry)| is_meant(entry)) {
            for &(name, value) in &entry.thresholds {
                values[at(name)?] = (value, Some(i));
            }
            for (threshold, &(value, by)) in about.thresholds.iter().zip(&values) {
                let Some(partner) = threshold.range.partner() else { continue };
                let other = values[at(partner)?];
                if threshold.range.suits(value, other.0) {
                    continue;
                }
                let (key, other, (value, by)) = if by == Some(i) {
                    (threshold.name, partner, other)
                } else {
                    (partner, threshold.name, (value, by))
                };
                let range = threshold.range;
                return Some(Contradiction { entry: i, key, other, value, by, range });
            }
        }
        None
    }
}

/// A listener that the configuration wants to be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Its address; `None`: any.
    pub addr: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// The Kubernetes namespace of its owner.
    pub namespace: Option<Pattern>,
    /// How long it may be missing.
    pub within: Nanos,
    /// How long is looked, where that is all there is: what is missing for so long is told as a warning.
    pub look: Option<Nanos>,
    /// Where it is in the configuration, and what it names, for messages.
    pub place: String,
}

/// Which subjects an entry is for; what is not set takes all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Local address.
    pub addr: Option<IpAddr>,
    /// Local ports.
    pub port: Option<RangeInclusive<u16>>,
    /// Network namespace.
    pub netns: Option<NetnsId>,
    /// The owner's name.
    pub comm: Option<Pattern>,
    /// Kubernetes namespace.
    pub namespace: Option<Pattern>,
    /// Pod.
    pub pod: Option<Pattern>,
    /// Container.
    pub container: Option<Pattern>,
    /// systemd unit.
    pub unit: Option<Pattern>,
}

/// Text in which `*` stands for any text, also for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub Arc<str>);

impl Pattern {
    /// Whether it takes `text`.
    #[must_use]
    pub fn takes(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// What a subject is matched by.
#[derive(Clone, Debug, Default)]
pub(super) struct Target {
    pub(super) addr: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) netns: Option<NetnsId>,
    pub(super) comm: Option<Arc<str>>,
    pub(super) workload: Arc<Workload>,
}

impl Target {
    /// Whether nothing has changed, as far as shared names tell.
    pub(super) fn is(&self, other: &Self) -> bool {
        let same = |ours: &Option<Arc<str>>, theirs: &Option<Arc<str>>| match (ours, theirs) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs) || ours == theirs,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same(&self.comm, &other.comm)
            && (Arc::ptr_eq(&self.workload, &other.workload) || self.workload == other.workload)
            && (self.addr, self.port, self.netns) == (other.addr, other.port, other.netns)
    }
}

impl Match {
    /// Whether it takes a subject. One that lacks what is asked for is not taken.
    pub(super) fn takes(&self, target: &Target) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none() || wanted == found
        }
        fn like(wanted: Option<&Pattern>, found: Option<&Arc<str>>) -> bool {
            wanted.is_none_or(|wanted| found.is_some_and(|found| wanted.takes(found)))
        }
        let Workload { unit, namespace, pod, container, .. } = &*target.workload;
        let port = |range: &RangeInclusive<u16>| target.port.is_some_and(|it| range.contains(&it));
        self.port.as_ref().is_none_or(port)
            && is(self.addr.as_ref(), target.addr.as_ref())
            && is(self.netns.as_ref(), target.netns.as_ref())
            && like(self.comm.as_ref(), target.comm.as_ref())
            && like(self.namespace.as_ref(), namespace.as_ref())
            && like(self.pod.as_ref(), pod.as_ref())
            && like(self.container.as_ref(), container.as_ref())
            && like(self.unit.as_ref(), unit.as_ref())
    }
}

/// How one detection judges one subject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tuned {
    pub(super) silent: bool,
    pub(super) raise_for: Nanos,
    pub(super) clear_for: Nanos,
    pub(super) thresholds: [f64; MAX_THRESHOLDS],
}

impl Tuned {
    /// As the detection itself has it.
    pub(super) fn by_default(about: &About) -> Self {
        let mut thresholds = [0.0; MAX_THRESHOLDS];
        for (value, threshold) in thresholds.iter_mut().zip(about.thresholds) {
            *value = threshold.default;
        }
        let (raise_for, clear_for) = (about.timing.raise_for, about.timing.clear_for);
        Self { silent: false, raise_for, clear_for, thresholds }
    }

    /// With what `entries` say of it for `target`.
    pub(super) fn new(about: &About, entries: &[Entry], target: &Target) -> Self {
        let mut tuned = Self::by_default(about);
        let is_meant = |entry: &&Entry| {
            entry.alert.is_none_or(|name| name == about.name) && entry.only.takes(target)
        };
        for entry in entries.iter().filter(is_meant) {
            tuned.silent = entry.silence.unwrap_or(tuned.silent);
            tuned.raise_for = entry.raise_for.unwrap_or(tuned.raise_for);
            tuned.clear_for = entry.clear_for.unwrap_or(tuned.clear_for);
            for &(name, value) in &entry.thresholds {
                let at = about.thresholds.iter().position(|threshold| threshold.name == name);
                if let Some(at) = at {
                    tuned.thresholds[at] = value;
                }
            }
        }
        tuned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{
        phase::Timing,
        rule::{Threshold, seconds},
    };

    #[test]
    fn a_star_stands_for_any_text() {
        #[track_caller]
        fn check(pattern: &str, text: &str, expected: bool) {
            assert_eq!(expected, Pattern(pattern.into()).takes(text), "{pattern} {text}");
        }
        check("nginx", "nginx", true);
        check("nginx", "nginx2", false);
        check("web-*", "web-7d9f-x", true);
        check("web-*", "web-", true);
        check("*-web", "my-web", true);
        check("*", "", true);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "ab", false);
        check("ab*ba", "aba", false);
        check("", "", true);
        check("", "x", false);
    }

    const ABOUT: About = About {
        name: "A",
        summary: "",
        why: "",
        timing: Timing { raise_for: seconds(1), clear_for: seconds(2) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold { name: "drops", default: 10.0, range: Range::COUNT, help: "" },
            Threshold { name: "ratio", default: 0.5, range: Range::SHARE, help: "" },
        ],
        inhibited_by: &[],
    };

    #[test]
    fn of_entries_that_meet_the_last_one_wins_setting_by_setting() {
        let port = |port| Match { port: Some(port..=port), ..Match::default() };
        let entries = [
            Entry { thresholds: vec![("drops", 20.0), ("ratio", 0.9)], ..Entry::default() },
            Entry { silence: Some(true), only: port(81), ..Entry::default() },
            Entry {
                alert: Some("A"),
                raise_for: Some(seconds(9)),
                thresholds: vec![("drops", 30.0)],
                only: port(80),
                ..Entry::default()
            },
            Entry { alert: Some("B"), silence: Some(true), ..Entry::default() },
        ];
        let tuned = |port| {
            let target = Target { port: Some(port), ..Target::default() };
            Tuned::new(&ABOUT, &entries, &target)
        };
        let thresholds = [30.0, 0.9, 0.0, 0.0];
        let expected =
            Tuned { silent: false, raise_for: seconds(9), clear_for: seconds(2), thresholds };
        assert_eq!(expected, tuned(80));
        assert!(tuned(81).silent);
        assert_eq!(20.0, tuned(82).thresholds[0]);
        // a subject without a port is not at port 81
        assert!(!Tuned::new(&ABOUT, &entries, &Target::default()).silent);
    }

    #[test]
    fn what_silences_all_is_known_unless_it_is_lifted_for_some() {
        let silence = |on| Entry { silence: Some(on), ..Entry::default() };
        let only = Match { port: Some(80..=80), ..Match::default() };
        let some = |entry: Entry| Entry { only: only.clone(), ..entry };
        let slow = Entry { raise_for: Some(seconds(9)), ..Entry::default() };
        let check = |entries: &[Entry], expected: Option<usize>| {
            let tuning = Tuning { entries: entries.to_vec(), expected: Vec::new() };
            assert_eq!(expected.map(|at| &entries[at]), tuning.mutes_all(), "{entries:?}");
        };
        check(&[slow.clone(), silence(true), slow.clone()], Some(1));
        check(&[silence(false), silence(true)], Some(1));
        check(&[some(silence(true)), slow.clone()], None);
        check(&[Entry { alert: Some("A"), ..silence(true) }], None);
        // all but some
        check(&[silence(true), some(silence(false))], None);
        check(&[], None);
    }
}
