//! Sums of counters of things that come and go; pure.
//!
//! One that goes takes its counts with it, and one that comes brings some. So only steps in which none
//! came or went are counted, for all sums alike; and of these not the first and the last, since one sum can
//! be a step behind another.

use crate::{
    detect::history::{Growth, History},
    input::Known,
    time::{Monotonic, Nanos},
};

/// Sums of `N` counters over the same things.
#[derive(Clone, Debug)]
pub(super) struct Sums<const N: usize> {
    /// Who was there, and what the sums were.
    before: Option<(u64, [u64; N])>,
    /// Whether nobody came or went in the last step.
    was_still: bool,
    /// How far the sums moved in it, unless it was the first such step.
    step: [u64; N],
    totals: [u64; N],
    history: History<N>,
}

impl<const N: usize> Default for Sums<N> {
    fn default() -> Self {
        Self {
            before: None,
            was_still: false,
            step: [0; N],
            totals: [0; N],
            history: History::default(),
        }
    }
}

impl<const N: usize> Sums<N> {
    /// Takes in the sums at `at`, and `who` they are over, hashed; `None`: one of them is not known.
    pub(super) fn push(&mut self, at: Monotonic, now: Option<(u64, [u64; N])>) {
        let step = self.before.zip(now).and_then(|((who_before, before), (who, now))| {
            let is_still = who_before == who && before.iter().zip(&now).all(|(it, now)| it <= now);
            is_still.then(|| std::array::from_fn(|i| now[i] - before[i]))
        });
        if step.is_some() && self.was_still {
            for (total, step) in self.totals.iter_mut().zip(self.step) {
                *total += step;
            }
        }
        self.step = step.filter(|_| self.was_still).unwrap_or([0; N]);
        self.was_still = step.is_some();
        self.before = now;
        self.history.push(at, self.totals.map(Some));
    }

    /// How far they moved in the last `over`, or a little longer.
    ///
    /// # Errors
    /// `TooEarly` while there is no point as old as that.
    pub(super) fn growth(&self, over: Nanos) -> Known<Growth<N>> {
        self.history.growth(over)
    }

    /// The same, or since there is history where that is shorter.
    pub(super) fn growth_within(&self, over: Nanos) -> Growth<N> {
        self.history.growth_within(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(steps: &[Option<(u64, [u64; 2])>], expected: [u64; 2]) {
        let mut sums = Sums::default();
        for (at, &step) in (1..).zip(steps) {
            sums.push(Monotonic(at), step);
        }
        assert_eq!(expected, sums.growth_within(Nanos(100)).by, "{steps:?}");
    }

    #[test]
    fn who_comes_or_goes_changes_no_sum() {
        let grow = |who, n| Some((who, [n, n / 2]));
        check(&[grow(1, 10), grow(1, 20), grow(1, 30), grow(1, 40)], [10, 5]);
        check(&[grow(1, 10), grow(1, 20), grow(2, 90), grow(2, 92)], [0, 0]);
        check(&[grow(1, 10), grow(1, 20), None, grow(1, 90), grow(1, 94), grow(1, 94)], [0, 0]);
        let steps = [90, 92, 94, 50, 52, 54, 56].map(|n| grow(2, n));
        check(&steps, [2, 1]);
    }

    #[test]
    fn a_sum_may_be_a_step_behind() {
        check(
            &[(1, 5, 5), (1, 5, 5), (1, 9, 5), (2, 9, 9)].map(|(who, a, b)| Some((who, [a, b]))),
            [0, 0],
        );
        let steps = [(1, 5, 5), (2, 9, 5), (2, 9, 9), (2, 9, 9), (2, 9, 9)];
        check(&steps.map(|(who, a, b)| Some((who, [a, b]))), [0, 0]);
        let steps = [(1, 5, 5), (1, 5, 5), (1, 9, 5), (1, 9, 9), (1, 9, 9), (1, 9, 9)];
        check(&steps.map(|(who, a, b)| Some((who, [a, b]))), [4, 4]);
    }
}
