//! What a pool counts.

use std::collections::BTreeMap;

/// Why a connection was closed instead of kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evicted {
    /// Nobody used it for the idle timeout.
    Idle,
    /// Its backend closed it, or said something that nobody asked for.
    Unhealthy,
    /// It failed, or whoever used it did not say that it is reusable.
    Error,
    /// As many are kept as may be.
    Overflow,
}

impl Evicted {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Unhealthy, Self::Error, Self::Overflow];

    /// The value of the label `why`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Unhealthy => "unhealthy",
            Self::Error => "error",
            Self::Overflow => "overflow",
        }
    }
}

/// What a pool counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Gets that found a connection.
    pub hits: u64,
    /// Gets that opened one.
    pub dials: u64,
    /// Gets whose deadline, or the connect timeout, passed.
    pub timeouts: u64,
    /// Connections that were closed instead of kept.
    pub evictions: Vec<(Evicted, u64)>,
    /// Failures of connect(2), by errno.
    pub connect_errors: BTreeMap<i32, u64>,
    /// Connections that nobody uses at this moment.
    pub idle: usize,
    /// Connections that are used, or being opened.
    pub in_use: usize,
    /// Gets that wait for another one to end.
    pub waiters: u64,
}

impl PoolStats {
    /// Connections that were closed for `why`.
    #[must_use]
    pub fn evicted_for(&self, why: Evicted) -> u64 {
        self.evictions.iter().filter(|(it, _)| *it == why).map(|(_, n)| n).sum()
    }
}
