//! What a group counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Twice, the kernel had no buffer to send it.
    Enobufs,
    /// Its source sends faster than it may.
    Rate,
    /// It is longer than a datagram may be.
    Oversize,
    /// All buffers are held.
    Queue,
    /// The kernel refused to send it, for want of a route, say.
    Error,
}

impl Dropped {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 5] =
        [Self::Enobufs, Self::Rate, Self::Oversize, Self::Queue, Self::Error];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enobufs => "enobufs",
            Self::Rate => "rate",
            Self::Oversize => "oversize",
            Self::Queue => "queue",
            Self::Error => "error",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Counters {
    pub(super) fn dropped(&self, why: Dropped) {
        self.dropped[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> UdpStats {
        let dropped = |why| (why, self.dropped[why as usize].load(Ordering::Relaxed));
        UdpStats {
            dropped: Dropped::ALL.map(dropped).into(),
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
        }
    }
}

/// What a group counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpStats {
    /// Datagrams that were received, those that were dropped then included.
    pub received: u64,
    /// Datagrams that were handed to the kernel.
    pub sent: u64,
    /// Datagrams that were dropped.
    pub dropped: Vec<(Dropped, u64)>,
}

impl UdpStats {
    /// Datagrams that were dropped for `why`.
    #[must_use]
    pub fn dropped_for(&self, why: Dropped) -> u64 {
        self.dropped.iter().filter(|(it, _)| *it == why).map(|(_, n)| n).sum()
    }
}
