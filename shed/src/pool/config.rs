//! The bounds of a pool.

use std::{error::Error, fmt, time::Duration};

use tokio::sync::Semaphore;

/// The bounds of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// A connection that nobody used for so long is closed. Default: 90 s, at least 1 ms.
    pub idle_timeout: Duration,
    /// So many unused connections are kept for each backend. Default: 100; 0 keeps none.
    pub max_idle_per_host: usize,
    /// So many connections are open to all backends, used ones and unused ones. Default: 1,000, at
    /// least 1.
    pub max_total: usize,
    /// A backend has so long to accept. Default: 1 s, at least 1 ms.
    pub connect_timeout: Duration,
    /// After so long without a word the kernel asks whether the backend is still there, three times
    /// at most (TCP only). Default: 15 s, at least 1 s; `None`: it does not.
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

impl PoolConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let milli = Duration::from_millis(1);
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.max_total) {
            return Err(ConfigError::MaxTotal { got: self.max_total });
        }
        for (what, got, least) in [
            ("idle timeout", Some(self.idle_timeout), milli),
            ("connect timeout", Some(self.connect_timeout), milli),
            ("keepalive", self.keepalive, Duration::from_secs(1)),
        ] {
            if let Some(got) = got.filter(|&got| got < least) {
                return Err(ConfigError::Time { what, got, least });
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
    /// Too short.
    Time {
        /// Which one.
        what: &'static str,
        /// What was given.
        got: Duration,
        /// The least.
        least: Duration,
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
            Self::Time { what, got, least } => {
                write!(f, "pool: {what} is {got:?}, expected at least {least:?}")
            }
        }
    }
}

impl Error for ConfigError {}
