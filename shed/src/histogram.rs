//! How often a value was how large, by powers of two, counted without a lock.
//!
//! Bounds of durations are powers of two of a second, so that what is counted is a native histogram
//! of Prometheus, of schema 0, as it is.

use std::{
    iter::Sum,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How often a value was how large, at one moment.
///
/// A value is a [`Duration`], or a number of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram<T> {
    /// Upper bounds, the least first, and how many values were no more than that, and more than
    /// the one before. They are powers of two, of a second where they are durations, down to a
    /// nanosecond; of one kind they are always the same.
    pub buckets: Vec<(T, u64)>,
    /// How many values were more than all bounds.
    pub above: u64,
    /// All values together.
    pub sum: T,
}

impl<T> Histogram<T> {
    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, n)| n).sum::<u64>() + self.above
    }
}

/// 1 to 2^(N-1).
pub(crate) const fn numbers<const N: usize>() -> [u64; N] {
    let mut bounds = [1; N];
    let mut place = 1;
    while place < N {
        bounds[place] = 2 * bounds[place - 1];
        place += 1;
    }
    bounds
}

/// 2^`first` seconds and so on, each twice the one before, in nanoseconds. A whole number of them
/// is above a bound when it is above that without its fraction.
pub(crate) const fn nanos<const N: usize>(first: i32) -> [u64; N] {
    const SECOND: u64 = 1_000_000_000;
    let (mut bounds, mut place, mut power) = ([0; N], 0, first);
    while place < N {
        let by = power.unsigned_abs();
        bounds[place] = if power < 0 { SECOND >> by } else { SECOND << by };
        place += 1;
        power += 1;
    }
    bounds
}

/// `duration` in nanoseconds; 584 years at most.
pub(crate) fn in_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is counted into.
#[derive(Debug)]
pub(crate) struct Cells<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Cells<N> {
    pub(crate) fn new(bounds: &'static [u64; N]) -> Self {
        let counts = [const { AtomicU64::new(0) }; N];
        Self { bounds, counts, above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts `value`. For one thread at a time: nothing is locked.
    pub(crate) fn put(&self, value: u64) {
        for (cell, n) in [(self.cell(value), 1), (&self.sum, value)] {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Counts `value`, which is `amount` of the sum's unit. For any thread.
    pub(crate) fn add(&self, value: u64, amount: u64) {
        self.cell(value).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(amount, Ordering::Relaxed);
    }

    fn cell(&self, value: u64) -> &AtomicU64 {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(place).unwrap_or(&self.above)
    }
}

/// What `cells`, which have the same bounds, counted together: bounds are made by `bound`, sums by
/// `sum`.
pub(crate) fn read<'a, T: Sum, const N: usize>(
    bounds: &[u64; N],
    cells: impl Iterator<Item = &'a Cells<N>> + Clone,
    bound: fn(u64) -> T,
    sum: fn(u64) -> T,
) -> Histogram<T> {
    let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    let count = |place: usize| cells.clone().map(|it| load(&it.counts[place])).sum();
    Histogram {
        buckets: (0..N).map(|place| (bound(bounds[place]), count(place))).collect(),
        above: cells.clone().map(|it| load(&it.above)).sum(),
        sum: cells.map(|it| sum(load(&it.sum))).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: [u64; 4] = nanos(-10);
    const UP_TO_8: [u64; 4] = numbers();

    #[test]
    fn bounds_are_powers_of_two() {
        assert_eq!(UP_TO_8, [1, 2, 4, 8]);
        // 2^-10 s is 976,562.5 ns
        assert_eq!(MILLIS, [976_562, 1_953_125, 3_906_250, 7_812_500]);
        let around_a_second: [u64; 3] = nanos(-1);
        assert_eq!(around_a_second, [500_000_000, 1_000_000_000, 2_000_000_000]);
    }

    fn counted(cells: &[&Cells<4>]) -> (Vec<u64>, u64, u64) {
        let identity: fn(u64) -> u64 = |it| it;
        let got = read(&UP_TO_8, cells.iter().copied(), identity, identity);
        assert_eq!(got.buckets.iter().map(|(bound, _)| *bound).collect::<Vec<_>>(), UP_TO_8);
        assert_eq!(got.count(), got.buckets.iter().map(|(_, n)| n).sum::<u64>() + got.above);
        (got.buckets.iter().map(|(_, n)| *n).collect(), got.above, got.sum)
    }

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let (alone, among_others) = (Cells::new(&UP_TO_8), Cells::new(&UP_TO_8));
        for value in [0, 1, 2, 3, 4, 5, 8, 9, 1_000] {
            alone.put(value);
            among_others.add(value, 10 * value);
        }
        assert_eq!(counted(&[&alone]), (vec![2, 1, 2, 2], 2, 1_032));
        assert_eq!(counted(&[&among_others]), (vec![2, 1, 2, 2], 2, 10_320));
        assert_eq!(counted(&[&alone, &among_others]), (vec![4, 2, 4, 4], 4, 11_352));
        assert_eq!(counted(&[]), (vec![0; 4], 0, 0));
    }

    #[test]
    fn a_nanosecond_more_than_a_bound_is_in_the_next_bucket() {
        let cells = Cells::new(&MILLIS);
        for value in [976_562, 976_563, 1_953_125, 1_953_126, 7_812_501] {
            cells.put(value);
        }
        let nanos: fn(u64) -> Duration = Duration::from_nanos;
        let got = read(&MILLIS, [&cells].into_iter(), nanos, nanos);
        assert_eq!(got.buckets.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 2, 1, 0]);
        assert_eq!((got.above, got.count()), (1, 5));
        assert_eq!(got.sum, Duration::from_nanos(13_671_877));
    }
}
