//! What watches and steers a listener from elsewhere.

use std::{error::Error, fmt, io, sync::Arc};

use crate::{
    limits::{Bounds, LimitError, Limits},
    listener::AcceptError,
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

    /// The listener's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// The limits that were given last.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.limits()
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

    /// Whether any who is shed gets a text.
    #[cfg(feature = "tls")]
    pub(crate) fn answers_with_text(&self) -> bool {
        self.shared.answers.has_text()
    }

    /// Whether it accepts: it was not closed, and did not fail for ever.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.shared.is_closed() && self.shared.failure().is_none()
    }

    /// Ends when the listener accepts nothing more, and says why. For servers that are told so only
    /// by a signal to shut down.
    pub async fn ended(&self) -> AcceptError {
        tokio::select! {
            biased;
            err = self.shared.failed() => AcceptError::Fatal(err),
            () = self.shared.closing() => AcceptError::Closed,
        }
    }

    /// Ends when the listener can accept nothing more, for an error of its own.
    pub async fn fatal(&self) -> io::Error {
        self.shared.failed().await
    }
}
