//! A connection between accept and the runtime that serves it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::Socket;
use tokio::net::TcpStream;

use crate::{conn::ShedStream, door, permit::Permit, reason::Cause, shared::Shared};

/// A connection that was admitted, which no runtime knows so far.
#[derive(Debug)]
pub(crate) struct Arrival {
    // before the permit, so that close(2) comes before that is given back
    pub(crate) socket: Socket,
    pub(crate) peer: SocketAddr,
    pub(crate) permit: Permit,
    /// How long it was queued, where that was asked.
    pub(crate) waited: Option<Duration>,
    pub(crate) has_header: bool,
    /// How many were accepted before, and it.
    pub(crate) turn: u64,
}

impl Arrival {
    /// Gives it to the runtime in which this is called. `None`: that cannot watch it; it is closed
    /// and, like a failure of accept(2), counted.
    pub(crate) fn serve(self, shared: &Arc<Shared>) -> Option<ShedStream> {
        let Self { socket, peer, mut permit, .. } = self;
        match TcpStream::from_std(socket.into()) {
            Ok(stream) => Some(ShedStream::new(stream, peer, permit)),
            Err(err) => {
                permit.ends_by(Cause::Error);
                shared.counters.accept_failed(door::errno(&err));
                None
            }
        }
    }
}
