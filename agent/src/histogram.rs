//! Durations by size: what the eBPF programs count, as 64-bit totals.

use backlogd_abi::histogram::{BUCKETS, LOWEST};

use crate::time::Nanos;

/// How many durations fell into each bucket of [`backlogd_abi::histogram`], and their sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
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

    /// How many in each bucket, not cumulative.
    #[must_use]
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
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
    use backlogd_abi::histogram::{HIGHEST, bucket};

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
