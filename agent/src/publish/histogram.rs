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
const QUARTERS: i32 = 2;

/// The schema of those that have one bucket to each power of two.
const OCTAVES: i32 = 0;

/// A classic histogram has no more bounds than this, beside the infinite one.
const MOST_BOUNDS: usize = 13;

/// A native histogram has no more of a gap than this between two buckets of one span: each empty
/// bucket costs one byte and a span six.
const LONGEST_GAP: usize = 2;

/// How often a value was how large, where each bound is twice the one before.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Octaves {
    /// The first bound is 2^this.
    pub(super) first: i32,
    /// How many are at most each bound and more than the one before, and how many are more than the
    /// last one.
    pub(super) counts: Vec<u64>,
    /// All values together.
    pub(super) sum: f64,
}

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

/// The sparse buckets of a native histogram. A bucket's number is k, and its upper bound
/// 2^(k/2^schema).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Native {
    pub(super) schema: i32,
    /// Everything up to it is in the zero bucket.
    pub(super) zero_threshold: f64,
    /// How many were.
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

    /// With the bounds that the octaves have or, where these are too many, the powers of four among
    /// them.
    pub(super) fn of_octaves(octaves: &Octaves) -> Self {
        let counts = &octaves.counts;
        let n_bounds = counts.len().saturating_sub(1);
        let has_room = n_bounds <= MOST_BOUNDS;
        let (mut buckets, mut rest) = (Vec::with_capacity(MOST_BOUNDS + 1), 0);
        for (power, n) in (octaves.first..).zip(&counts[..n_bounds]) {
            rest += n;
            if has_room || power % 2 == 0 {
                buckets.push((f64::from(power).exp2(), rest));
                rest = 0;
            }
        }
        buckets.push((f64::INFINITY, rest + counts.last().unwrap_or(&0)));
        Self { count: counts.iter().sum(), sum: octaves.sum, buckets }
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
        Self::sparse(QUARTERS, LOWEST, upper_bound(0), histogram.buckets())
    }

    /// All buckets of the octaves, in the same way.
    pub(super) fn of_octaves(octaves: &Octaves) -> Self {
        let zero_threshold = f64::from(octaves.first).exp2();
        Self::sparse(OCTAVES, octaves.first, zero_threshold, &octaves.counts)
    }

    /// The first of `buckets`, which has this number, is the zero bucket.
    fn sparse(schema: i32, first: i32, zero_threshold: f64, buckets: &[u64]) -> Self {
        let (zero_count, buckets) = buckets.split_first().unwrap_or((&0, &[]));
        let (spans, deltas) = (Vec::new(), Vec::new());
        let mut native = Self { schema, zero_threshold, zero_count: *zero_count, spans, deltas };
        let (mut last, mut gap) = (0, 0);
        for (number, &n) in (first + 1..).zip(buckets) {
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
        let got = Native::new(&histogram(filled));
        assert_eq!((got.schema, got.zero_threshold), (2, 2_f64.powi(-20)));
        let got = (got.zero_count, got.spans.as_slice(), got.deltas.as_slice());
        assert_eq!(got, (zero_count, spans, deltas), "{filled:?}");
    }

    #[test]
    fn octaves_are_native_buckets_as_they_are() {
        let octaves = Octaves { first: -3, counts: vec![7, 0, 5, 2, 0, 0, 0, 0, 1], sum: 3.5 };
        let native = Native::of_octaves(&octaves);
        assert_eq!((native.schema, native.zero_threshold, native.zero_count), (0, 0.125, 7));
        // (2^-2, 2^-1], (2^-1, 1], and more than 2^4
        assert_eq!(native.spans, [(-1, 2), (4, 1)]);
        assert_eq!(native.deltas, [5, -3, -1]);
    }

    #[test]
    fn octaves_keep_all_their_bounds_where_there_is_room_and_else_powers_of_four() {
        let octaves = Octaves { first: 0, counts: vec![1, 2, 4, 8], sum: 9.0 };
        let classic = Classic::of_octaves(&octaves);
        assert_eq!(classic.buckets, [(1.0, 1), (2.0, 2), (4.0, 4), (f64::INFINITY, 8)]);
        assert_eq!((classic.count, classic.sum), (15, 9.0));
        for (first, n_bounds) in [(-10, 23), (-20, 25), (-21, 26), (-10, 14)] {
            let counts: Vec<u64> = (0..=n_bounds).map(|place| 1 << place).collect();
            let classic = Classic::of_octaves(&Octaves { first, counts, sum: 0.0 });
            assert!(classic.buckets.len() <= 14, "{classic:?}");
            let mut below = 0;
            for (bound, n) in classic.buckets {
                below += n;
                let n_within = (first..).zip(0..n_bounds);
                let n_within = n_within.filter(|&(power, _)| f64::from(power).exp2() <= bound);
                let expected: u64 = n_within.map(|(_, place)| 1 << place).sum();
                let above = if bound.is_infinite() { 1 << n_bounds } else { 0 };
                assert_eq!(below, expected + above, "up to {bound} from 2^{first}");
            }
            assert_eq!(below, classic.count);
        }
    }

    #[test]
    fn octaves_of_nothing_are_empty() {
        let none = Octaves { first: 0, counts: vec![], sum: 0.0 };
        assert_eq!(Classic::of_octaves(&none).buckets, [(f64::INFINITY, 0)]);
        assert_eq!(
            (Native::of_octaves(&none).zero_count, Classic::of_octaves(&none).count),
            (0, 0)
        );
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
