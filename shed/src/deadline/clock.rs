//! Time as deadlines count it: a standstill of the process is left out of it, but for its begin.
//!
//! One rule: since the last turn of the wheel, half a second counts at most. It holds for the next
//! turn and for all that happens before that, so that both are at the same tick, whichever of them
//! comes first.

use std::time::{Duration, Instant};

use super::{plan::TICK, wheel::Tick};

/// Nobody looked for longer than this: the whole process stood still, and what its peers sent
/// meanwhile waits to be read.
const LONGEST_STEP: Duration = Duration::from_millis(500);

/// A clock that goes on by turns of the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// The last turn, or when the wheel was woken.
    turned: Instant,
    /// The time until then, as far as it counts.
    counted: Duration,
}

impl Clock {
    /// One whose time begins at `at`.
    pub(super) fn new(at: Instant) -> Self {
        Self { turned: at, counted: Duration::ZERO }
    }

    /// The tick at `at`.
    pub(super) fn tick(&self, at: Instant) -> Tick {
        tick(self.counted(at))
    }

    /// The wheel turns at `at`: the tick.
    pub(super) fn turn(&mut self, at: Instant) -> Tick {
        *self = Self { turned: at.max(self.turned), counted: self.counted(at) };
        tick(self.counted)
    }

    /// The wheel goes on at `at`, after it stood still for want of connections: so did the time.
    pub(super) fn wake(&mut self, at: Instant) {
        self.turned = at.max(self.turned);
    }

    fn counted(&self, at: Instant) -> Duration {
        self.counted + at.saturating_duration_since(self.turned).min(LONGEST_STEP)
    }
}

fn tick(counted: Duration) -> Tick {
    u64::try_from(counted.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns after so many ms since the beginning, and the ticks that they are at.
    #[track_caller]
    fn check(turns: &[(u64, Tick)]) {
        let begun = Instant::now();
        let mut clock = Clock::new(begun);
        for (millis, expected) in turns {
            let at = begun + Duration::from_millis(*millis);
            // asked before it turns, it is the same
            assert_eq!((clock.tick(at), clock.turn(at)), (*expected, *expected), "{turns:?}");
        }
    }

    #[test]
    fn half_a_second_counts_at_most_between_two_turns() {
        check(&[(0, 0), (99, 0), (100, 1), (199, 1), (270, 2), (300, 3)]);
        check(&[(500, 5), (1_000, 10), (1_499, 14), (1_999, 19)]);
        check(&[(100, 1), (601, 6), (6_000, 11), (6_100, 12), (3_600_000, 17)]);
        // what is no whole tick is not lost
        check(&[(150, 1), (6_150, 6), (6_200, 7)]);
    }

    #[test]
    fn it_never_goes_back() {
        check(&[(400, 4), (300, 4), (450, 4), (500, 5)]);
    }
}
