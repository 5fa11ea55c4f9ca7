//! The accept loop: accept first, decide at once, stop only at the hard limit.
//!
//! Blocking before accept(2) would leave connections in the kernel's queue, where their clients
//! believe themselves served. So the loop takes whatever is there, some at a time, and closes what
//! is too much on the raw descriptor, before the runtime knows it.

use std::{future, io, net::SocketAddr, sync::Arc};

use socket2::Socket;
use tokio::io::unix::AsyncFd;

use crate::{
    accept::AcceptError,
    conn::ShedStream,
    door::{BATCH, Door},
    drain,
    handle::Handle,
    handshake::{Handshakes, Named},
    listening::Listening,
    shared::Shared,
    sys,
};

/// A listening socket that sheds what is above its limits.
///
/// Made by [`Builder::build`](crate::Builder::build). [`accept`](Self::accept) yields connections
/// that were admitted; those that are shed meanwhile are not seen.
#[derive(Debug)]
pub struct ShedListener {
    listening: Listening,
    handshakes: Handshakes,
}

impl ShedListener {
    pub(crate) fn new(socket: AsyncFd<Socket>, local: SocketAddr, door: Door) -> Self {
        Self { listening: Listening::new(socket, local, door), handshakes: Handshakes::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.listening.shared()
    }

    pub(crate) fn socket(&self) -> io::Result<&Socket> {
        self.listening.socket()
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listening.local
    }

    /// What watches and steers it from elsewhere.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(self.shared()))
    }

    /// Length and limit of the accept queue, as the kernel has them; at most limit + 1 wait there.
    ///
    /// # Errors
    /// TCP_INFO fails, or the listener is closed.
    pub fn accept_queue(&self) -> io::Result<(u32, u32)> {
        sys::queue(self.socket()?)
    }

    /// Asks the kernel for another limit of the accept queue, by listen(2) on the live socket;
    /// `None`: the largest that the kernel gives, net.core.somaxconn. Gives what it granted. What
    /// is queued above stays queued. Of a [`Group`](crate::Group), this member alone is asked;
    /// [`Handle::set_backlog`] asks all.
    ///
    /// # Errors
    /// listen(2) or TCP_INFO fails, or the listener is closed.
    pub fn set_backlog(&self, backlog: impl Into<Option<u16>>) -> io::Result<u32> {
        self.shared().life.listen_on(self.socket()?, backlog.into())
    }

    /// The next connection that is admitted. It may be cancelled: nothing is lost.
    ///
    /// # Errors
    /// The listener was closed, or can accept nothing more; its socket is closed, so that clients
    /// are refused and do not queue where nobody accepts.
    pub async fn accept(&mut self) -> Result<ShedStream, AcceptError> {
        let Self { listening, handshakes } = self;
        loop {
            let has_some = !handshakes.is_empty();
            let arrival = tokio::select! {
                biased;
                Some(named) = future::poll_fn(|cx| handshakes.poll_next(cx)), if has_some => {
                    match named.admit() {
                        Some(conn) => return Ok(conn),
                        None => continue,
                    }
                }
                arrival = listening.next() => arrival,
            };
            let shared = listening.shared();
            match arrival {
                Ok(arrival) => {
                    let turn = arrival.turn;
                    if let Some(conn) = handshakes.take(arrival, shared) {
                        return Ok(conn);
                    }
                    // tasks that read headers have to run, too
                    if turn.is_multiple_of(BATCH as u64) {
                        listening.rest().await;
                    }
                }
                // who was accepted before still has its turn, until a drain is over
                Err(err) => {
                    let named = tokio::select! {
                        biased;
                        () = drain::over(shared) => {
                            future::poll_fn(|cx| handshakes.poll_shed(cx)).await;
                            None
                        }
                        named = future::poll_fn(|cx| handshakes.poll_next(cx)) => named,
                    };
                    match named.map(Named::admit) {
                        Some(Some(conn)) => return Ok(conn),
                        Some(None) => {}
                        None => return Err(err),
                    }
                }
            }
        }
    }

    /// The accept loop itself; whose PROXY header it has to await, is for whoever takes them.
    pub(crate) fn into_listening(self) -> Listening {
        self.listening
    }
}
