//! Token buckets: so many at once, and so many a second in the long run.
//!
//! A bucket is one number, the time at which it will be full again (the generic cell rate
//! algorithm): taking moves it later by a token's share of a second, and is refused where it would
//! be further away than all tokens take. Time is passed in, in [ticks].

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::range::OutOfRange;

/// So many connections a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Connections per second in the long run. 1 to 1,000,000.
    pub per_second: u32,
    /// Connections that may come at once after a while without any. 1 to 1,000,000.
    pub burst: u32,
}

impl Rate {
    /// `n` connections a second, and as many at once.
    #[must_use]
    pub const fn per_second(n: u32) -> Self {
        Self { per_second: n, burst: n }
    }

    /// The same with `n` at once.
    #[must_use]
    pub const fn burst(self, n: u32) -> Self {
        Self { burst: n, ..self }
    }
}

/// Ticks of a nanosecond, so that a million tokens a second are exact to 0.01 %; 64 bits of them
/// are 36 years.
const TICKS: u64 = 16;
const SECOND: u64 = TICKS * 1_000_000_000;

/// `since` some beginning in ticks.
pub(crate) fn ticks(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).saturating_mul(TICKS)
}

/// What buckets of one rate have in common. The bucket is a number that begins with 0: full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Ticks until a token is back.
    token: u64,
    /// Ticks until all but one are back.
    rest: u64,
}

impl Pace {
    /// # Errors
    /// The rate is out of its ranges; `what` names it.
    pub(crate) fn new(rate: Rate, what: [&'static str; 2]) -> Result<Self, OutOfRange> {
        let [rate_is, burst_is] = what;
        OutOfRange::check(rate_is, rate.per_second.into(), 1, 1_000_000)?;
        OutOfRange::check(burst_is, rate.burst.into(), 1, 1_000_000)?;
        let token = SECOND / u64::from(rate.per_second);
        Ok(Self { token, rest: token * u64::from(rate.burst - 1) })
    }

    /// The bucket after a token was taken; `None`: it has none.
    pub(crate) fn take(self, bucket: u64, now: u64) -> Option<u64> {
        let full_at = bucket.max(now);
        (full_at - now <= self.rest).then(|| full_at + self.token)
    }

    /// The bucket as it was before a token was taken.
    pub(crate) fn give_back(self, bucket: u64) -> u64 {
        bucket.saturating_sub(self.token)
    }
}

/// A bucket for any thread.
#[derive(Debug)]
pub(crate) struct Bucket {
    pace: Pace,
    full_at: AtomicU64,
}

impl Bucket {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, full_at: AtomicU64::new(0) }
    }

    pub(crate) fn take(&self, now: u64) -> bool {
        let take = |full_at| self.pace.take(full_at, now);
        self.full_at.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// For a token that was taken a moment ago and not used.
    pub(crate) fn give_back(&self) {
        self.full_at.update(Ordering::Relaxed, Ordering::Relaxed, |it| self.pace.give_back(it));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pace(per_second: u32, burst: u32) -> Pace {
        Pace::new(Rate { per_second, burst }, ["rate", "burst"]).expect("in range")
    }

    #[test]
    fn gives_the_burst_at_once_and_then_the_rate() {
        let bucket = Bucket::new(pace(10, 3));
        let mut taken = Vec::new();
        for ms in (0..1_000).step_by(10) {
            let now = ticks(Duration::from_millis(ms));
            while bucket.take(now) {
                taken.push(ms);
            }
        }
        assert_eq!(taken, [0, 0, 0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
        // and never saves more than the burst
        let late = ticks(Duration::from_secs(3_600));
        assert_eq!((0..10).filter(|_| bucket.take(late)).count(), 3);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let bucket = Bucket::new(pace(1, 2));
        let now = ticks(Duration::from_secs(1));
        assert!(bucket.take(now) && bucket.take(now) && !bucket.take(now));
        bucket.give_back();
        assert!(bucket.take(now) && !bucket.take(now));
    }

    #[test]
    fn refuses_rates_that_cannot_hold() {
        let check = |rate, expected: &str| {
            let err = Pace::new(rate, ["rate", "burst"]).expect_err("out of range");
            assert_eq!(err.to_string(), expected);
        };
        check(Rate::per_second(0), "rate is 0, expected 1 to 1000000");
        check(Rate::per_second(1_000_001), "rate is 1000001, expected 1 to 1000000");
        check(Rate::per_second(5).burst(0), "burst is 0, expected 1 to 1000000");
    }

    proptest! {
        #[test]
        fn is_a_bucket_that_fills_steadily(
            per_second in 1_u32..=1_000_000,
            burst in 1_u32..100,
            steps in prop::collection::vec((0_u64..SECOND, prop::bool::ANY), 1..200),
        ) {
            let pace = pace(per_second, burst);
            let size = pace.token * u64::from(burst);
            let (mut bucket, mut level, mut now) = (0, size, 0);
            for (wait, gives_back) in steps {
                let wait = wait % (2 * pace.token);
                now += wait;
                level = size.min(level + wait);
                let before = bucket;
                let taken = pace.take(bucket, now);
                prop_assert_eq!(taken.is_some(), pace.token <= level);
                if let Some(after) = taken {
                    bucket = if gives_back { pace.give_back(after) } else { after };
                    level -= if gives_back { 0 } else { pace.token };
                    prop_assert!(!gives_back || bucket == before.max(now));
                }
            }
        }
    }
}
