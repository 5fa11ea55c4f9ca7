//! Why a connection is shed, and when.

use std::fmt;

/// The limit, or the state, for which a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// As many connections are open as the soft limit has.
    Soft,
    /// The hard limit was reached between the gate and accept(2), by another generation of the
    /// server, say.
    Hard,
    /// Its address has as many connections open as one may have, or opened them faster than one
    /// may.
    PerIp,
    /// The table of addresses is full, and is to refuse then.
    PerIpFull,
    /// More connections came within a while than the rate allows.
    Rate,
    /// It waited longer in the accept queue than its client is believed to, or its client left: by
    /// a reset, or by an end without anything to read before it.
    Stale,
    /// The accept queue has had a wait too long for a while (CoDel).
    Codel,
    /// The listener is about to end.
    Draining,
    /// The process, or the host, has no descriptor for it.
    Emfile,
    /// Whoever serves takes no more for the moment.
    Handoff,
    /// A [`Decide`](crate::Decide) of the user.
    Policy,
    /// Its PROXY protocol header is missing, late or wrong, or as many are awaited as may.
    ProxyHeader,
    /// The TLS handshake failed or took too long.
    Tls,
    /// As many TLS handshakes go on as may.
    TlsBusy,
    /// No connection to the backend was free in time.
    BackendWait,
    /// The backend cannot be reached.
    BackendDown,
}

impl Reason {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 16] = [
        Self::Soft,
        Self::Hard,
        Self::PerIp,
        Self::PerIpFull,
        Self::Rate,
        Self::Stale,
        Self::Codel,
        Self::Draining,
        Self::Emfile,
        Self::Handoff,
        Self::Policy,
        Self::ProxyHeader,
        Self::Tls,
        Self::TlsBusy,
        Self::BackendWait,
        Self::BackendDown,
    ];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::PerIp => "per_ip",
            Self::PerIpFull => "per_ip_full",
            Self::Rate => "rate",
            Self::Stale => "stale",
            Self::Codel => "codel",
            Self::Draining => "draining",
            Self::Emfile => "emfile",
            Self::Handoff => "handoff",
            Self::Policy => "policy",
            Self::ProxyHeader => "proxy_header",
            Self::Tls => "tls",
            Self::TlsBusy => "tls_busy",
            Self::BackendWait => "backend_wait",
            Self::BackendDown => "backend_down",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a connection is shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Right after accept(2): it was never admitted.
    Accept,
    /// Admitted, and shed before it was served: it is among the closed ones, too.
    Handshake,
}

impl Stage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Accept, Self::Handshake];

    /// The value of the label `stage`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Handshake => "handshake",
        }
    }
}

/// Why an admitted connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The peer closed, or reset it.
    Peer,
    /// Whoever serves it was done.
    Handler,
    /// A deadline passed.
    Deadline,
    /// It was shed after it was admitted.
    Shed,
    /// The listener drained, and the time for that was over.
    Drain,
    /// Whoever serves it panicked.
    Panic,
    /// Its backend ended it.
    Backend,
    /// A read or a write failed.
    Error,
}

impl Cause {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Peer,
        Self::Handler,
        Self::Deadline,
        Self::Shed,
        Self::Drain,
        Self::Panic,
        Self::Backend,
        Self::Error,
    ];

    /// The value of the label `cause`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Handler => "handler",
            Self::Deadline => "deadline",
            Self::Shed => "shed",
            Self::Drain => "drain",
            Self::Panic => "panic",
            Self::Backend => "backend",
            Self::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_each_is_its_number() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason}");
        }
        for (place, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, place, "{}", cause.as_str());
        }
    }
}
