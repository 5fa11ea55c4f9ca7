//! The accept loop on a thread and a runtime of its own.
//!
//! On a shared runtime, a handler that blocks stops accepting, and clients hang in the kernel's
//! queue. Here the loop has a thread, and hands over by a bounded channel. When whoever serves takes
//! nothing from it and it is full, more are shed as [`Reason::Handoff`](crate::Reason::Handoff):
//! the loop never waits. What waits in the channel is admitted, so it counts towards the limits.

use std::{
    future,
    net::SocketAddr,
    sync::{Arc, mpsc as std_mpsc},
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use tokio::{runtime, sync::mpsc, time};

use crate::{
    admitted::Admitted,
    builder::{BuildError, Builder},
    conn::ShedStream,
    handle::Handle,
    limits::MAX_LIMIT,
    listener::{AcceptError, ShedListener},
    shared::Shared,
};

/// What a listener admitted that accepts on a thread of its own.
///
/// Made by [`Builder::build_threaded`]. Dropped, it closes the listener.
#[derive(Debug)]
pub struct Accepted {
    admitted: mpsc::Receiver<Admitted>,
    local: SocketAddr,
    shared: Arc<Shared>,
}

impl Builder {
    /// Opens the listener, as [`build`](Self::build) does, on a thread and a runtime of its own:
    /// handlers that block do not stop it. `capacity` connections, 1 to [`MAX_LIMIT`], wait for
    /// [`Accepted::accept`]; while as many do, more are shed. No runtime need be entered.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    pub fn build_threaded(self, capacity: usize) -> Result<Accepted, BuildError> {
        if !(1..=MAX_LIMIT).contains(&capacity) {
            return Err(BuildError::Capacity { got: capacity });
        }
        let (sender, admitted) = mpsc::channel(capacity);
        let (report, reported) = std_mpsc::channel();
        thread::Builder::new()
            .name("shed-accept".into())
            .spawn(move || run(self, sender, &report))
            .map_err(|source| BuildError::call("pthread_create", source))?;
        let (local, shared) = reported.recv().expect("the thread reports before it ends")?;
        Ok(Accepted { admitted, local, shared })
    }
}

type Report = std_mpsc::Sender<Result<(SocketAddr, Arc<Shared>), BuildError>>;

/// The thread: reports whether there is a listener, and accepts until it is closed.
fn run(builder: Builder, sender: mpsc::Sender<Admitted>, report: &Report) {
    // whoever is reported to waits for it, so that no report fails
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return drop(report.send(Err(BuildError::call("epoll_create1", source)))),
    };
    runtime.block_on(async {
        match builder.build() {
            Ok(listener) => {
                drop(report.send(Ok((listener.local_addr(), listener.shared()))));
                hand_over(listener, sender).await;
            }
            Err(err) => drop(report.send(Err(err))),
        }
    });
}

/// Hands over until the listener is closed, and stays until the answers to who was shed arrived.
async fn hand_over(mut listener: ShedListener, sender: mpsc::Sender<Admitted>) {
    const LOOK: Duration = Duration::from_millis(5);
    listener.hands_to(sender.clone());
    while let Ok(admitted) = listener.admit().await {
        // there is room: nobody else sends, and who is admitted without room is shed
        if sender.try_send(admitted).is_err() {
            break;
        }
    }
    drop(sender);
    let handle = listener.handle();
    drop(listener);
    while handle.stats().lingering != 0 {
        time::sleep(LOOK).await;
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

    /// The next connection, for the runtime in which this is called. It may be cancelled: nothing is
    /// lost. Those who were admitted before the end come before its error.
    ///
    /// # Errors
    /// The listener was closed, or can accept nothing more.
    pub async fn accept(&mut self) -> Result<ShedStream, AcceptError> {
        future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ShedStream, AcceptError>> {
        while let Some(admitted) = ready!(self.admitted.poll_recv(cx)) {
            if let Ok(conn) = admitted.serve(&self.shared) {
                return Poll::Ready(Ok(conn));
            }
        }
        Poll::Ready(Err(self.shared.failure().map_or(AcceptError::Closed, AcceptError::Fatal)))
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.shared.close();
    }
}
