//! When a number that grows will reach its limit.

use std::collections::VecDeque;

use crate::{
    input::{Absent, Known},
    time::{Monotonic, Nanos},
};

/// Readings that are kept.
const KEPT: usize = 64;
/// Readings that a line is drawn through at least.
const NEEDED: usize = 5;

/// A number over time.
#[derive(Clone, Debug, Default)]
pub(super) struct Trend(VecDeque<(Monotonic, u64)>);

impl Trend {
    /// Takes in a reading.
    pub(super) fn push(&mut self, at: Monotonic, value: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((at, value));
    }

    /// In which time it reaches `limit`, by the straight line nearest to the readings (least squares).
    ///
    /// # Errors
    /// `TooEarly` while there are too few, or they do not grow.
    pub(super) fn reaches(&self, limit: u64) -> Known<Nanos> {
        let (Some(&(first, _)), Some(&(last, newest))) = (self.0.front(), self.0.back()) else {
            return Err(Absent::TooEarly);
        };
        if self.0.len() < NEEDED || limit == u64::MAX {
            return Err(Absent::TooEarly);
        }
        if limit <= newest {
            return Ok(Nanos(0));
        }
        let n = self.0.len() as f64;
        let points = self.0.iter().map(|&(at, value)| ((at - first).as_seconds(), value as f64));
        let (mut xs, mut ys, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0);
        for (x, y) in points {
            xs += x;
            ys += y;
            xx += x * x;
            xy += x * y;
        }
        let slope = (n * xy - xs * ys) / (n * xx - xs * xs);
        if !(slope.is_finite() && 0.0 < slope) {
            return Err(Absent::TooEarly);
        }
        let line = (ys - slope * xs) / n + slope * (last - first).as_seconds();
        let left = (limit as f64 - line).max(0.0) / slope;
        Nanos::from_seconds(left).ok_or(Absent::TooEarly)
    }
}
