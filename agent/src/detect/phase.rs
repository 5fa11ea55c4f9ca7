//! From looks to alerts: whether something is wrong for long enough to be told, and when that is over.
//! One state machine for all detections; pure.
//!
//! In: a [`Sight`] for each look. Out: the [`Phase`], and what changed. Not here: what is wrong
//! (each detection's own file), and who is told (`publish`).

use std::fmt;

use crate::{
    input::Absent,
    time::{Monotonic, Nanos},
};

/// What fires goes on for at least so long while it cannot be told whether it still should.
const UNKNOWN_FOR: Nanos = Nanos(60_000_000_000);

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
    /// What the last look showed.
    last: Last,
}

/// What the last look at something that fires showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// It is wrong, or not good enough.
    Wrong,
    /// It is fine since then; it goes on firing for `clear_for`.
    Fine { since: Monotonic },
    /// It cannot be told since then, and was fine for a while before.
    Unknown { since: Monotonic, why: Absent, fine_for: Nanos },
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
    /// It fires no more: it has been fine for long enough.
    Cleared,
    /// It fires no more, and nobody knows whether it is over.
    Lost(Lost),
    /// Another alert, of this name, says it better from now on; it goes on firing.
    Inhibited(&'static str),
    /// It fires no more: the configuration silences it.
    Silenced,
}

impl Change {
    /// In JSON and for people, one word. `None` for nothing.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Raised => Some("raised"),
            Self::Severity => Some("severity"),
            Self::Cleared => Some("cleared"),
            Self::Lost(_) => Some("unknown"),
            Self::Inhibited(_) => Some("inhibited"),
            Self::Silenced => Some("silenced"),
        }
    }

    /// Why it is told no more, where that is not because all is well.
    #[must_use]
    pub fn reason(self) -> Option<String> {
        match self {
            Self::None | Self::Raised | Self::Severity | Self::Cleared => None,
            Self::Lost(lost) => Some(format!("it cannot be told any more: {lost}")),
            Self::Inhibited(by) => Some(format!("it is told by {by}")),
            Self::Silenced => Some("the configuration silences it".to_owned()),
        }
    }
}

