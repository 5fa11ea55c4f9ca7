//! What a detection is: its name, its words, how long things must last, and the function that judges.

use crate::{
    detect::{
        book::Kind,
        history::{Growth, History},
        phase::{self, Severity, Timing},
        tuning::Tuned,
    },
    input::Known,
    model::snapshot::Snapshot,
    time::Nanos,
};

/// Counters that are remembered of a subject.
pub(super) const COUNTERS: usize = 8;
/// Most thresholds of one rule.
pub(super) const MAX_THRESHOLDS: usize = 4;

/// What one look at a subject shows.
pub(super) type Sight = phase::Sight<Evidence>;

/// One detection, for subjects of one kind.
pub(super) struct Rule<K: Kind> {
    /// What it is called, and how it judges without a configuration.
    pub(super) about: About,
    /// One look.
    pub(super) judge: fn(&Look<'_, '_, K>) -> Known<Sight>,
}

/// What is known of a detection without looking at anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct About {
    /// The `alert` label; in CamelCase, and without the prefix that Prometheus rules have.
    pub name: &'static str,
    /// One sentence for people, always the same.
    pub summary: &'static str,
    /// Why that matters, in a sentence or two.
    pub why: &'static str,
    /// How long things must last.
    pub timing: Timing,
    /// How long a subject must be known first.
    pub min_age: Nanos,
    /// How long it goes on firing when its subject is seen no more.
    pub outlives: Nanos,
    /// What can be set, in the order in which the judge takes them.
    pub thresholds: &'static [Threshold],
    /// Alerts about the same listener that say it better: while one of them fires, this one is not told.
    pub inhibited_by: &'static [&'static str],
}

/// A number that a detection compares with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Its key in the configuration.
    pub name: &'static str,
    /// Its value where the configuration has none.
    pub default: f64,
    /// What it is, with its unit.
    pub help: &'static str,
}

/// What was seen, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// In words and numbers, without the subject's name.
    pub seen: String,
    /// What is behind it, where that is known.
    pub cause: Option<String>,
    /// The command that shows or mends it.
    pub mend: String,
    /// The numbers, by name.
    pub values: Vec<(&'static str, f64)>,
}

/// What a judge looks at.
pub(super) struct Look<'i, 'a, K: Kind> {
    /// The host.
    pub(super) now: &'a Snapshot,
    /// The subject.
    pub(super) it: K::Item<'i>,
    /// How its counters moved.
    pub(super) history: &'a History<COUNTERS>,
    /// What else is remembered of it.
    pub(super) memory: &'a K::Memory,
    /// What is configured for this rule and subject.
    pub(super) tuned: &'a Tuned,
}

impl<K: Kind> Look<'_, '_, K> {
    /// The thresholds, in the order of [`About::thresholds`].
    pub(super) fn thresholds<const N: usize>(&self) -> [f64; N] {
        const { assert!(N <= MAX_THRESHOLDS) };
        std::array::from_fn(|i| self.tuned.thresholds[i])
    }

    /// How counters moved in the last `over`, or in as much of it as there is.
    pub(super) fn within(&self, over: Nanos) -> Growth<COUNTERS> {
        self.history.growth_within(over)
    }
}

/// Something is wrong.
pub(super) fn wrong(severity: Severity, evidence: Evidence) -> Known<Sight> {
    Ok(Sight::Wrong(severity, evidence))
}

/// Whole seconds.
pub(super) const fn seconds(n: u64) -> Nanos {
    Nanos(n * 1_000_000_000)
}

/// Whole minutes.
pub(super) const fn minutes(n: u64) -> Nanos {
    seconds(60 * n)
}
