//! Gradient2: a limit from what requests take at present and what they take usually.
//!
//! Pure, in whole numbers: nanoseconds, thousandths of connections.

use std::time::Duration;

/// What was seen since the limit was set last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Samples, and the sum of their nanoseconds.
    pub(super) n: u64,
    pub(super) sum: u64,
    /// Connections that count towards the limit.
    pub(super) in_use: usize,
    pub(super) lasted: Duration,
}

/// Fewer samples say nothing.
const LEAST_SAMPLES: u64 = 50;
/// After so many windows without any, nobody gives samples.
const MISSING: u32 = 10;
/// Windows of the usual time.
const USUAL: i128 = 600;
/// The first windows are averaged plainly.
pub(super) const WARM_UP: u64 = 10;
/// So many thousandths of the usual time are fine.
const TOLERANCE: u64 = 1_500;
/// Least gradient, in thousandths.
const STEEPEST: u64 = 500;
/// The share of a window's result, in thousandths.
const SMOOTHING: u64 = 200;
/// Change in thousandths a second.
const FALL: u64 = 100;
const RISE: u64 = 20;

/// The state of a limit.
#[derive(Debug)]
pub(super) struct Gradient {
    /// Thousandths of connections; and the soft limit of the last window.
    limit: u64,
    ceiling: u64,
    /// Nanoseconds, of so many windows.
    usual: u64,
    windows: u64,
    missed: u32,
    gradient: u64,
}

impl Gradient {
    pub(super) fn new(soft: usize) -> Self {
        let limit = soft as u64 * 1_000;
        Self { limit, ceiling: limit, usual: 0, windows: 0, missed: 0, gradient: 1_000 }
    }

    pub(super) fn last(&self) -> u64 {
        self.gradient
    }

    pub(super) fn usual(&self) -> Option<Duration> {
        (self.windows != 0).then(|| Duration::from_nanos(self.usual))
    }

    /// The limit after one more window, between `floor` and `soft`.
    pub(super) fn next(&mut self, seen: &Window, floor: Option<usize>, soft: usize) -> usize {
        let ceiling = soft as u64 * 1_000;
        let floor = floor.unwrap_or_else(|| (soft / 10).max(64)) as u64 * 1_000;
        if self.limit == self.ceiling {
            self.limit = ceiling; // what was not lowered follows a soft limit that is set
        }
        self.ceiling = ceiling;
        let before = self.limit;
        self.missed = if seen.n == 0 { self.missed.saturating_add(1) } else { 0 };
        if MISSING <= self.missed {
            self.limit = ceiling;
            self.gradient = 1_000;
        } else if LEAST_SAMPLES <= seen.n {
            let present = (seen.sum / seen.n).max(1);
            self.learn(present);
            self.gradient = (TOLERANCE.saturating_mul(self.usual) / present).clamp(STEEPEST, 1_000);
            // one that is not used says nothing about how high it may be
            if self.limit < seen.in_use as u64 * 2_000 {
                self.limit = bounded(before, self.wanted(), seen.lasted);
            }
        }
        self.limit = self.limit.clamp(floor.min(ceiling), ceiling);
        usize::try_from(self.limit / 1_000).expect("at most `soft`")
    }

    /// Moves the usual time towards `present`.
    fn learn(&mut self, present: u64) {
        self.windows = self.windows.saturating_add(1);
        let weight = if self.windows <= WARM_UP { i128::from(self.windows) } else { USUAL / 2 };
        let moved = (i128::from(present) - i128::from(self.usual)) / weight;
        let usual = i128::from(self.usual) + moved;
        self.usual = u64::try_from(usual).expect("between two numbers of 64 bits");
        // what is much too high falls faster than it would by averaging
        if present.saturating_mul(2) < self.usual {
            self.usual -= self.usual / 20;
        }
    }

    /// The limit as the last window would have it: the gradient of it, and some to try.
    fn wanted(&self) -> u64 {
        let room = (self.limit / 1_000).isqrt() * 1_000;
        let result = self.limit * self.gradient / 1_000 + room;
        (self.limit * (1_000 - SMOOTHING) + result * SMOOTHING) / 1_000
    }
}

/// `wanted`, as far from `before` as the time allows. A pause counts as 5 s at most.
fn bounded(before: u64, wanted: u64, lasted: Duration) -> u64 {
    let millis = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX).min(5_000);
    let step = |thousandths| before * thousandths * millis / 1_000_000;
    wanted.clamp(before - step(FALL), before + step(RISE))
}