/// Why nobody knows whether something is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// An input has been missing for too long.
    Unknown(Absent),
    /// Samples are missing.
    Gap,
    /// More subjects are gone than are kept.
    NoRoom,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(why) => why.fmt(f),
            Self::Gap => f.write_str("nobody looked for a while"),
            Self::NoRoom => f.write_str("more subjects are gone than are kept"),
        }
    }
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
                let change = firing.next(at, &sight, timing);
                if matches!(change, Change::Cleared | Change::Lost(_)) {
                    *self = Self::calm(&sight);
                }
                change
            }
            Self::Fine | Self::Unknown(_) | Self::Pending { .. } => self.wait(at, sight, timing),
        }
    }

    /// Takes in that nobody wants to know.
    pub fn silence(&mut self) -> Change {
        match std::mem::replace(self, Self::Fine) {
            Self::Firing(_) => Change::Silenced,
            Self::Fine | Self::Unknown(_) | Self::Pending { .. } => Change::None,
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
            last: Last::Wrong,
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

impl<E> Firing<E> {
    /// Since when, and why, it cannot be told whether it still is wrong.
    #[must_use]
    pub const fn unknown(&self) -> Option<(Monotonic, Absent)> {
        match self.last {
            Last::Unknown { since, why, .. } => Some((since, why)),
            Last::Wrong | Last::Fine { .. } => None,
        }
    }
}

impl<E: Clone> Firing<E> {
    fn next(&mut self, at: Monotonic, sight: &Sight<E>, timing: Timing) -> Change {
        match sight {
            Sight::Wrong(severity, seen) => {
                self.last = Last::Wrong;
                self.latest = seen.clone();
                let before = std::mem::replace(&mut self.severity, *severity);
                if before == *severity { Change::None } else { Change::Severity }
            }
            Sight::Between => {
                self.last = Last::Wrong;
                Change::None
            }
            Sight::Fine => {
                let since = match self.last {
                    Last::Wrong => at,
                    Last::Fine { since } => since,
                    // what nobody could see is not time in which it was fine
                    Last::Unknown { fine_for, .. } => Monotonic(at.0.saturating_sub(fine_for.0)),
                };
                self.last = Last::Fine { since };
                if at < since + timing.clear_for { Change::None } else { Change::Cleared }
            }
            Sight::Unknown(why) => {
                let (since, fine_for) = match self.last {
                    Last::Wrong => (at, Nanos(0)),
                    Last::Fine { since } => (at, at - since),
                    Last::Unknown { since, fine_for, .. } => (since, fine_for),
                };
                self.last = Last::Unknown { since, why: *why, fine_for };
                let ends = since + timing.clear_for.max(UNKNOWN_FOR);
                if at < ends { Change::None } else { Change::Lost(Lost::Unknown(*why)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const TIMING: Timing = Timing { raise_for: Nanos(10 * SECOND), clear_for: Nanos(20 * SECOND) };

    fn sight(letter: char) -> Sight<char> {
        match letter {
            'w' => Sight::Wrong(Severity::Warning, 'w'),
            'c' => Sight::Wrong(Severity::Critical, 'c'),
            '.' => Sight::Fine,
            '-' => Sight::Between,
            _ => Sight::Unknown(Absent::NotOnThisKernel),
        }
    }

    /// A look each five seconds: what each saw, and what it changed: Raised, Severity, Cleared, Lost.
    #[track_caller]
    fn check(sights: &str, expected: &str) {
        check_with(TIMING, sights, expected);
    }

    #[track_caller]
    fn check_with(timing: Timing, sights: &str, expected: &str) {
        let mut phase = Phase::default();
        let changes: String = sights
            .chars()
            .zip(0..)
            .map(|(letter, i)| match phase.next(look(i), sight(letter), timing) {
                Change::None => ' ',
                Change::Raised => 'R',
                Change::Severity => 'S',
                Change::Cleared => 'C',
                Change::Lost(_) => 'L',
                Change::Inhibited(_) | Change::Silenced => '!',
            })
            .collect();
        assert_eq!(expected.trim_end(), changes.trim_end(), "{sights}");
    }

    const fn look(i: u64) -> Monotonic {
        Monotonic(5 * SECOND * i)
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
        phase.next(look(0), sight('?'), TIMING);
        assert_eq!(Phase::Unknown(Absent::NotOnThisKernel), phase);
        phase.next(look(1), sight('.'), TIMING);
        assert_eq!(Phase::Fine, phase);
        // what fires goes on for a minute, and ends as lost
        check("www????????????", "  R");
        check("www?????????????", "  R            L");
        check("www?????????????www", "  R            L  R");
        check("www??????w???????????", "  R");
        check("www????????????.....", "  R                C");
        // the time in which nobody could see is not one in which it was fine
        check("www...??.", "  R");
        check("www...??..", "  R      C");
        check("www.?.?.?.?.", "  R        C");
        check("www..????????????.", "  R");
    }

    #[test]
    fn what_cannot_be_told_goes_on_for_as_long_as_what_is_fine() {
        let at_once = Timing { clear_for: Nanos(0), ..TIMING };
        check_with(at_once, "www.", "  RC");
        check_with(at_once, "www????????????", "  R");
        check_with(at_once, "www?????????????", "  R            L");
        check_with(at_once, "www????????????.", "  R            C");
        let late = Timing { clear_for: Nanos(70 * SECOND), ..TIMING };
        check_with(late, "www??????????????", "  R");
        check_with(late, "www???????????????", "  R              L");
    }

    #[test]
    fn since_when_and_why_it_cannot_be_told_is_known_and_the_evidence_stays() {
        let mut phase = Phase::default();
        for (letter, i) in "wwc..??".chars().zip(0..) {
            phase.next(look(i), sight(letter), TIMING);
        }
        let firing = phase.firing().expect("it fires");
        assert_eq!(Some((look(5), Absent::NotOnThisKernel)), firing.unknown());
        assert_eq!((Severity::Critical, 'c'), (firing.severity, firing.latest));
        phase.next(look(7), sight('-'), TIMING);
        assert_eq!(None, phase.firing().expect("it fires").unknown());
    }

    #[test]
    fn what_is_silenced_is_neither_cleared_nor_lost() {
        let mut phase = Phase::default();
        assert_eq!(Change::None, phase.silence());
        for (letter, i) in "www".chars().zip(0..) {
            phase.next(look(i), sight(letter), TIMING);
        }
        assert_eq!((Change::Silenced, Phase::Fine), (phase.silence(), phase));
    }

    #[test]
    fn an_end_has_a_reason_unless_all_is_well() {
        let check = |change: Change, name, reason: Option<&str>| {
            assert_eq!((name, reason), (change.name(), change.reason().as_deref()), "{change:?}");
        };
        check(Change::None, None, None);
        check(Change::Raised, Some("raised"), None);
        check(Change::Severity, Some("severity"), None);
        check(Change::Cleared, Some("cleared"), None);
        for (lost, reason) in [
            (Lost::Unknown(Absent::NotPermitted), "it cannot be told any more: not permitted"),
            (Lost::Gap, "it cannot be told any more: nobody looked for a while"),
            (Lost::NoRoom, "it cannot be told any more: more subjects are gone than are kept"),
        ] {
            check(Change::Lost(lost), Some("unknown"), Some(reason));
        }
        check(Change::Inhibited("SynFlood"), Some("inhibited"), Some("it is told by SynFlood"));
        check(Change::Silenced, Some("silenced"), Some("the configuration silences it"));
    }

    #[test]
    fn what_was_seen_at_raise_is_kept() {
        let mut phase = Phase::default();
        for (letter, i) in "wwcw".chars().zip(0..) {
            phase.next(look(i), sight(letter), TIMING);
        }
        let firing = phase.firing().expect("it fires");
        assert_eq!(('c', 'w', look(0)), (firing.at_raise, firing.latest, firing.since));
        assert_eq!(Severity::Warning, firing.severity);
    }

    proptest! {
        #[test]
        fn nothing_fires_without_its_time_and_all_ends(sights in "[wc.?-]{0,60}") {
            let mut phase = Phase::default();
            let mut wrong_since = None;
            for (letter, i) in sights.chars().zip(1..) {
                let is_wrong = matches!(letter, 'w' | 'c');
                let since = is_wrong.then(|| wrong_since.unwrap_or(look(i)));
                wrong_since = since;
                let change = phase.next(look(i), sight(letter), TIMING);
                if change == Change::Raised {
                    prop_assert!(since.is_some_and(|since| TIMING.raise_for <= look(i) - since));
                }
            }
            for i in 61..=65 {
                phase.next(look(i), Sight::Fine, TIMING);
            }
            prop_assert_eq!(Phase::Fine, phase);
        }

        #[test]
        fn the_end_of_what_fires_is_told_as_it_was(
            sights in "(w|c|-|\\.|[?]{1,15}){0,60}", clear_for in 0_u64..100
        ) {
            let timing = Timing { raise_for: Nanos(0), clear_for: Nanos(clear_for * SECOND) };
            let mut phase = Phase::default();
            // since when there is nothing but unknown looks, and for how long it was fine in all
            let (mut unknown, mut fine_for) = (None, Nanos(0));
            let mut last = '-';
            for (letter, i) in sights.chars().zip(1..) {
                unknown = (letter == '?').then(|| unknown.unwrap_or(look(i)));
                match letter {
                    '.' | '?' if last == '.' => fine_for = fine_for + Nanos(5 * SECOND),
                    '.' | '?' => {}
                    _ => fine_for = Nanos(0),
                }
                last = letter;
                let did_fire = phase.firing().is_some();
                let change = phase.next(look(i), sight(letter), timing);
                prop_assert_eq!(did_fire ^ phase.firing().is_some(), matches!(
                    change, Change::Raised | Change::Cleared | Change::Lost(_)
                ));
                match change {
                    Change::Cleared => {
                        prop_assert_eq!('.', letter);
                        prop_assert!(timing.clear_for <= fine_for, "{:?}", fine_for);
                    }
                    Change::Lost(_) => {
                        let for_ = unknown.map(|since| look(i) - since);
                        prop_assert!(for_ >= Some(timing.clear_for.max(UNKNOWN_FOR)), "{:?}", for_);
                    }
                    Change::Raised => prop_assert!(!did_fire),
                    Change::None | Change::Severity => {}
                    Change::Inhibited(_) | Change::Silenced => prop_assert!(false, "{:?}", change),
                }
            }
            for i in 1_001..=1_040 {
                phase.next(look(i), Sight::Unknown(Absent::NoEbpf), timing);
            }
            prop_assert_eq!(Phase::Unknown(Absent::NoEbpf), phase);
        }
    }
}
