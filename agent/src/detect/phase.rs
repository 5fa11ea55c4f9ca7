//! From looks to alerts: whether something is wrong for long enough to be told, and when that is over.
//! One state machine for all detections; pure.
//!
//! In: a [`Sight`] for each look. Out: the [`Phase`], and what changed. Not here: what is wrong
//! (each detection's own file), and who is told (`publish`).

use crate::{
    input::Absent,
    time::{Monotonic, Nanos},
};

/// How bad something is; the words of rules for Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth a look.
    Info,
    /// Somebody has to act, not at once.
    Warning,
    /// Somebody has to act at once.
    Critical,
}

impl Severity {
    /// As a label: `info`, `warning`, `critical`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What one look at a subject shows; `E` is what was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Sight<E> {
    /// An input is missing: this is never taken for [`Sight::Fine`].
    Unknown(Absent),
    /// Nothing is wrong.
    Fine,
    /// Not bad enough to be told, not good enough to be over.
    Between,
    /// Something is wrong.
    Wrong(Severity, E),
}

/// How long things must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Wrong for so long before it is told.
    pub raise_for: Nanos,
    /// Fine for so long before it is over.
    pub clear_for: Nanos,
}

/// Where a detection stands with one subject.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase<E> {
    /// Nothing is wrong.
    Fine,
    /// Cannot be told, and why.
    Unknown(Absent),
    /// Wrong, not for long enough.
    Pending {
        /// When that was seen first.
        since: Monotonic,
    },
    /// Told.
    Firing(Box<Firing<E>>),
}

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Firing<E> {
    /// When it was seen first.
    pub since: Monotonic,
    /// How bad it is now.
    pub severity: Severity,
    /// What was seen when it was raised.
    pub at_raise: E,
    /// What was seen last.
    pub latest: E,
    /// Since when it is fine, or unknown, again; it goes on firing for `clear_for`.
    calm_since: Option<Monotonic>,
}

/// What a look changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that has to be told.
    None,
    /// It fires from now on.
    Raised,
    /// It fires with another severity.
    Severity,
    /// It fires no more.
    Cleared,
}

impl<E> Default for Phase<E> {
    fn default() -> Self {
        Self::Unknown(Absent::TooEarly)
    }
}

impl<E: Clone> Phase<E> {
    /// Takes in one more look.
    pub fn next(&mut self, at: Monotonic, sight: Sight<E>, timing: Timing) -> Change {
        match self {
            Self::Firing(firing) => {
                if let Some(change) = firing.next(at, &sight, timing) {
                    return change;
                }
                *self = Self::calm(&sight);
                Change::Cleared
            }
            Self::Fine | Self::Unknown(_) | Self::Pending { .. } => self.wait(at, sight, timing),
        }
    }

    /// What fires, if it does.
    #[must_use]
    pub fn firing(&self) -> Option<&Firing<E>> {
        match self {
            Self::Firing(firing) => Some(&**firing),
            Self::Fine | Self::Unknown(_) | Self::Pending { .. } => None,
        }
    }

    /// While nothing fires.
    fn wait(&mut self, at: Monotonic, sight: Sight<E>, timing: Timing) -> Change {
        let Sight::Wrong(severity, seen) = sight else {
            *self = Self::calm(&sight);
            return Change::None;
        };
        let since = if let Self::Pending { since } = self { *since } else { at };
        if at < since + timing.raise_for {
            *self = Self::Pending { since };
            return Change::None;
        }
        *self = Self::Firing(Box::new(Firing {
            since,
            severity,
            at_raise: seen.clone(),
            latest: seen,
            calm_since: None,
        }));
        Change::Raised
    }

    fn calm(sight: &Sight<E>) -> Self {
        match sight {
            Sight::Unknown(why) => Self::Unknown(*why),
            Sight::Fine | Sight::Between | Sight::Wrong(..) => Self::Fine,
        }
    }
}

