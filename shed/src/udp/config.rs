//! The bounds of a group.

use std::{error::Error, fmt, io, net::SocketAddr};

use crate::{
    diag,
    owner::{self, Owner},
};

/// The bounds of a group of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// Sockets at the address: one for each task that reads. Default: 1; 1 to 1,024.
    pub sockets: usize,
    /// Datagrams of each socket that may be held at once. Default: 256; 1 to 65,536.
    pub buffers: usize,
    /// The longest datagram in bytes, either way; longer ones are dropped. Default: 1,232, which
    /// fits into any IPv6 link unfragmented; 1 to 65,507.
    pub max_datagram: usize,
    /// What one source may send. Default: `None`, as much as it likes.
    pub rate: Option<SourceRate>,
    /// Whether it joins sockets of others, of the same user, that share the address already
    /// (SO_REUSEPORT), each of which gets a part of all datagrams. Default: false: that is an
    /// error.
    pub join_others: bool,
}

/// What one source may send: an IPv4 address, or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRate {
    /// Datagrams a second. 1 to 1,000,000.
    pub per_second: u32,
    /// Datagrams at once. 1 to 1,000,000.
    pub burst: u32,
    /// Sources that are known at once, at 16 bytes each, in sets of 4. A source has a place as long
    /// as it could not send a whole burst; one that finds its set full of such others is admitted,
    /// since nobody is refused for what others do. 4 to 16,777,216.
    pub sources: usize,
}

impl SourceRate {
    /// `per_second`, as many at once, for 16,384 sources.
    #[must_use]
    pub const fn per_second(per_second: u32) -> Self {
        Self { per_second, burst: per_second, sources: 16_384 }
    }
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { sockets: 1, buffers: 256, max_datagram: 1_232, rate: None, join_others: false }
    }
}

impl UdpConfig {
    pub(super) fn check(&self) -> Result<(), UdpError> {
        let check = |what, got, least, most| {
            if (least..=most).contains(&got) {
                return Ok(());
            }
            Err(UdpError::Range { what, got, least, most })
        };
        check("sockets", self.sockets, 1, 1_024)?;
        check("buffers", self.buffers, 1, 65_536)?;
        check("max_datagram", self.max_datagram, 1, 65_507)?;
        if let Some(rate) = self.rate {
            let number = |n| usize::try_from(n).unwrap_or(usize::MAX);
            check("rate per second", number(rate.per_second), 1, 1_000_000)?;
            check("burst", number(rate.burst), 1, 1_000_000)?;
            check("sources", rate.sources, 4, 1 << 24)?;
        }
        Ok(())
    }
}

/// Why there is no group.
#[derive(Debug)]
#[non_exhaustive]
pub enum UdpError {
    /// A number is out of its range.
    Range {
        /// Which one.
        what: &'static str,
        /// What was given.
        got: usize,
        /// The least.
        least: usize,
        /// The most.
        most: usize,
    },
    /// It was not called from within a tokio runtime.
    NoRuntime,
    /// Somebody else has the address.
    InUse {
        /// The address.
        address: SocketAddr,
        /// Who that is, where it can be seen.
        owner: Option<Owner>,
        /// The answer.
        source: io::Error,
    },
    /// The kernel refused a socket.
    Bind {
        /// Where.
        address: SocketAddr,
        /// The answer.
        source: io::Error,
    },
}

impl UdpError {
    pub(super) fn at(address: SocketAddr, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::InUse { address, owner: owner::of(address, diag::bound), source }
        } else {
            Self::Bind { address, source }
        }
    }
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { what, got, least, most } => {
                write!(f, "udp: {what} is {got}, expected {least} to {most}")
            }
            Self::NoRuntime => {
                f.write_str("udp: there is no tokio runtime, expected one to be entered")
            }
            Self::InUse { address, owner: Some(owner), .. } => {
                write!(f, "udp {address}: the address is in use, by {owner}")
            }
            Self::InUse { address, owner: None, .. } => {
                write!(f, "udp {address}: the address is in use, by a socket that is not seen")
            }
            Self::Bind { address, .. } => write!(f, "udp {address}: no socket"),
        }
    }
}

impl Error for UdpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Range { .. } | Self::NoRuntime => None,
            Self::InUse { source, .. } | Self::Bind { source, .. } => Some(source),
        }
    }
}
