//! How long something took, in a few numbers, as JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;

/// Durations in seconds. Each is at most 9.1 % off; what is shorter than 0.95 µs counts as that,
/// what is longer than 4,096 s as that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// Their sum, exact.
    pub sum: f64,
    /// Half of them were at most so long; null: there are none.
    pub p50: Option<f64>,
    /// Nine of ten were at most so long.
    pub p90: Option<f64>,
    /// 99 of 100 were at most so long.
    pub p99: Option<f64>,
    /// Upper bound of the highest bucket that is not empty: none was longer. Null: there are none,
    /// or one was longer than 4,096 s.
    pub max_bucket: Option<f64>,
}

impl Durations {
    pub(super) fn new(histogram: &Histogram) -> Self {
        Self {
            count: histogram.count(),
            sum: histogram.sum().as_seconds(),
            p50: histogram.quantile(0.5),
            p90: histogram.quantile(0.9),
            p99: histogram.quantile(0.99),
            // JSON has no number for an infinite one
            max_bucket: histogram.longest().filter(|bound| bound.is_finite()),
        }
    }
}
