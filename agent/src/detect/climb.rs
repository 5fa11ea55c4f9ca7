//! Whether a number that goes up and down grows steadily: the lowest values of equal parts of time; pure.

use std::collections::VecDeque;

use crate::time::{Monotonic, Nanos};

/// The time of which one lowest value is kept.
const BUCKET: Nanos = Nanos(15_000_000_000);
/// How many are kept: forty minutes.
const KEPT: usize = 160;
/// Without a reading for more of these, what was before counts no more.
const GAP: u64 = 8;
/// Parts that are compared.
const PARTS: usize = 4;

/// Four parts of 75 seconds.
pub(super) const FIVE_MINUTES: Parts = Parts(5);
/// Four parts of ten minutes.
pub(super) const FORTY_MINUTES: Parts = Parts(40);

/// How many buckets a part has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts(usize);

impl Parts {
    /// All of them.
    pub(super) const fn over(self) -> Nanos {
        Nanos((self.0 * PARTS) as u64 * BUCKET.0)
    }
}

/// The lowest values of a number, by time.
#[derive(Clone, Debug, Default)]
pub(super) struct Climb {
    /// When the last bucket began.
    begun: Option<Monotonic>,
    /// What is beyond 2^32 is taken for that.
    buckets: VecDeque<u32>,
}

impl Climb {
    /// Takes in what the number is at `at`, later than all before.
    pub(super) fn push(&mut self, at: Monotonic, value: u64) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        let begun = *self.begun.get_or_insert(at);
        let buckets = (at - begun).0 / BUCKET.0;
        if GAP < buckets {
            *self = Self { begun: Some(at), buckets: VecDeque::from([value]) };
            return;
        }
        if buckets == 0
            && let Some(lowest) = self.buckets.back_mut()
        {
            *lowest = value.min(*lowest);
            return;
        }
        for _ in 0..buckets.max(1) {
            if self.buckets.len() == KEPT {
                self.buckets.pop_front();
            }
            self.buckets.push_back(value);
        }
        self.begun = Some(begun + Nanos(buckets * BUCKET.0));
    }

    /// The lowest value in the last `over`; `None` while there is less.
    pub(super) fn lowest(&self, over: Nanos) -> Option<u64> {
        let n = usize::try_from(over.0 / BUCKET.0).ok()? + 1;
        let skip = self.buckets.len().checked_sub(n)?;
        self.buckets.range(skip..).min().map(|lowest| u64::from(*lowest))
    }

    /// By how much it grows each second, if it grows in each of four parts of time and in none by
    /// less than half as much as in another. Neither a burst nor a warm-up, which slows down, does.
    pub(super) fn slope(&self, parts: Parts) -> Option<f64> {
        let growths = self.growths(parts)?;
        let (least, most) = (*growths.iter().min()?, *growths.iter().max()?);
        if least == 0 || 2 * u64::from(least) < u64::from(most) {
            return None;
        }
        let seconds = Nanos((growths.len() * parts.0) as u64 * BUCKET.0).as_seconds();
        Some(growths.iter().map(|growth| f64::from(*growth)).sum::<f64>() / seconds)
    }

    /// Whether it is higher than it was, in whatever way it came there.
    pub(super) fn grows(&self, parts: Parts) -> bool {
        self.growths(parts).is_some_and(|growths| growths.iter().any(|growth| 0 < *growth))
    }

    /// From part to part; `None` where it shrinks, or there is less.
    fn growths(&self, parts: Parts) -> Option<[u32; PARTS - 1]> {
        let skip = self.buckets.len().checked_sub(PARTS * parts.0)?;
        let floor = |part: usize| {
            let from = skip + part * parts.0;
            self.buckets.range(from..from + parts.0).min().copied()
        };
        let mut growths = [0; PARTS - 1];
        for (part, growth) in growths.iter_mut().enumerate() {
            *growth = floor(part + 1)?.checked_sub(floor(part)?)?;
        }
        Some(growths)
    }

    /// In how many seconds a number that is `now` reaches `limit` if it goes on growing so.
    pub(super) fn seconds_left(&self, parts: Parts, now: u64, limit: u64) -> Option<f64> {
        Some(limit.saturating_sub(now) as f64 / self.slope(parts)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings each `every` seconds.
    fn climb(every: u64, seconds: u64, value: impl Fn(u64) -> u64) -> Climb {
        let mut climb = Climb::default();
        for second in (0..=seconds).step_by(usize::try_from(every).expect("small")) {
            climb.push(Monotonic((1_000 + second) * 1_000_000_000), value(second));
        }
        climb
    }

    #[test]
    fn only_what_grows_in_each_part_grows_steadily() {
        #[track_caller]
        fn check(seconds: u64, value: impl Fn(u64) -> u64, expected: Option<f64>) {
            let slope = climb(1, seconds, value).slope(FIVE_MINUTES);
            assert_eq!(expected, slope, "{seconds}");
        }
        check(284, |second| 2 * second, None);
        check(300, |second| 2 * second, Some(2.0));
        check(3_000, |second| 100 + 2 * second + if second % 3 == 0 { 50 } else { 0 }, Some(2.0));
        // a plateau, a burst, a warm-up, a saw
        check(600, |second| second.min(400), None);
        check(600, |second| if second < 500 { 10 } else { 1_000 }, None);
        check(450, |second| 1_000 - 1_000_000 / (1_000 + 20 * second), None);
        check(600, |second| second % 100, None);
        check(600, |second| 1_000 - second, None);
    }

    #[test]
    fn readings_may_be_seldom_but_not_too_seldom() {
        let slope = climb(30, 600, |second| 3 * second).slope(FIVE_MINUTES);
        assert!(slope.is_some_and(|slope| (2.7..3.3).contains(&slope)), "{slope:?}");
        assert_eq!(None, climb(140, 6_000, |second| second).slope(FIVE_MINUTES));
        let left = climb(1, 2_400, |second| second).seconds_left(FORTY_MINUTES, 2_400, 3_000);
        assert_eq!(Some(600.0), left);
    }

    #[test]
    fn the_lowest_is_of_the_whole_time_that_is_asked_for() {
        let climb = climb(1, 125, |second| if second < 5 { 1 } else { 1_000 - second });
        assert_eq!(Some(875), climb.lowest(Nanos(105_000_000_000)));
        assert_eq!(Some(1), climb.lowest(Nanos(120_000_000_000)));
        assert_eq!(None, climb.lowest(Nanos(135_000_000_000)));
        assert_eq!(None, Climb::default().lowest(Nanos(0)));
    }
}
