//! Whether anybody still accepts on a socket.

use crate::time::{Monotonic, Nanos};

/// The part of the time by which a sample may come too soon: by milliseconds one always may.
const EARLY: u64 = 20;

/// What one sample showed of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// When.
    pub(super) at: Monotonic,
    /// Connections in the accept queue.
    pub(super) length: u32,
    /// Connections accepted since the sample before.
    pub(super) accepted: u64,
}

/// Whether anybody still accepts on a listening socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AcceptLoop {
    /// The queue is empty.
    #[default]
    Running,
    /// Something was accepted since the sample before, and the queue is not empty.
    Serving {
        /// When that was seen.
        at: Monotonic,
    },
    /// The queue is not empty and nothing was accepted since `since`.
    Waiting {
        /// The first sample that had connections in the queue and was after the last accept.
        since: Monotonic,
    },
    /// `Waiting` for at least the configured time.
    Stalled {
        /// As above.
        since: Monotonic,
    },
}

impl AcceptLoop {
    /// Since when nobody has accepted what waits.
    #[must_use]
    pub(super) fn waiting_since(self) -> Option<Monotonic> {
        match self {
            Self::Running | Self::Serving { .. } => None,
            Self::Waiting { since } | Self::Stalled { since } => Some(since),
        }
    }

    /// Whether that is too long ago.
    #[must_use]
    pub(super) fn is_stalled(self) -> bool {
        matches!(self, Self::Stalled { .. })
    }

    /// The state after one more sample. One that comes a little before its turn is not waited for again.
    #[must_use]
    pub(super) fn next(self, seen: Seen, stalled_after: Nanos) -> Self {
        if seen.length == 0 {
            return Self::Running;
        }
        if 0 < seen.accepted {
            return Self::Serving { at: seen.at };
        }
        let long_enough = Nanos(stalled_after.0 - stalled_after.0 / EARLY);
        let since = match self {
            Self::Running => seen.at,
            Self::Serving { at } => at,
            Self::Waiting { since } => since,
            Self::Stalled { .. } => return self,
        };
        if since + long_enough <= seen.at {
            Self::Stalled { since }
        } else {
            Self::Waiting { since }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(samples: &[(u64, u32, u64)], stalled: bool) {
        let end = samples.iter().fold(AcceptLoop::Running, |state, &(at, length, accepted)| {
            state.next(Seen { at: Monotonic(at), length, accepted }, Nanos(10))
        });
        assert_eq!(stalled, matches!(end, AcceptLoop::Stalled { .. }), "{samples:?}");
    }

    #[test]
    fn stalled_is_a_queue_that_nobody_serves_for_the_whole_time() {
        check(&[(0, 1, 0), (5, 1, 0), (10, 3, 0)], true);
        check(&[(0, 1, 0), (5, 1, 0), (9, 3, 0)], false);
        // what was left in the queue by the last accept waits since then
        check(&[(0, 1, 0), (5, 1, 1), (10, 1, 0), (14, 1, 0)], false);
        check(&[(0, 1, 0), (5, 1, 1), (10, 1, 0), (15, 1, 0)], true);
        check(&[(0, 1, 0), (5, 1, 1), (15, 1, 0)], true);
        check(&[(0, 1, 0), (5, 0, 1), (10, 1, 0), (19, 1, 0)], false);
        check(&[(0, 1, 0), (5, 0, 0), (10, 1, 0), (19, 1, 0)], false);
        check(&[(0, 1, 0), (20, 1, 0), (30, 1, 2)], false);
    }

    #[test]
    fn a_sample_that_comes_a_little_too_soon_is_soon_enough() {
        let stalled = |at| {
            let after = Nanos(4_000_000_000);
            let state = AcceptLoop::Waiting { since: Monotonic(0) };
            state.next(Seen { at: Monotonic(at), length: 1, accepted: 0 }, after).is_stalled()
        };
        assert!(stalled(3_999_000_000));
        assert!(!stalled(3_700_000_000));
    }
}
