//! The bounds of a pool.

use std::{error::Error, fmt, time::Duration};

use tokio::sync::Semaphore;

/// The bounds of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// A connection that nobody used for so long is closed. Default: 90 s; 1 ms to 7 days.
    pub idle_timeout: Duration,
    /// So many unused connections are kept for each backend. Default: 100; 0 keeps none.
    pub max_idle_per_host: usize,
    /// So many connections are open to all backends, used ones and unused ones. Default: 1,000, at
    /// least 1.
    pub max_total: usize,
    /// A backend has so long to accept. Default: 1 s; 1 ms to 7 days.
    pub connect_timeout: Duration,
    /// After so long without a word the kernel asks whether the backend is still there, three times
    /// at most (TCP only). Default: 15 s; 1 s to 32,767 s, the most that the kernel takes; `None`:
    /// it does not.
    pub keepalive: Option<Duration>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(90),
            max_idle_per_host: 100,
            max_total: 1_000,
            connect_timeout: Duration::from_secs(1),
            keepalive: Some(Duration::from_secs(15)),
        }
    }
}

/// Of times that are added to a moment.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// `MAX_TCP_KEEPIDLE`, include/net/tcp.h.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

impl PoolConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let milli = Duration::from_millis(1);
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.max_total) {
            return Err(ConfigError::MaxTotal { got: self.max_total });
        }
        for (what, got, least, most) in [
            ("idle_timeout", Some(self.idle_timeout), milli, LONGEST),
            ("connect_timeout", Some(self.connect_timeout), milli, LONGEST),
            ("keepalive", self.keepalive, Duration::from_secs(1), LONGEST_KEEPALIVE),
        ] {
            if let Some(got) = got.filter(|got| !(least..=most).contains(got)) {
                return Err(ConfigError::Time { what, got, least, most });
            }
        }
        Ok(())
    }
}

/// A configuration that cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// No connection may be open, or more than can be counted.
    MaxTotal {
        /// What was given.
        got: usize,
    },
    /// Too short or too long.
    Time {
        /// Which one.
        what: &'static str,
        /// What was given.
        got: Duration,
        /// The least.
        least: Duration,
        /// The most.
        most: Duration,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxTotal { got } => write!(
                f,
                "pool: max_total is {got}, expected 1 to {} connections",
                Semaphore::MAX_PERMITS
            ),
            Self::Time { what, got, least, most } => {
                write!(f, "pool: {what} is {got:?}, expected {least:?} to {most:?}")
            }
        }
    }
}

impl Error for ConfigError {}
