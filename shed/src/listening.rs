//! The listening socket of one accept loop: waits for its queue, and closes it when it is to leave.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use socket2::Socket;
use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::{
    accept::AcceptError,
    arrival::Arrival,
    door::{BATCH, Batch, Door},
    leave::{self, Leave},
    page::Held,
    shared::Shared,
};

/// The listening socket of one accept loop, until it is closed.
#[derive(Debug)]
pub(crate) struct Listening {
    /// `None`: it is closed.
    socket: Option<AsyncFd<Socket>>,
    pub(crate) local: SocketAddr,
    door: Door,
    leave: Option<Leave>,
    /// Its filter is on the socket, be it of an order before.
    is_deaf: bool,
    /// What other generations see of the socket, where there may be some.
    held: Option<Held>,
    /// Connections that were admitted since others had their turn.
    in_a_row: usize,
}

impl Listening {
    pub(crate) fn new(socket: AsyncFd<Socket>, local: SocketAddr, door: Door) -> Self {
        door.post.socket.lend(&socket);
        let held = door.shared.gate.words().hold();
        Self { socket: Some(socket), local, door, leave: None, is_deaf: false, held, in_a_row: 0 }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.door.shared
    }

    /// Who is admitted goes to `handoff`.
    pub(crate) fn hands_to(&mut self, handoff: mpsc::Sender<Arrival>) {
        self.door.hands_to(handoff);
    }

    pub(crate) fn socket(&self) -> io::Result<&Socket> {
        self.socket.as_ref().map(AsyncFd::get_ref).ok_or(io::ErrorKind::NotConnected.into())
    }

    /// The next connection that is admitted; with an error, the socket is closed. It may be
    /// cancelled: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Arrival, AcceptError> {
        let next = self.accept().await;
        if next.is_err() {
            // clients are refused, and do not queue where nobody accepts
            self.close();
        }
        next
    }

    async fn accept(&mut self) -> Result<Arrival, AcceptError> {
        loop {
            self.door.meter.runs();
            if BATCH <= self.in_a_row {
                // before another is taken, so that none is lost where this is cancelled
                self.rest().await;
            }
            let door = &mut self.door;
            let Some(socket) = self.socket.as_ref() else { return Err(door.shared.end()) };
            if self.leave.is_some() || door.post.is_called() {
                return self.leave().await;
            }
            if !door.wait_for_room().await? {
                continue;
            }
            let mut ready = tokio::select! {
                biased;
                ready = socket.readable() => ready.map_err(|err| door.fatal(err))?,
                () = door.shared.closing() => return Err(AcceptError::Closed),
                () = door.post.called() => continue,
                // of another accept loop, or where a header is read: seen at once
                _ = door.shared.failed() => continue,
            };
            match door.batch(ready.get_inner()) {
                Batch::Admitted { arrival, is_last } => {
                    self.in_a_row += 1;
                    if is_last {
                        // who came after the look at the queue wakes the runtime once more
                        ready.clear_ready();
                        self.in_a_row = if door.meter.empties() { BATCH } else { 0 };
                    }
                    return Ok(arrival);
                }
                Batch::Empty | Batch::Taken => {
                    self.in_a_row = 0;
                    ready.clear_ready();
                    if door.meter.empties() {
                        door.meter.yields().await;
                    }
                }
                Batch::Yield => door.meter.yields().await,
                Batch::Backoff => door.back_off().await,
                Batch::Fatal(err) => return Err(door.fatal(err)),
            }
        }
    }

    /// Lets others have their turn. It may be cancelled.
    pub(crate) async fn rest(&mut self) {
        self.in_a_row = 0;
        self.door.meter.yields().await;
    }

    /// What is queued while the listener closes; then it is closed.
    async fn leave(&mut self) -> Result<Arrival, AcceptError> {
        loop {
            let Some(socket) = self.socket.as_ref().map(AsyncFd::get_ref) else {
                return Err(AcceptError::Closed);
            };
            let door = &mut self.door;
            if let Some(exit) = door.post.order() {
                let exit = exit.settle(&door.shared.life, self.held.as_mut());
                let leave = Leave::begin(exit, socket, Instant::now());
                door.is_draining = leave.sheds();
                self.is_deaf |= leave.refuses();
                self.leave = Some(leave);
            }
            let may_close = match &mut self.leave {
                Some(leave) if !leave.is_free() => {
                    leave.rest().await;
                    match door.batch(socket) {
                        Batch::Admitted { arrival, .. } => return Ok(arrival),
                        Batch::Yield | Batch::Taken => {
                            door.meter.yields().await;
                            continue;
                        }
                        Batch::Empty => leave.is_over(socket, self.local.port(), Instant::now()),
                        Batch::Backoff => leave.is_late(Instant::now()),
                        Batch::Fatal(_) => true,
                    }
                }
                Some(_) | None => true,
            };
            if may_close {
                self.close();
            }
        }
    }

    /// Closes the socket, and the listener with its last member.
    pub(crate) fn close(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.door.meter.ends_turn();
            let Door { shared, post, .. } = &self.door;
            // a filter is of the socket, not of our descriptor
            let goes_on = |held: &Held| !shared.life.is_lent() && held.is_shared();
            let others_go_on =
                || shared.life.is_borrowed() || self.held.as_ref().is_some_and(goes_on);
            if self.is_deaf && others_go_on() {
                leave::answer(socket.get_ref());
            }
            // first: nobody is to leave to this one what is reset by the close
            self.held = None;
            post.socket.take_back();
            drop(socket);
            shared.life.keep(None);
            if shared.life.left(post) == 0 {
                shared.close();
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.close();
    }
}
