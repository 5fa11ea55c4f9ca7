//! A connection between accept and the runtime that serves it.

use std::{io, net::SocketAddr};

use socket2::Socket;
use tokio::net::TcpStream;

use crate::{conn::ShedStream, permit::Permit, reason::Cause, shared::Shared};

/// A connection with its permit, which no runtime knows so far.
#[derive(Debug)]
pub(crate) struct Admitted {
    // first, so that close(2) comes before the permit is given back
    socket: Socket,
    peer: SocketAddr,
    permit: Permit,
}

impl Admitted {
    pub(crate) fn new(socket: Socket, peer: SocketAddr, permit: Permit) -> Self {
        Self { socket, peer, permit }
    }

    /// Gives it to the runtime in which this is called.
    ///
    /// # Errors
    /// The runtime cannot watch it: it is closed and, like a failure of accept(2), counted.
    pub(crate) fn serve(self, shared: &Shared) -> io::Result<ShedStream> {
        let Self { socket, peer, mut permit } = self;
        match TcpStream::from_std(socket.into()) {
            Ok(stream) => Ok(ShedStream::new(stream, peer, permit)),
            Err(err) => {
                permit.ends_by(Cause::Error);
                shared.counters.accept_failed(err.raw_os_error().unwrap_or(libc::EIO));
                Err(err)
            }
        }
    }
}
