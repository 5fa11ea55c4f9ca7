//! What the last samples showed: a highest value and a rate over a span of time.

use std::collections::VecDeque;

use crate::time::{Monotonic, Nanos};

/// Values that arrive within this span are kept as one.
const GRAIN: Nanos = Nanos(1_000_000_000);

/// The highest value in a window that ends now, the running grain of a second included.
///
/// Memory: at most one entry per second of the window, and only while values fall.
#[derive(Clone, Debug, Default)]
pub(super) struct Highest {
    /// Falling values, each with the end of the grain in which it was seen last.
    falling: VecDeque<(Monotonic, u64)>,
}

impl Highest {
    /// Adds what was seen at `at` and returns the highest of the last `window`, or of up to a
    /// second more.
    pub(super) fn push(&mut self, at: Monotonic, value: u64, window: Nanos) -> u64 {
        while self.falling.back().is_some_and(|&(_, last)| last <= value) {
            self.falling.pop_back();
        }
        let grain_end = Monotonic((at.0 / GRAIN.0 + 1) * GRAIN.0);
        // a higher one of the same grain outlives it
        if self.falling.back().is_none_or(|&(end, _)| end < grain_end) {
            self.falling.push_back((grain_end, value));
        }
        while self.falling.front().is_some_and(|&(end, _)| window < at - end) {
            self.falling.pop_front();
        }
        self.falling.front().map_or(value, |&(_, highest)| highest)
    }
}

/// How fast `N` counters grow, over the last samples.
#[derive(Clone, Debug)]
pub(super) struct Rate<const N: usize> {
    seen: VecDeque<(Monotonic, [u64; N])>,
}

/// A rate looks back this far, or as far as there are samples.
const LOOK_BACK: Nanos = Nanos(10_000_000_000);

impl<const N: usize> Rate<N> {
    /// Adds the counters' values at `at` and returns their growth per second; `None` in the first
    /// sample.
    pub(super) fn push(&mut self, at: Monotonic, values: [u64; N]) -> Option<[f64; N]> {
        // the newest entry is replaced while it is within a grain of the one before it
        let n = self.seen.len();
        if 2 <= n && (self.seen[n - 1].0 - self.seen[n - 2].0) < GRAIN {
            self.seen.pop_back();
        }
        self.seen.push_back((at, values));
        while 2 < self.seen.len() && LOOK_BACK <= at - self.seen[1].0 {
            self.seen.pop_front();
        }
        let &(then, before) = self.seen.front()?;
        let seconds = (at - then).as_seconds();
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let grown = |i: usize| values[i].saturating_sub(before[i]) as f64;
        (0.0 < seconds).then(|| std::array::from_fn(|i| grown(i) / seconds))
    }

    /// Forgets what was seen, when a counter could not be had.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
    }
}

impl<const N: usize> Default for Rate<N> {
    fn default() -> Self {
        Self { seen: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[track_caller]
    fn check_highest(window_s: u64, steps: &[(u64, u64, u64)]) {
        let mut highest = Highest::default();
        for &(ms, value, expected) in steps {
            let at = Monotonic(SECOND + ms * 1_000_000);
            let got = highest.push(at, value, Nanos(window_s * SECOND));
            assert_eq!(expected, got, "at {ms} ms");
        }
    }

    #[test]
    fn a_peak_is_kept_for_the_window_and_not_longer() {
        check_highest(3, &[(0, 1, 1), (1000, 9, 9), (2000, 2, 9), (5000, 3, 9), (5001, 0, 3)]);
        check_highest(60, &[(500, 7, 7), (60_500, 0, 7), (61_001, 0, 0)]);
    }

    #[test]
    fn many_samples_within_a_second_cost_no_more_than_a_few_entries() {
        let mut highest = Highest::default();
        for i in 0..10_000_u64 {
            highest.push(Monotonic(SECOND + i * 1_000_000), 100_000 - i, Nanos(60 * SECOND));
        }
        assert!(highest.falling.len() < 64, "{}", highest.falling.len());
    }

    #[test]
    fn a_rate_is_growth_by_time() {
        let mut rate = Rate::default();
        assert_eq!(None, rate.push(Monotonic(SECOND), [100]));
        assert_eq!(Some([50.0]), rate.push(Monotonic(2 * SECOND), [150]));
        assert_eq!(Some([25.0]), rate.push(Monotonic(3 * SECOND), [150]));
        for s in 4..=20 {
            rate.push(Monotonic(s * SECOND), [150]);
        }
        assert_eq!(Some([0.0]), rate.push(Monotonic(21 * SECOND), [150]));
    }

    proptest! {
        #[test]
        fn the_highest_is_never_below_what_a_full_memory_would_say(
            steps in prop::collection::vec((1_u64..900, 0_u64..50), 1..200),
        ) {
            let window = Nanos(5 * SECOND);
            let mut highest = Highest::default();
            let (mut now, mut all) = (SECOND, Vec::new());
            for (ms, value) in steps {
                now += ms * 1_000_000;
                all.push((now, value));
                let got = highest.push(Monotonic(now), value, window);
                let within = |span: u64| {
                    all.iter().filter(|(at, _)| now - at <= span).map(|(_, v)| *v).max()
                };
                prop_assert!(within(window.0).expect("value itself") <= got);
                // and forgotten at most a grain late
                prop_assert!(got <= within(window.0 + SECOND).expect("value itself"));
            }
        }
    }
}
