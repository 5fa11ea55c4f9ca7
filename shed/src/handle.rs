//! What watches and steers a listener from elsewhere.

use std::{error::Error, fmt, io, sync::Arc};

use crate::{
    limits::{Bounds, LimitError, Limits},
    shared::Shared,
    stats::Stats,
    sys,
};

/// A listener's counters and limits, for any task or thread.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Limits that were not put in force.
#[derive(Debug)]
#[non_exhaustive]
pub enum SetError {
    /// They cannot hold.
    Limits(LimitError),
    /// RLIMIT_NOFILE cannot be read.
    Nofile(io::Error),
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limits(err) => err.fmt(f),
            Self::Nofile(_) => f.write_str("RLIMIT_NOFILE cannot be read"),
        }
    }
}

impl Error for SetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Limits(_) => None,
            Self::Nofile(err) => Some(err),
        }
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The listener's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.counters.snapshot();
        self.shared.policy.count(&mut stats);
        stats
    }

    /// The limits that were given last.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.limits()
    }

    /// The soft and the hard limit in force.
    #[must_use]
    pub fn bounds(&self) -> (usize, usize) {
        (self.shared.gate.soft_limit(), self.shared.gate.hard_limit())
    }

    /// Puts other limits in force, at once. Connections that are open above them stay open; the next
    /// ones are shed until enough of them have ended.
    ///
    /// # Errors
    /// They cannot hold; the ones before stay in force.
    pub fn set_limits(&self, limits: Limits) -> Result<Bounds, SetError> {
        let nofile = sys::nofile().map_err(SetError::Nofile)?;
        let bounds = Bounds::new(limits, nofile).map_err(SetError::Limits)?;
        self.shared.set_limits(limits, &bounds);
        Ok(bounds)
    }

    /// Accepts nothing more: [`accept`](crate::ShedListener::accept) ends with
    /// [`AcceptError::Closed`](crate::AcceptError::Closed). What is open stays open.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Ends when the listener can accept nothing more, for an error of its own.
    pub async fn fatal(&self) -> io::Error {
        self.shared.failed().await
    }
}
