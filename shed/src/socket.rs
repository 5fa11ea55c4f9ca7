//! A socket that listens, or is to: bound, or taken over.

use std::{mem, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{build_error::BuildError, sys};

/// Where the listening socket comes from.
#[derive(Debug)]
pub(crate) enum Source {
    Address(String),
    Socket(Socket),
}

impl Source {
    /// Leaves an address that is none.
    pub(crate) fn take(&mut self) -> Self {
        mem::replace(self, Self::Address(String::new()))
    }

    /// What was taken over listens; an address is bound.
    pub(crate) fn open(self, backlog: Option<u16>, reuse: Reuse) -> Result<Socket, BuildError> {
        match self {
            Self::Address(address) => bind(parse(&address)?, reuse),
            Self::Socket(socket) => adopted(socket, backlog),
        }
    }

    pub(crate) fn address(&self) -> Result<SocketAddr, BuildError> {
        match self {
            Self::Address(address) => parse(address),
            Self::Socket(socket) => local_addr(socket),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Address(address) => address.clone(),
            Self::Socket(socket) => local_addr(socket).map(|it| it.to_string()).unwrap_or_default(),
        }
    }
}

pub(crate) fn parse(address: &str) -> Result<SocketAddr, BuildError> {
    address.parse().map_err(|_| BuildError::Address { got: address.to_owned() })
}

pub(crate) fn local_addr(socket: &Socket) -> Result<SocketAddr, BuildError> {
    socket
        .local_addr()
        .map_err(|source| BuildError::call("getsockname", source))?
        .as_socket()
        .ok_or(BuildError::Adopted { got: "a socket of another family than IPv4 and IPv6" })
}

/// Who else may listen on the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Nobody.
    No,
    /// Nobody before; others after.
    Begin,
    /// Others before and after.
    Join,
}

/// A socket with an address, on which nobody is queued so far.
pub(crate) fn bind(address: SocketAddr, reuse: Reuse) -> Result<Socket, BuildError> {
    let failed = |call| move |source| BuildError::at(address, call, source);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )
    .map_err(failed("socket"))?;
    // a server that comes back binds in spite of connections in TIME_WAIT
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    if address.is_ipv6() {
        socket.set_only_v6(false).map_err(failed("IPV6_V6ONLY"))?;
    }
    if reuse == Reuse::Join {
        socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    }
    socket.bind(&address.into()).map_err(failed("bind"))?;
    // only after bind(2): that refuses where somebody listens, be it with SO_REUSEPORT
    if reuse == Reuse::Begin {
        socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    }
    Ok(socket)
}

/// From here on, whoever comes is queued. On a socket that listens, it changes the limit of the
/// queue, and nothing else.
pub(crate) fn listen(socket: &Socket, backlog: Option<u16>) -> Result<(), BuildError> {
    let address = local_addr(socket)?;
    sys::listen(socket, backlog).map_err(|source| BuildError::at(address, "listen", source))
}

/// Where a socket that somebody else opened listens.
pub(crate) fn listens(socket: &Socket) -> Result<SocketAddr, BuildError> {
    let call = |name| move |source| BuildError::call(name, source);
    let kind = match socket.r#type() {
        Err(err) if err.raw_os_error() == Some(libc::ENOTSOCK) => {
            return Err(BuildError::Adopted { got: "a descriptor that is no socket" });
        }
        kind => kind.map_err(call("SO_TYPE"))?,
    };
    if kind != Type::STREAM {
        return Err(BuildError::Adopted { got: "a socket of another kind than TCP" });
    }
    if !socket.is_listener().map_err(call("SO_ACCEPTCONN"))? {
        return Err(BuildError::Adopted { got: "a TCP socket that does not listen" });
    }
    local_addr(socket)
}

/// A socket that somebody else opened; the limit of its queue stays as it is where no other is
/// asked for.
pub(crate) fn adopted(socket: Socket, backlog: Option<u16>) -> Result<Socket, BuildError> {
    let call = |name| move |source| BuildError::call(name, source);
    listens(&socket)?;
    socket.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
    socket.set_cloexec(true).map_err(call("FD_CLOEXEC"))?;
    // of somebody before us that was killed while it closed; where it fails, there is none, or it
    // is locked, to stay (SO_LOCK_FILTER, socket(7))
    drop(socket.detach_filter());
    if let Some(backlog) = backlog {
        socket.listen(backlog.into()).map_err(call("listen"))?;
    }
    Ok(socket)
}
