//! Why there is no listener: what cannot hold, or what the kernel refused.

use std::{error::Error, fmt, io, net::SocketAddr};

use crate::{
    adaptive::AdaptiveError,
    deadline::DeadlineError,
    limits::{LimitError, MAX_LIMIT},
    owner::Owner,
    page::PageError,
    plan::MAX_MEMBERS,
    range::OutOfRange,
};

/// Why there is no listener.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// The address is none.
    Address {
        /// What was given.
        got: String,
    },
    /// The limits cannot hold.
    Limits(LimitError),
    /// A number cannot hold.
    OutOfRange(OutOfRange),
    /// The deadlines cannot hold.
    Deadlines(DeadlineError),
    /// Requests may have 0 bytes.
    MaxRequestBytes,
    /// The adaptive limit cannot hold.
    Adaptive(AdaptiveError),
    /// The socket that was given is not what it should be.
    Adopted {
        /// What it is.
        got: &'static str,
    },
    /// Somebody else listens on the address.
    InUse {
        /// The address.
        address: SocketAddr,
        /// Who that is, where it can be seen.
        owner: Option<Owner>,
        /// The answer.
        source: io::Error,
    },
    /// A group cannot have so many members.
    Members {
        /// What was given.
        got: usize,
    },
    /// A group opens its sockets itself, and was given one.
    GroupAdopted,
    /// A member of the group is about to leave.
    Leaving,
    /// The group was closed, or ends.
    Closed,
    /// The channel of an accept thread cannot hold so many connections.
    Capacity {
        /// What was given.
        got: usize,
    },
    /// Another listener of the generation has this name, by which both would count as one.
    Named {
        /// The name.
        name: String,
    },
    /// A name with a NUL cannot be told to the next generation.
    NameWithNul {
        /// The name.
        name: String,
    },
    /// What the generation before had by this name listens elsewhere.
    Inherited {
        /// The listener's name.
        name: String,
        /// Where it listens.
        got: SocketAddr,
        /// Where it should.
        expected: SocketAddr,
    },
    /// The limits cannot be shared with other generations.
    Page(PageError),
    /// It was not called from within a tokio runtime.
    NoRuntime,
    /// The kernel refused.
    Call {
        /// What was asked.
        call: &'static str,
        /// For which address.
        address: Option<SocketAddr>,
        /// The answer.
        source: io::Error,
    },
}

impl BuildError {
    pub(crate) fn call(call: &'static str, source: io::Error) -> Self {
        Self::Call { call, address: None, source }
    }

    pub(crate) fn at(address: SocketAddr, call: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            let owner = Owner::of_listener(address);
            Self::InUse { address, owner, source }
        } else {
            Self::Call { call, address: Some(address), source }
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { got } => {
                write!(f, "address is {got:?}, expected IP:PORT, such as [::]:8080")
            }
            Self::Limits(err) => err.fmt(f),
            Self::OutOfRange(err) => err.fmt(f),
            Self::Deadlines(err) => err.fmt(f),
            Self::MaxRequestBytes => f.write_str("max_request_bytes is 0, expected at least 1"),
            Self::Adaptive(err) => err.fmt(f),
            Self::Adopted { got } => write!(f, "got {got}, expected a listening TCP socket"),
            Self::InUse { address, owner: Some(owner), .. } => {
                write!(f, "listener {address}: the address is in use, by {owner}")
            }
            Self::InUse { address, owner: None, .. } => {
                write!(f, "listener {address}: the address is in use, by a socket that is not seen")
            }
            Self::Members { got } => {
                write!(f, "members of the group are {got}, expected 1 to {MAX_MEMBERS}")
            }
            Self::GroupAdopted => f.write_str(
                "got a socket, expected an address, since a group opens its sockets itself",
            ),
            Self::Closed => f.write_str("the group is closed, or ends, expected one that accepts"),
            Self::Leaving => {
                f.write_str("a member of the group is leaving, expected none that does")
            }
            Self::Capacity { got } => {
                write!(f, "capacity is {got}, expected 1 to {MAX_LIMIT} connections")
            }
            Self::Named { name } => {
                write!(f, "the generation has a listener {name:?} already, expected another name")
            }
            Self::NameWithNul { name } => write!(f, "name is {name:?}, expected one without a NUL"),
            Self::Inherited { name, got, expected } => {
                write!(f, "the inherited socket {name:?} listens on {got}, expected {expected}")
            }
            Self::Page(err) => err.fmt(f),
            Self::NoRuntime => f.write_str("there is no tokio runtime, expected one to be entered"),
            Self::Call { call, address: Some(address), source } => {
                write!(f, "listener {address}: {call} failed")?;
                // of a port below ip_unprivileged_port_start (`__inet_bind`, net/ipv4/af_inet.c)
                if *call == "bind" && source.kind() == io::ErrorKind::PermissionDenied {
                    f.write_str(", which takes CAP_NET_BIND_SERVICE for this port")?;
                }
                Ok(())
            }
            Self::Call { call, address: None, .. } => write!(f, "{call} failed"),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Call { source, .. } | Self::InUse { source, .. } => Some(source),
            Self::Page(err) => err.source(),
            Self::Address { .. }
            | Self::Limits(_)
            | Self::OutOfRange(_)
            | Self::Deadlines(_)
            | Self::MaxRequestBytes
            | Self::Adaptive(_)
            | Self::Adopted { .. }
            | Self::Members { .. }
            | Self::GroupAdopted
            | Self::Leaving
            | Self::Closed
            | Self::Capacity { .. }
            | Self::Named { .. }
            | Self::NameWithNul { .. }
            | Self::Inherited { .. }
            | Self::NoRuntime => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_not_everybody_may_have_is_told() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let check = |call, errno, expected| {
            let err = BuildError::at(address, call, io::Error::from_raw_os_error(errno));
            assert_eq!(err.to_string(), expected);
        };
        let privileged = "listener 127.0.0.1:80: bind failed, which takes CAP_NET_BIND_SERVICE for \
                          this port";
        check("bind", libc::EACCES, privileged);
        check("bind", libc::EADDRNOTAVAIL, "listener 127.0.0.1:80: bind failed");
        check("listen", libc::EACCES, "listener 127.0.0.1:80: listen failed");
    }
}
