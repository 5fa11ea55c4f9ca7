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
    /// The queue is empty, or something was accepted since the last sample.
    #[default]
    Running,
    /// The queue is not empty and nothing was accepted since `since`.
    Waiting {
        /// When the wait was seen first.
        since: Monotonic,
    },
    /// `Waiting` for at least the configured time.
    Stalled {
        /// When the wait was seen first.
        since: Monotonic,
    },
}

impl AcceptLoop {
    /// When the wait that lasts was seen first.
    #[must_use]
    pub(super) fn waiting_since(self) -> Option<Monotonic> {
        match self {
            Self::Running => None,
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
        if seen.length == 0 || 0 < seen.accepted {
            return Self::Running;
        }
        let long_enough = Nanos(stalled_after.0 - stalled_after.0 / EARLY);
        match self {
            Self::Running => Self::Waiting { since: seen.at },
            Self::Waiting { since } if since + long_enough <= seen.at => Self::Stalled { since },
            Self::Waiting { .. } | Self::Stalled { .. } => self,
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
        check(&[(0, 1, 0), (5, 1, 1), (10, 1, 0), (19, 1, 0)], false);
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
