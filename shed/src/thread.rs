//! The accept loop on a thread and a runtime of its own.
//!
//! On a shared runtime, a handler that blocks stops accepting, and clients hang in the kernel's
//! queue. Here the loop has a thread, and hands over by a bounded channel. When whoever serves
//! takes nothing from it and it is full, more are shed as
//! [`Reason::Handoff`](crate::Reason::Handoff): the loop never waits. What waits in the channel is
//! admitted, so it counts towards the limits. PROXY headers are read by the runtime that serves;
//! deadlines are watched by the thread.

use std::{
    fmt, future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, mpsc as std_mpsc},
    task::{Context, Poll, ready},
    thread,
};

use tokio::{runtime, sync::mpsc};

use crate::{
    accept::AcceptError, arrival::Arrival, build_error::BuildError, builder::Builder,
    conn::ShedStream, drain, handle::Handle, handshake::Handshakes, limits::MAX_LIMIT,
    listening::Listening, shared::Shared,
};

/// What a listener admitted that accepts on a thread of its own.
///
/// Made by [`Builder::build_threaded`]. Dropped, it closes the listener.
pub struct Accepted {
    arrivals: mpsc::Receiver<Arrival>,
    handshakes: Handshakes,
    /// Where nobody comes any more: ends with a drain.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// As a stream it has yielded its last.
    #[cfg(feature = "stream")]
    pub(crate) is_at_end: bool,
    local: SocketAddr,
    shared: Arc<Shared>,
}

impl Builder {
    /// Opens the listener, as [`build`](Self::build) does, on a thread and a runtime of its own:
    /// handlers that block do not stop it. `capacity` connections, 1 to [`MAX_LIMIT`], wait for
    /// [`Accepted::accept`]; while as many do, more are shed. No runtime need be entered. The
    /// thread ends after the last connection of a listener that was closed.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    pub fn build_threaded(self, capacity: usize) -> Result<Accepted, BuildError> {
        if !(1..=MAX_LIMIT).contains(&capacity) {
            return Err(BuildError::Capacity { got: capacity });
        }
        let (sender, arrivals) = mpsc::channel(capacity);
        let (report, reported) = std_mpsc::channel();
        thread::Builder::new()
            .name("shed-accept".into())
            .spawn(move || run(self, sender, &report))
            .map_err(|source| BuildError::call("pthread_create", source))?;
        let (local, shared) = reported.recv().expect("the thread reports before it ends")?;
        let handshakes = Handshakes::default();
        Ok(Accepted {
            arrivals,
            handshakes,
            over: None,
            #[cfg(feature = "stream")]
            is_at_end: false,
            local,
            shared,
        })
    }
}

type Report = std_mpsc::Sender<Result<(SocketAddr, Arc<Shared>), BuildError>>;

/// The thread: reports whether there is a listener, and accepts until it is closed.
fn run(builder: Builder, sender: mpsc::Sender<Arrival>, report: &Report) {
    // whoever is reported to waits for it, so that no report fails
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return drop(report.send(Err(BuildError::call("epoll_create1", source)))),
    };
    runtime.block_on(async {
        match builder.build() {
            Ok(listener) => {
                let local = listener.local_addr();
                let listening = listener.into_listening();
                drop(report.send(Ok((local, Arc::clone(listening.shared())))));
                hand_over(listening, sender).await;
            }
            Err(err) => drop(report.send(Err(err))),
        }
    });
}

/// Hands over until the listener is closed, and stays for what this runtime does for its
/// connections: their deadlines, until the last one ended, and the answers to who was shed, until
/// they arrived.
async fn hand_over(mut listening: Listening, sender: mpsc::Sender<Arrival>) {
    let shared = Arc::clone(listening.shared());
    listening.hands_to(sender.clone());
    while let Ok(arrival) = listening.next().await {
        // there is room: nobody else sends, and who is admitted without room is shed
        if sender.try_send(arrival).is_err() {
            break;
        }
    }
    drop((sender, listening));
    // who lingers has a place, too
    let is_last = || shared.gate.own_taken() == 0;
    while !is_last() {
        shared.gate.changed(is_last).await;
    }
}

impl Accepted {
    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What watches and steers the listener from elsewhere.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// The next connection, for the runtime in which this is called. It may be cancelled: nothing
    /// is lost. Those who were admitted before the end come before its error.
    ///
    /// # Errors
    /// The listener was closed, or can accept nothing more; its thread has closed the socket.
    pub async fn accept(&mut self) -> Result<ShedStream, AcceptError> {
        future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ShedStream, AcceptError>> {
        loop {
            if let Poll::Ready(Some(named)) = self.handshakes.poll_next(cx) {
                match named.admit() {
                    Some(conn) => return Poll::Ready(Ok(conn)),
                    None => continue,
                }
            }
            if let Some(arrival) = ready!(self.arrivals.poll_recv(cx)) {
                if let Some(conn) = self.handshakes.take(arrival, &self.shared) {
                    return Poll::Ready(Ok(conn));
                }
            } else {
                ready!(self.poll_rest(cx));
                return Poll::Ready(Err(self.shared.end()));
            }
        }
    }

    /// Ends when no header is awaited any more. Who was accepted before the end still has its turn,
    /// until a drain is over.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.handshakes.is_empty() {
            return Poll::Ready(());
        }
        if !self.shared.life.is_over() {
            let over = self.over.get_or_insert_with(|| Box::pin(drain::over(&self.shared)));
            ready!(over.as_mut().poll(cx));
        }
        self.handshakes.poll_shed(cx)
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("local", &self.local)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.shared.close();
    }
}