impl<E: Clone> Firing<E> {
    /// `None` when it is over.
    fn next(&mut self, at: Monotonic, sight: &Sight<E>, timing: Timing) -> Option<Change> {
        match sight {
            Sight::Wrong(severity, seen) => {
                self.calm_since = None;
                self.latest = seen.clone();
                let before = std::mem::replace(&mut self.severity, *severity);
                Some(if before == *severity { Change::None } else { Change::Severity })
            }
            Sight::Between => {
                self.calm_since = None;
                Some(Change::None)
            }
            Sight::Fine | Sight::Unknown(_) => {
                let since = *self.calm_since.get_or_insert(at);
                (at < since + timing.clear_for).then_some(Change::None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMING: Timing = Timing { raise_for: Nanos(10), clear_for: Nanos(20) };

    fn sight(letter: char) -> Sight<char> {
        match letter {
            'w' => Sight::Wrong(Severity::Warning, 'w'),
            'c' => Sight::Wrong(Severity::Critical, 'c'),
            '.' => Sight::Fine,
            '-' => Sight::Between,
            _ => Sight::Unknown(Absent::NotOnThisKernel),
        }
    }

    /// Looks, five apart: what each saw, and what it changed: Raised, Severity, Cleared.
    #[track_caller]
    fn check(sights: &str, expected: &str) {
        let mut phase = Phase::default();
        let changes: String = sights
            .chars()
            .zip(0..)
            .map(|(letter, i)| match phase.next(Monotonic(5 * i), sight(letter), TIMING) {
                Change::None => ' ',
                Change::Raised => 'R',
                Change::Severity => 'S',
                Change::Cleared => 'C',
            })
            .collect();
        assert_eq!(expected.trim_end(), changes.trim_end(), "{sights}");
    }

    #[test]
    fn what_is_wrong_for_long_enough_is_told_until_it_is_fine_for_long_enough() {
        check("www", "  R");
        check("ww.www", "     R");
        check("ww-www", "     R");
        check("www....", "  R");
        check("www.....", "  R    C");
        // hysteresis: not good enough
        check("www...-....", "  R");
        check("www...-.....", "  R        C");
        check("wwwcw", "  RSS");
        check("www...w.....", "  R        C");
        check("www..........www", "  R    C       R");
    }

    #[test]
    fn what_cannot_be_told_is_not_fine() {
        let mut phase = Phase::default();
        assert_eq!(Phase::Unknown(Absent::TooEarly), phase);
        phase.next(Monotonic(0), sight('?'), TIMING);
        assert_eq!(Phase::Unknown(Absent::NotOnThisKernel), phase);
        phase.next(Monotonic(5), sight('.'), TIMING);
        assert_eq!(Phase::Fine, phase);
        // what fires goes on for a while
        check("www????", "  R");
        check("www?????", "  R    C");
        check("www??..?", "  R    C");
    }

    #[test]
    fn what_was_seen_at_raise_is_kept() {
        let mut phase = Phase::default();
        for (letter, i) in "wwcw".chars().zip(0..) {
            phase.next(Monotonic(5 * i), sight(letter), TIMING);
        }
        let firing = phase.firing().expect("it fires");
        assert_eq!(('c', 'w', Monotonic(0)), (firing.at_raise, firing.latest, firing.since));
        assert_eq!(Severity::Warning, firing.severity);
    }

    proptest! {
        #[test]
        fn nothing_fires_without_its_time_and_all_ends(sights in "[wc.?-]{0,60}") {
            let mut phase = Phase::default();
            let mut at = 0;
            let mut wrong_since = None;
            for letter in sights.chars() {
                at += 5;
                let is_wrong = matches!(letter, 'w' | 'c');
                let since = is_wrong.then(|| wrong_since.unwrap_or(at));
                wrong_since = since;
                let change = phase.next(Monotonic(at), sight(letter), TIMING);
                if change == Change::Raised {
                    prop_assert!(since.is_some_and(|since| TIMING.raise_for.0 <= at - since));
                }
            }
            for i in 1..=5 {
                phase.next(Monotonic(at + 5 * i), Sight::Fine, TIMING);
            }
            prop_assert_eq!(Phase::Fine, phase);
        }
    }
}
