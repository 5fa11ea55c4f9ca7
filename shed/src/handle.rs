//! What watches and steers a listener from elsewhere.

use std::{
    error::Error,
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    accept::AcceptError,
    adaptive::AdaptiveStats,
    drain::{self, Drain, Drained, Stage},
    limits::{Bound, Bounds, LimitError, Limits},
    shared::Shared,
    stats::Stats,
    warning::Warning,
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

    pub(crate) fn shared(&self) -> &Arc<Shared> {
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
        let gate = &self.shared.gate;
        let adaptive_limit = self.shared.adaptive.as_ref().map(|_| gate.soft_in_force());
        let probes = self.shared.probe.accepted();
        let members = self.shared.life.spread();
        let counted = self.shared.counters.snapshot();
        let mut stats = Stats { adaptive_limit, probes, members, ..counted };
        self.shared.policy.count(&mut stats);
        stats
    }

    /// What the adaptive limit has come to, where there is one.
    #[must_use]
    pub fn adaptive(&self) -> Option<AdaptiveStats> {
        self.shared.adaptive.as_ref().map(|adaptive| adaptive.stats(&self.shared.gate))
    }

    /// Says how long a request took, on any connection of the listener, for an
    /// [adaptive](crate::adaptive) limit: where a server has the connections, and so their
    /// [permits](crate::Permit::sample).
    pub fn sample(&self, took: Duration) {
        if let Some(adaptive) = &self.shared.adaptive {
            adaptive.sample(took);
        }
    }

    /// The limits that were given last.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.claim.limits()
    }

    /// The soft and the hard limit in force: those that were given, or less where RLIMIT_NOFILE is
    /// too low for them. That is looked at each 10 s, and whenever a listener of the process comes,
    /// changes or goes.
    #[must_use]
    pub fn bounds(&self) -> (usize, usize) {
        (self.shared.gate.soft_limit(), self.shared.gate.hard_limit())
    }

    /// What the hard limit in force was taken from. [`Bound::Descriptors`]: it is lower than it was
    /// given, or than what follows from the soft limit, and so may be the soft limit.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.shared.claim.bounds().bound()
    }

    /// Puts other limits in force, at once. Connections that are open above them stay open; the
    /// next ones are shed until enough of them have ended, and their descriptors are not left
    /// to other listeners before.
    ///
    /// # Errors
    /// They cannot hold, beside what other listeners of the process claim; the ones before stay in
    /// force.
    pub fn set_limits(&self, limits: Limits) -> Result<Bounds, SetError> {
        self.shared.claim.set(limits)
    }

    /// What is set on this host to less than the listener needs, as it was found when it was built.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        self.shared.warnings.get().map_or(&[], Vec::as_slice)
    }

    /// Length and limit of the accept queue, as the kernel has them; at most limit + 1 wait there.
    /// Of a [`Group`](crate::Group), of all members together.
    ///
    /// # Errors
    /// TCP_INFO fails, or the listener is closed.
    pub fn accept_queue(&self) -> io::Result<(u32, u32)> {
        self.shared.life.queue()
    }

    /// Asks the kernel for another limit of the accept queue, by listen(2) on the live socket;
    /// `None`: the largest that the kernel gives, net.core.somaxconn. Gives what it granted. What
    /// is queued above stays queued. Each member of a [`Group`](crate::Group) is asked for it, and
    /// what is given is of all together.
    ///
    /// # Errors
    /// listen(2) or TCP_INFO fails, or the listener is closed.
    pub fn set_backlog(&self, backlog: impl Into<Option<u16>>) -> io::Result<u32> {
        let life = &self.shared.life;
        life.listen(backlog.into())?;
        Ok(life.queue()?.1)
    }

    /// Accepts nothing more: [`accept`](crate::ShedListener::accept) ends with
    /// [`AcceptError::Closed`](crate::AcceptError::Closed), and closes the socket, unless another
    /// process has it, too: clients are refused then, and who is queued is reset. Where nobody
    /// awaits `accept`, the socket is open until the listener is dropped; that of a
    /// [thread](crate::Builder::build_threaded) is closed by it. What is open stays open.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether more connections are welcome: it is open, and does not drain.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stage() == Stage::Serving
            && !self.shared.is_closed()
            && self.shared.failure().is_none()
    }

    /// How far its drain is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.shared.life.stage()
    }

    /// When its drain is over at the latest; `None`: there is none, or it is over.
    #[must_use]
    pub fn drain_ends(&self) -> Option<Instant> {
        self.shared.life.progress.borrow().ends
    }

    /// Ends the listener: first it is not [ready](Self::is_ready), then it accepts nobody new, and
    /// nobody who finished a handshake is lost by that; then connections have until the deadline.
    /// Ends when all of them ended, or with the deadline; those that are left are reset, and count
    /// as [`Cause::Drain`](crate::Cause::Drain); whose PROXY header is awaited by then, is shed for
    /// [`Reason::Draining`](crate::Reason::Draining). Called again, it ends everything at once.
    ///
    /// It has to be polled to its end, and [`accept`](crate::ShedListener::accept) has to be called
    /// until it ends with [`AcceptError::Closed`](crate::AcceptError::Closed).
    pub async fn drain(&self, drain: Drain) -> Drained {
        drain::run(&self.shared, &drain).await
    }

    /// Ends when the listener is about to close, in a drain.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        drain::told(&self.shared)
    }

    /// Whether any who is shed gets a text.
    #[cfg(feature = "tls")]
    pub(crate) fn answers_with_text(&self) -> bool {
        self.shared.answers.has_text()
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
