//! A histogram's buckets as they are published: the few of a classic one, the sparse ones of a
//! native one. Pure.

use backlogd_abi::histogram::LOWEST;

use crate::{
    histogram::{Histogram, upper_bound},
    model::snapshot::Durations,
};

/// Bounds of the time in the accept queue, as powers of 2 s: 15 µs to 64 s.
pub(super) const WAIT: &[i32] = &[-16, -14, -12, -10, -8, -6, -4, -2, 0, 2, 4, 6];

/// Bounds of a connection's life, as powers of 2 s: 1 ms to 4,096 s.
pub(super) const DURATION: &[i32] = &[-10, -8, -6, -4, -2, 0, 2, 4, 6, 8, 10, 12];

/// The schema of native histograms whose buckets are the kernel's: four to each power of two.
pub(super) const SCHEMA: i32 = 2;

/// A native histogram has no more of a gap than this between two buckets of one span: each empty
/// bucket costs one byte and a span six.
const LONGEST_GAP: usize = 2;

/// A histogram with a fixed set of bounds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Classic {
    /// How many.
    pub(super) count: u64,
    /// Their sum in seconds.
    pub(super) sum: f64,
    /// Upper bound and count of each, not cumulative; the last is infinite.
    pub(super) buckets: Vec<(f64, u64)>,
}

/// The sparse buckets of a native histogram. A bucket's number is k, and its upper bound 2^(k/4) s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Native {
    /// How many were at most [`zero_threshold`].
    pub(super) zero_count: u64,
    /// Runs of buckets: how far after the last one (after number 0 for the first), and how many.
    pub(super) spans: Vec<(i32, u32)>,
    /// The count of each bucket of the runs, less that of the one before.
    pub(super) deltas: Vec<i64>,
}

impl Classic {
    /// With the bounds `powers`, each of which is one of the kernel's, so that counts are exact.
    pub(super) fn new(histogram: &Histogram, powers: &[i32]) -> Self {
        let mut buckets = Vec::with_capacity(powers.len() + 1);
        let mut rest = histogram.buckets().as_slice();
        let mut taken = 0;
        for &power in powers {
            let end = usize::try_from(4 * power - LOWEST).map_or(0, |index| index + 1);
            let (below, above) = rest.split_at(end - taken);
            buckets.push((f64::from(power).exp2(), below.iter().sum()));
            (rest, taken) = (above, end);
        }
        buckets.push((f64::INFINITY, rest.iter().sum()));
        Self { count: histogram.count(), sum: histogram.sum().as_seconds(), buckets }
    }

    /// With the bounds that the durations have.
    pub(super) fn of_durations(durations: &Durations) -> Self {
        let bounds = Durations::BOUNDS.iter().map(|bound| bound.as_seconds());
        let bounds = bounds.chain([f64::INFINITY]);
        Self {
            count: durations.buckets.iter().sum(),
            sum: durations.sum.as_seconds(),
            buckets: bounds.zip(durations.buckets).collect(),
        }
    }
}

impl Native {
    /// All buckets of the kernel, the empty ones left out. What is longer than all bounds is in
    /// the next bucket above them.
    pub(super) fn new(histogram: &Histogram) -> Self {
        let [zero_count, buckets @ ..] = histogram.buckets();
        let mut native = Self { zero_count: *zero_count, spans: Vec::new(), deltas: Vec::new() };
        let (mut last, mut gap) = (0, 0);
        for (number, &n) in (LOWEST + 1..).zip(buckets) {
            if n == 0 {
                gap += 1;
                continue;
            }
            match native.spans.last_mut() {
                Some((_, length)) if gap <= LONGEST_GAP => {
                    for _ in 0..gap {
                        native.deltas.push(difference(0, last));
                        last = 0;
                        *length += 1;
                    }
                    *length += 1;
                }
                Some(_) => native.spans.push((i32::try_from(gap).unwrap_or(i32::MAX), 1)),
                None => native.spans.push((number, 1)),
            }
            native.deltas.push(difference(n, last));
            (last, gap) = (n, 0);
        }
        native
    }
}

/// Everything up to it is in the zero bucket.
pub(super) fn zero_threshold() -> f64 {
    upper_bound(0)
}

fn difference(n: u64, before: u64) -> i64 {
    // no host counts 2^63 of anything
    n.cast_signed().wrapping_sub(before.cast_signed())
}

#[cfg(test)]
mod tests {
    use backlogd_abi::histogram::BUCKETS;
    use proptest::prelude::*;

    use super::*;
    use crate::time::Nanos;

