//! What a detection is: its name, its words, how long things must last, and the function that judges.

use std::fmt;

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
    /// What it may be.
    pub range: Range,
    /// What it is, with its unit.
    pub help: &'static str,
}

/// What a threshold may be. Bounds belong to it, but where something else is said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// From one number to another, or without an upper bound.
    Of(f64, f64),
    /// More than 0, and less than another threshold: what clears does not raise.
    Below(&'static str),
    /// From another threshold to a number.
    From(&'static str, f64),
    /// From 0 to another threshold.
    UpTo(&'static str),
}

impl Range {
    /// Something that is counted.
    pub const COUNT: Self = Self::Of(1.0, f64::INFINITY);
    /// A part of a whole.
    pub const SHARE: Self = Self::Of(0.0, 1.0);
    /// A time, in seconds.
    pub const SECONDS: Self = Self::Of(0.0, 604_800.0);

    /// The threshold that it is compared with.
    #[must_use]
    pub const fn partner(self) -> Option<&'static str> {
        match self {
            Self::Of(..) => None,
            Self::Below(partner) | Self::From(partner, _) | Self::UpTo(partner) => Some(partner),
        }
    }

    /// Whether a number is in it, whatever that other threshold is.
    #[must_use]
    pub fn takes(self, value: f64) -> bool {
        match self {
            Self::Of(least, most) => value.is_finite() && (least..=most).contains(&value),
            Self::Below(_) => value.is_finite() && 0.0 < value,
            Self::From(_, most) => (0.0..=most).contains(&value),
            Self::UpTo(_) => value.is_finite() && 0.0 <= value,
        }
    }

    /// Whether a number is on the right side of what that other threshold is.
    #[must_use]
    pub fn suits(self, value: f64, partner: f64) -> bool {
        match self {
            Self::Of(..) => true,
            Self::Below(_) => value < partner,
            Self::From(..) => partner <= value,
            Self::UpTo(_) => value <= partner,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(least, most) if most.is_infinite() => write!(f, "at least {least}"),
            Self::Of(least, most) => write!(f, "{least} to {most}"),
            Self::Below(partner) => write!(f, "more than 0, less than {partner}"),
            Self::From(partner, most) => write!(f, "{partner} to {most}"),
            Self::UpTo(partner) => write!(f, "0 to {partner}"),
        }
    }
}

/// What was seen, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// In words and numbers, without the subject's name.
    pub seen: String,
    /// What is behind it, where that is known.
    pub cause: Option<String>,
    /// What shows or mends it, as text for a shell; what no command does is a comment.
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
