//! The user's own word on who is admitted.

use std::{net::SocketAddr, time::Duration};

use crate::{
    close::OnShed,
    reason::{Cause, Reason},
};

/// A connection that was just accepted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Whose it is; behind a proxy, what its header says.
    pub peer: SocketAddr,
    /// Whether the soft limit, the rate and the limits by peer leave it out.
    pub is_exempt: bool,
    /// How long it waited in the accept queue, where that was asked.
    pub waited: Option<Duration>,
}

/// How much the listener has to do.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Load {
    /// Connections that are served, the candidate not among them.
    pub open: usize,
    /// The soft limit.
    pub soft: usize,
    /// The hard limit.
    pub hard: usize,
}

/// What becomes of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served.
    Admit,
    /// It is not. `None`: it gets what the listener has for [`Reason::Policy`]. Before a TLS
    /// handshake (`TlsListener`), bytes become a reset: nobody reads them there.
    Shed(Option<OnShed>),
}

/// An admitted connection that ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Closed {
    /// How long it was open.
    pub after: Duration,
    /// Why it ended.
    pub cause: Cause,
}

/// Decides about connections that no limit refuses.
pub trait Decide: Send + Sync + 'static {
    /// Called for each of them, in the accept loop: it must not block, and take a microsecond at
    /// most, or everybody waits. If it panics, the connection is shed as [`Reason::Policy`], it is
    /// not asked again, and the listener [fails](crate::AcceptError::Fatal).
    fn decide(&self, candidate: &Candidate<'_>, load: &Load) -> Verdict;

    /// Called when one that was admitted ended, by whoever drops it.
    fn closed(&self, _closed: &Closed) {}
}

/// Why a candidate is refused, and what it gets where that is not the listener's answer.
pub(crate) type Refusal = (Reason, Option<OnShed>);
