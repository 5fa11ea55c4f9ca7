//! Why a pool has no connection to give.

use std::{error::Error, fmt, io, time::Duration};

use super::Backend;

/// Why there is no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum GetError {
    /// All were in use until the deadline ([`Reason::BackendWait`](crate::Reason::BackendWait)).
    Wait {
        /// How many may be open.
        max_total: usize,
    },
    /// The backend did not answer in time ([`Reason::BackendDown`](crate::Reason::BackendDown)).
    ConnectTimeout {
        /// Which one.
        backend: Backend,
        /// After so long.
        after: Duration,
    },
    /// The backend refused, or cannot be reached.
    Connect {
        /// Which one.
        backend: Backend,
        /// The answer.
        source: io::Error,
    },
}

impl fmt::Display for GetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait { max_total } => {
                write!(f, "all of {max_total} backend connections were in use until the deadline")
            }
            Self::ConnectTimeout { backend, after } => {
                write!(f, "backend {backend}: no connection after {after:?}")
            }
            Self::Connect { backend, .. } => write!(f, "backend {backend}: connect failed"),
        }
    }
}

impl Error for GetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect { source, .. } => Some(source),
            Self::Wait { .. } | Self::ConnectTimeout { .. } => None,
        }
    }
}
