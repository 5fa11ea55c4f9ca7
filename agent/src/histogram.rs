//! Durations by size: what the eBPF programs count, as 64-bit totals.

use backlogd_abi::histogram::{BUCKETS, LOWEST, bucket};
use serde::{Deserialize, Serialize};

use crate::time::Nanos;

/// How many durations fell into each bucket of [`backlogd_abi::histogram`], and their sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    #[serde(with = "sparse")]
    buckets: [u64; BUCKETS],
    sum: Nanos,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: Nanos(0) }
    }
}

impl Histogram {
    /// Adds what `more` counted.
    pub fn add(&mut self, more: &Self) {
        for (bucket, n) in self.buckets.iter_mut().zip(more.buckets) {
            *bucket = bucket.saturating_add(n);
        }
        self.sum = self.sum + more.sum;
    }

    /// What this counted and `part`, which is a part of it, did not.
    #[must_use]
    pub fn less(&self, part: &Self) -> Self {
        let mut buckets = self.buckets;
        for (bucket, n) in buckets.iter_mut().zip(part.buckets) {
            *bucket = bucket.saturating_sub(n);
        }
        Self { buckets, sum: Nanos(self.sum.0.saturating_sub(part.sum.0)) }
    }

    /// From counts by bucket and their sum.
    #[must_use]
    pub fn new(buckets: [u64; BUCKETS], sum: Nanos) -> Self {
        Self { buckets, sum }
    }

    /// How many durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    #[must_use]
    pub fn sum(&self) -> Nanos {
        self.sum
    }

    /// The duration in seconds that a share `q` (0 to 1) of all do not exceed; `None` when there are
    /// none.
    ///
    /// The geometric middle of the bucket that holds it, so at most 9.1 % off. Of the first bucket
    /// it is the upper bound, 0.95 µs, and of the last one the lower, 4,096 s.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count() as f64;
        let mut seen = 0;
        let at = self.buckets.iter().position(|n| {
            seen += n;
            0 < seen && rank <= seen as f64
        })?;
        Some(match at {
            0 => upper_bound(0),
            at if at == BUCKETS - 1 => upper_bound(at - 1),
            at => (upper_bound(at - 1) * upper_bound(at)).sqrt(),
        })
    }

    /// The upper bound in seconds of the highest bucket that is not empty: nothing was longer.
    /// `None` when all are empty; infinite when that bucket is the last.
    #[must_use]
    pub fn longest(&self) -> Option<f64> {
        self.buckets.iter().rposition(|&n| 0 < n).map(upper_bound)
    }

    /// How many are in buckets above the one that holds `span`: all of them are longer, and of those
    /// up to 19 % longer some are missing.
    #[must_use]
    pub fn longer_than(&self, span: Nanos) -> u64 {
        self.buckets[(bucket(span.0) + 1).min(BUCKETS)..].iter().sum()
    }

    /// How many in each bucket, not cumulative.
    #[must_use]
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }
}

/// Buckets that are not empty, by index: most are.
mod sparse {
    use std::collections::BTreeMap;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::BUCKETS;

