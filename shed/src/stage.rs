//! A stage between accept and service, in which peers have to do something first.
//!
//! Each connection has a task in a set of bounded size, and an absolute deadline that counts from
//! its admission: bytes that trickle in do not put it off. Of the tasks, only some compute at once,
//! so that a crowd of them leaves cores to others; who waits for its peer takes none of these
//! turns. A connection that does not pass, for whatever reason, is reset and counted as shed, when
//! the last of the task lets go of it.

use std::{
    fmt, future, io, mem,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use crate::{
    conn::ShedStream, deadline::cell::Cell, permit::Permit, reason::Reason, shared::Shared,
};

/// A connection that has to pass a stage: reset and shed where it is dropped before.
#[derive(Debug)]
pub struct Staged {
    conn: ShedStream,
    has_passed: Arc<AtomicBool>,
    reason: Reason,
}

impl Staged {
    /// The connection.
    #[must_use]
    pub fn get_ref(&self) -> &ShedStream {
        &self.conn
    }

    /// The connection, to say why it ends, say.
    #[must_use]
    pub fn get_mut(&mut self) -> &mut ShedStream {
        &mut self.conn
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.has_passed.load(Ordering::Relaxed) {
            shed(&mut self.conn, self.reason);
        }
    }
}

/// Has `conn` reset by its close(2), and counts it.
fn shed(conn: &mut ShedStream, reason: Reason) {
    // where it fails, the close is an ordinary one, and the peer learns of it all the same
    drop(SockRef::from(conn.get_ref()).set_linger(Some(Duration::ZERO)));
    // what a panic ends is not counted as refused
    if !thread::panicking() {
        conn.permit().counts_as_shed(reason);
    }
}

impl AsyncRead for Staged {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }
}

impl AsyncWrite for Staged {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

/// Tells the deadlines of a connection, wherever that is, of its stage.
struct Phases {
    shared: Arc<Shared>,
    cell: Arc<Cell>,
}

impl Phases {
    /// The stage begins; `None`: there are no deadlines.
    fn begin(permit: &Permit) -> Option<Self> {
        let (watcher, _) = permit.watched()?;
        let cell = permit.cell()?;
        watcher.handshake_begins(&cell);
        Some(Self { shared: Arc::clone(permit.shared()), cell })
    }

    /// The stage is over, and requests come next, of which somebody tells or nobody does.
    fn end(&self, hides_requests: bool) {
        match &self.shared.watcher {
            Some(watcher) if watcher.is_in_handshake(&self.cell) => match hides_requests {
                true => watcher.header_done(&self.cell),
                false => watcher.handshake_done(&self.cell),
            },
            // whoever did the handshake told already
            Some(_) | None => {}
        }
    }
}

/// The connections that are in a stage; dropped, all of them are shed.
pub(crate) struct Tasks<S> {
    tasks: JoinSet<Option<(S, SocketAddr)>>,
    max: usize,
    turns: Arc<Semaphore>,
    deadline: Duration,
    /// Why those are shed who do not pass.
    failed: Reason,
    /// Why those are shed for whom there is no room.
    busy: Reason,
    /// Whoever gets them tells nothing of their requests.
    hides_requests: bool,
}

impl<S: Send + 'static> Tasks<S> {
    /// For `max` connections, of which `at_once` compute at once; shed as `failed` where they do
    /// not pass, and as `busy` where there are as many.
    pub(crate) fn new(
        max: usize,
        at_once: usize,
        deadline: Duration,
        failed: Reason,
        busy: Reason,
    ) -> Self {
        let turns = Arc::new(Semaphore::new(at_once));
        let tasks = JoinSet::new();
        Self { tasks, max, turns, deadline, failed, busy, hides_requests: false }
    }

    /// Whether nobody is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Whoever gets those that begin from here on tells nothing of their requests.
    #[cfg(feature = "axum")]
    pub(crate) fn hide_requests(&mut self) {
        self.hides_requests = true;
    }

    /// Has `conn` pass by what `work` gives, unless there is no room.
    pub(crate) fn begin<F>(&mut self, mut conn: ShedStream, work: impl FnOnce(Staged) -> F)
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        if self.max <= self.tasks.len() {
            return shed(&mut conn, self.busy);
        }
        let peer = conn.peer_addr();
        let end = time::Instant::from_std(conn.permit().since()) + self.deadline;
        let hides_requests = self.hides_requests;
        if hides_requests {
            conn.hide_requests();
        }
        let phases = Phases::begin(conn.permit());
        let has_passed = Arc::new(AtomicBool::new(false));
        let staged = Staged { conn, has_passed: Arc::clone(&has_passed), reason: self.failed };
        let (work, turns) = (work(staged), Arc::clone(&self.turns));
        self.tasks.spawn(async move {
            // what fails or is late has let go of its connection
            let stream = time::timeout_at(end, in_turn(work, &turns)).await.ok()?.ok()?;
            has_passed.store(true, Ordering::Relaxed);
            if let Some(phases) = phases {
                phases.end(hides_requests);
            }
            Some((stream, peer))
        });
    }

    /// The next one of which the task ended; `None`: it did not pass, or nobody is in it. It may be
    /// cancelled: nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<(S, SocketAddr)> {
        // a task that panicked has dropped its connection
        self.tasks.join_next().await?.ok()?
    }
}

/// Has `work` compute while it has one of `turns`; while it waits, it has none.
async fn in_turn<F: Future>(work: F, turns: &Semaphore) -> F::Output {
    let mut work = pin!(work);
    loop {
        // an error: it was closed, which nobody does
        let turn = turns.acquire().await;
        let polled = future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
        drop(turn);
        if let Poll::Ready(output) = polled {
            return output;
        }
        let mut is_woken = false;
        future::poll_fn(|_| match mem::replace(&mut is_woken, true) {
            false => Poll::Pending,
            true => Poll::Ready(()),
        })
        .await;
    }
}

impl<S> fmt::Debug for Tasks<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("len", &self.tasks.len())
            .field("max", &self.max)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
