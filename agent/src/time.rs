//! Time: a clock that never goes back, and spans of it.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A span of time in nanoseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Nanos(pub u64);

impl Nanos {
    /// In seconds, for publishing.
    #[must_use]
    pub fn as_seconds(self) -> f64 {
        Duration::from_nanos(self.0).as_secs_f64()
    }

    /// From seconds; `None` for what is negative, no number, or beyond 584 years.
    #[must_use]
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        let nanos = Duration::try_from_secs_f64(seconds).ok()?.as_nanos();
        u64::try_from(nanos).ok().map(Self)
    }
}

impl From<Duration> for Nanos {
    /// Saturates after 584 years.
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Add for Nanos {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// An instant of `CLOCK_MONOTONIC`, in nanoseconds since boot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Monotonic(pub u64);

impl Sub for Monotonic {
    type Output = Nanos;

    /// Zero when `other` is later.
    fn sub(self, other: Self) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }
}

impl Add<Nanos> for Monotonic {
    type Output = Self;

    fn add(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// An instant of `CLOCK_REALTIME`, in nanoseconds since 1970.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixTime(pub u64);
