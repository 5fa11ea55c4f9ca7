//! What counters were, some minutes and hours back, in little memory; pure.
//!
//! Two rings: a point each ten seconds of the last five minutes, and one each five minutes of the last
//! two hours. 57 points at most, 8 bytes and 4 for each counter: with eight counters and what the rings
//! reserve, 2.5 KiB. A counter that grows by more than 2^32 between two points is read too low.

use std::collections::VecDeque;

use crate::{
    input::{Absent, Known},
    time::{Monotonic, Nanos},
};

/// From one point of the fine ring to the next.
const FINE: Nanos = Nanos(10_000_000_000);
/// Points in it: five minutes and one point before.
const N_FINE: usize = 32;
/// From one point of the coarse ring to the next.
const COARSE: Nanos = Nanos(300_000_000_000);
/// Points in it: two hours and one point before.
const N_COARSE: usize = 25;

/// Counters that only grow, over time.
#[derive(Clone, Debug)]
pub struct History<const N: usize> {
    /// The newest values, whole.
    newest: Option<(Monotonic, [u64; N])>,
    /// When the values before those were taken, and how far they moved since.
    step: Option<Growth<N>>,
    fine: VecDeque<Point<N>>,
    coarse: VecDeque<Point<N>>,
}

/// When, and the low half of what each counter was then.
type Point<const N: usize> = (Monotonic, [u32; N]);

/// How far counters moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth<const N: usize> {
    /// Each counter's part.
    pub by: [u64; N],
    /// In which time.
    pub over: Nanos,
}

impl<const N: usize> Default for History<N> {
    fn default() -> Self {
        Self { newest: None, step: None, fine: VecDeque::new(), coarse: VecDeque::new() }
    }
}

impl<const N: usize> History<N> {
    /// Takes in what the counters are at `at`, later than all before. One that is not known stays
    /// where it was.
    pub fn push(&mut self, at: Monotonic, values: [Option<u64>; N]) {
        let before = self.newest;
        let values =
            std::array::from_fn(|i| values[i].unwrap_or(before.map_or(0, |(_, before)| before[i])));
        self.newest = Some((at, values));
        self.step = before.map(|(then, before)| Growth {
            by: std::array::from_fn(|i| values[i].saturating_sub(before[i])),
            over: at - then,
        });
        let values = values.map(low);
        for (ring, every, most) in
            [(&mut self.fine, FINE, N_FINE), (&mut self.coarse, COARSE, N_COARSE)]
        {
            if ring.back().is_none_or(|&(last, _)| every <= at - last) {
                if ring.len() == most {
                    ring.pop_front();
                }
                ring.push_back((at, values));
            }
        }
    }

    /// How far they moved in the last `over`, or a little longer.
    ///
    /// # Errors
    /// `TooEarly` while there is no point as old as that.
    pub fn growth(&self, over: Nanos) -> Known<Growth<N>> {
        let (at, _) = self.newest.ok_or(Absent::TooEarly)?;
        let newest_of = |ring: &VecDeque<Point<N>>| {
            let n = ring.partition_point(|point| over <= at - point.0);
            Some(ring[n.checked_sub(1)?])
        };
        let point = newest_of(&self.fine).or_else(|| newest_of(&self.coarse));
        point.and_then(|point| self.growth_from(&point)).ok_or(Absent::TooEarly)
    }

    /// The same, or since there is history where that is shorter.
    #[must_use]
    pub fn growth_within(&self, over: Nanos) -> Growth<N> {
        let oldest = || self.coarse.front().and_then(|point| self.growth_from(point));
        let nothing = Growth { by: [0; N], over: Nanos(0) };
        self.growth(over).ok().or_else(oldest).unwrap_or(nothing)
    }

    /// From the values before the newest to these.
    ///
    /// # Errors
    /// `TooEarly` before there are two.
    pub fn step(&self) -> Known<Growth<N>> {
        self.step.ok_or(Absent::TooEarly)
    }

    /// In how many of the spans of five minutes of the last two hours a counter grew, and of how many.
    #[must_use]
    pub fn spans(&self, counter: usize) -> (usize, usize) {
        let newest = self.newest.map(|(_, now)| low(now[counter]));
        let values = self.coarse.iter().map(|(_, values)| values[counter]).chain(newest);
        let steps = values.clone().zip(values.skip(1));
        (steps.filter(|(before, now)| before != now).count(), self.coarse.len())
    }