    fn histogram(filled: &[(usize, u64)]) -> Histogram {
        let mut buckets = [0; BUCKETS];
        filled.iter().for_each(|&(at, n)| buckets[at] = n);
        Histogram::new(buckets, Nanos(5_000_000))
    }

    #[track_caller]
    fn check(filled: &[(usize, u64)], zero_count: u64, spans: &[(i32, u32)], deltas: &[i64]) {
        let expected = Native { zero_count, spans: spans.into(), deltas: deltas.into() };
        assert_eq!(Native::new(&histogram(filled)), expected, "{filled:?}");
    }

    #[test]
    fn native_buckets_are_numbered_by_quarters_of_a_power_of_two() {
        check(&[], 0, &[], &[]);
        check(&[(0, 7)], 7, &[], &[]);
        // (2^-20, 2^-19.75] s
        check(&[(1, 3)], 0, &[(-79, 1)], &[3]);
        // (2^-0.25, 1] s
        check(&[(80, 3)], 0, &[(0, 1)], &[3]);
        // more than 4,096 s: the bucket after number 48
        check(&[(BUCKETS - 1, 2)], 0, &[(49, 1)], &[2]);
        check(&[(40, 5), (41, 2), (42, 9)], 0, &[(-40, 3)], &[5, -3, 7]);
    }

    #[test]
    fn short_gaps_are_bridged_and_long_ones_begin_a_span() {
        check(&[(40, 5), (43, 2)], 0, &[(-40, 4)], &[5, -5, 0, 2]);
        check(&[(40, 5), (44, 2)], 0, &[(-40, 1), (3, 1)], &[5, -3]);
        check(&[(0, 1), (1, 1), (129, 1)], 1, &[(-79, 1), (127, 1)], &[1, 0]);
    }

    #[track_caller]
    fn check_classic(filled: &[(usize, u64)], powers: &[i32], expected: &[(f64, u64)]) {
        let classic = Classic::new(&histogram(filled), powers);
        let counted: Vec<_> = classic.buckets.into_iter().filter(|(_, n)| 0 < *n).collect();
        assert_eq!(counted, expected, "{filled:?}");
        assert_eq!(classic.sum, 0.005);
        assert_eq!(classic.count, filled.iter().map(|(_, n)| n).sum::<u64>());
    }

    #[test]
    fn a_classic_bound_takes_what_is_at_most_so_long() {
        check_classic(
            &[(0, 1), (16, 2), (17, 4)],
            WAIT,
            &[(2_f64.powi(-16), 3), (2_f64.powi(-14), 4)],
        );
        check_classic(&[(80, 1), (81, 2)], WAIT, &[(1.0, 1), (4.0, 2)]);
        check_classic(&[(104, 1), (105, 2)], WAIT, &[(64.0, 1), (f64::INFINITY, 2)]);
        check_classic(&[(40, 1)], DURATION, &[(2_f64.powi(-10), 1)]);
        check_classic(&[(128, 1), (129, 2)], DURATION, &[(4096.0, 1), (f64::INFINITY, 2)]);
    }

    /// Number and count of each bucket.
    fn read(native: &Native) -> Vec<(i32, u64)> {
        let (mut number, mut count, mut deltas) = (0, 0_i64, native.deltas.iter());
        let mut buckets = Vec::new();
        for &(offset, length) in &native.spans {
            number += offset;
            for _ in 0..length {
                count += deltas.next().expect("a delta for each bucket");
                buckets.push((number, u64::try_from(count).expect("no bucket is below 0")));
                number += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    proptest! {
        #[test]
        fn both_forms_count_the_same(filled in prop::collection::vec((0..BUCKETS, 0..1_u64 << 40), 0..60)) {
            let histogram = histogram(&filled);
            let native = Native::new(&histogram);
            let buckets = read(&native);
            for (at, &n) in histogram.buckets().iter().enumerate().skip(1) {
                let number = LOWEST + i32::try_from(at).expect("small");
                let found = buckets.iter().find(|(it, _)| *it == number).map_or(0, |(_, n)| *n);
                prop_assert_eq!(found, n);
            }
            for powers in [WAIT, DURATION] {
                let classic = Classic::new(&histogram, powers);
                prop_assert!(classic.buckets.len() <= 14);
                let mut cumulative = 0;
                for (&power, (bound, n)) in powers.iter().zip(classic.buckets) {
                    cumulative += n;
                    let below = buckets.iter().filter(|(number, _)| *number <= 4 * power);
                    let expected = native.zero_count + below.map(|(_, n)| n).sum::<u64>();
                    prop_assert_eq!(cumulative, expected, "at most {} s", bound);
                }
            }
        }
    }
}