    pub(super) fn serialize<S: Serializer>(
        buckets: &[u64; BUCKETS],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(buckets.iter().enumerate().filter(|(_, n)| 0 < **n))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<[u64; BUCKETS], D::Error> {
        let mut buckets = [0; BUCKETS];
        for (index, n) in BTreeMap::<usize, u64>::deserialize(from)? {
            let expected = || format!("bucket {index}, expected one below {BUCKETS}");
            *buckets.get_mut(index).ok_or_else(|| D::Error::custom(expected()))? = n;
        }
        Ok(buckets)
    }
}

/// The upper bound of a bucket in seconds; of the last one infinity.
#[must_use]
pub fn upper_bound(bucket: usize) -> f64 {
    let last = BUCKETS - 1;
    match i32::try_from(bucket) {
        Ok(index) if bucket < last => f64::from(LOWEST + index).exp2().sqrt().sqrt(),
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use backlogd_abi::histogram::HIGHEST;

    use super::*;

    #[test]
    fn a_duration_lies_within_the_bounds_of_its_bucket() {
        let mut nanos = 1_u64;
        while nanos < 5_000_000_000_000 {
            let seconds = Nanos(nanos).as_seconds();
            let at = bucket(nanos);
            let lower = if at == 0 { 0.0 } else { upper_bound(at - 1) };
            let slack = 1e-6 * seconds;
            assert!(seconds <= upper_bound(at) + slack, "{nanos} in {at}");
            assert!(lower - slack <= seconds, "{nanos} in {at}");
            nanos += 1 + nanos / 97;
        }
        assert_eq!(0, bucket(0));
        assert_eq!(BUCKETS - 1, bucket(u64::MAX));
    }

    #[track_caller]
    fn check_quantiles(durations: &[u64], expected: Option<[f64; 3]>) {
        let mut buckets = [0; BUCKETS];
        durations.iter().for_each(|&nanos| buckets[bucket(nanos)] += 1);
        let histogram = Histogram::new(buckets, Nanos(0));
        let got = [0.0, 0.5, 1.0].map(|q| histogram.quantile(q));
        let near = |got: f64, expected: f64| (got / expected - 1.0).abs() < 0.091;
        match expected {
            None => assert_eq!(got, [None; 3]),
            Some(expected) => {
                for (got, expected) in got.into_iter().zip(expected) {
                    let near = got.is_some_and(|got| near(got, expected));
                    assert!(near, "{got:?} for {expected} of {durations:?}");
                }
            }
        }
    }

    #[test]
    fn a_quantile_is_near_the_duration_of_that_rank() {
        check_quantiles(&[], None);
        check_quantiles(&[250_000_000], Some([0.25; 3]));
        check_quantiles(&[1_500, 7_000_000, 3_600_000_000_000], Some([1.5e-6, 7e-3, 3600.0]));
        check_quantiles(&[2_000, 2_000, 90_000_000_000], Some([2e-6, 2e-6, 90.0]));
    }

    #[test]
    fn those_longer_than_a_span_are_counted() {
        let mut buckets = [0; BUCKETS];
        for ms in [1, 200, 400, 2_000] {
            buckets[bucket(ms * 1_000_000)] += 1;
        }
        let histogram = Histogram::new(buckets, Nanos(0));
        let longer = |ms: u64| histogram.longer_than(Nanos(ms * 1_000_000));
        assert_eq!([4, 3, 2, 1, 0], [0, 100, 250, 500, 3_000].map(longer));
        assert_eq!(0, histogram.longer_than(Nanos(u64::MAX)));
    }

    #[test]
    fn beyond_the_bounds_a_quantile_is_the_bound() {
        let mut buckets = [0; BUCKETS];
        (buckets[0], buckets[BUCKETS - 1]) = (1, 1);
        let histogram = Histogram::new(buckets, Nanos(0));
        assert_eq!(histogram.quantile(0.5), Some(2_f64.powi(-20)));
        assert_eq!(histogram.quantile(0.99), Some(4096.0));
        assert_eq!(histogram.longest(), Some(f64::INFINITY));
        assert_eq!(Histogram::default().longest(), None);
    }

    proptest::proptest! {
        #[test]
        fn every_quantile_is_within_9_1_percent_of_a_duration_that_was_counted(
            mut durations in proptest::collection::vec(1_000_u64..4_000_000_000_000, 1..50),
            q in 0.0..=1.0_f64,
        ) {
            let mut buckets = [0; BUCKETS];
            durations.iter().for_each(|&nanos| buckets[bucket(nanos)] += 1);
            durations.sort_unstable();
            let got = Histogram::new(buckets, Nanos(0)).quantile(q).expect("it is not empty");
            let rank = q * durations.len() as f64;
            let exact = (1..).zip(&durations).find(|&(n, _)| rank <= f64::from(n));
            let exact = Nanos(*exact.expect("q is at most 1").1).as_seconds();
            proptest::prop_assert!((got / exact).ln().abs() < 1.091_f64.ln(), "{got} for {exact}");
        }
    }

    #[test]
    fn the_middle_of_a_bucket_is_within_an_eighth_of_all_it_holds() {
        let (first, last) = (upper_bound(1), upper_bound(BUCKETS - 2));
        assert!(first < 1.2e-6 && 3600.0 < last, "{first} {last}");
        for at in 1..BUCKETS - 1 {
            let (lower, upper) = (upper_bound(at - 1), upper_bound(at));
            assert!((upper / lower).sqrt() < 1.125, "{lower} to {upper}");
        }
        assert_eq!(HIGHEST - LOWEST + 2, i32::try_from(BUCKETS).expect("small"));
    }
}