    fn growth_from(&self, &(then, before): &Point<N>) -> Option<Growth<N>> {
        let (at, now) = self.newest?;
        let by = std::array::from_fn(|i| low(now[i]).wrapping_sub(before[i]).into());
        Some(Growth { by, over: at - then })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(value: u64) -> u32 {
    value as u32
}

impl<const N: usize> Growth<N> {
    /// How much a counter grew each second.
    #[must_use]
    pub fn per_second(&self, counter: usize) -> f64 {
        let seconds = self.over.as_seconds();
        if seconds == 0.0 { 0.0 } else { self.by[counter] as f64 / seconds }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// One that grows by one each second, sampled each `every` seconds until `end`.
    fn steady(every: u64, end: u64) -> History<1> {
        let mut history = History::default();
        for second in (0..=end).step_by(usize::try_from(every).expect("small")) {
            history.push(Monotonic((100 + second) * SECOND), [Some(second)]);
        }
        history
    }

    #[track_caller]
    fn check(history: &History<1>, over: u64, within: Option<std::ops::RangeInclusive<u64>>) {
        let growth = history.growth(Nanos(over * SECOND));
        match within {
            None => assert_eq!(Err(Absent::TooEarly), growth),
            Some(range) => {
                let growth = growth.expect("known");
                assert!(range.contains(&growth.by[0]), "{growth:?}, expected {range:?}");
                assert!((growth.per_second(0) - 1.0).abs() < 1e-9, "{growth:?}");
            }
        }
    }

    #[test]
    fn growth_is_over_the_time_that_is_asked_for_or_a_little_longer() {
        let history = steady(1, 7_200);
        check(&history, 60, Some(60..=70));
        check(&history, 300, Some(300..=310));
        check(&history, 900, Some(900..=1_200));
        check(&history, 6_900, Some(6_900..=7_200));
        check(&history, 7_300, None);
        check(&steady(1, 59), 60, None);
        check(&steady(1, 60), 60, Some(60..=60));
        check(&History::default(), 0, None);
    }

    #[test]
    fn what_is_not_known_stays_where_it_was_and_the_last_step_is_told() {
        let mut history = History::default();
        for (second, value) in [(1, Some(5)), (2, None), (4, Some(7))] {
            history.push(Monotonic(second * SECOND), [value]);
        }
        assert_eq!(Ok(Growth { by: [2], over: Nanos(2 * SECOND) }), history.step());
        assert_eq!(Growth { by: [2], over: Nanos(3 * SECOND) }, history.growth_within(Nanos(9)));
        history.push(Monotonic(5 * SECOND), [None]);
        assert_eq!(Ok([0]), history.step().map(|step| step.by));
    }

    #[test]
    fn spans_in_which_it_grew_are_counted() {
        let mut history = History::default();
        assert_eq!((0, 0), History::<1>::default().spans(0));
        for second in 0..1_000 {
            let value = if second < 350 { 5 } else { 9 } + u64::from(second == 999);
            history.push(Monotonic(second * SECOND), [Some(value)]);
        }
        // of those that begin at 0, 300, 600 and 900 s
        assert_eq!((2, 4), history.spans(0));
    }

    #[test]
    fn memory_has_an_end() {
        let history = steady(1, 100_000);
        assert_eq!((N_FINE, N_COARSE), (history.fine.len(), history.coarse.len()));
    }

    proptest! {
        #[test]
        fn growth_is_never_of_a_shorter_time(
            pauses in prop::collection::vec(1_u64..600, 1..200), over in 0_u64..8_000
        ) {
            let mut history = History::default();
            let mut second = 0;
            for pause in pauses {
                second += pause;
                history.push(Monotonic(second * SECOND), [Some(second)]);
            }
            if let Ok(growth) = history.growth(Nanos(over * SECOND)) {
                prop_assert!(Nanos(over * SECOND) <= growth.over);
                prop_assert_eq!(growth.over.0, growth.by[0] * SECOND);
            }
        }
    }
}
