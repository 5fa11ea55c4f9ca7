//! One connection: from the listener to its backend, and back.

use std::{
    future, io,
    mem::MaybeUninit,
    net::{SocketAddr, ToSocketAddrs as _},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use backlogd_shed::{Cause, Deadline, Reason, ShedStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::{Mutex, Semaphore},
    task,
    time::{self, Instant},
};

use super::{Backend, Front};

/// So many bytes are read at once.
const BUFFER: usize = 8 * 1024;
/// A Unix backend whose accept queue is full is asked again after so long.
const AGAIN: Duration = Duration::from_millis(2);

/// So many names are looked up at once: each takes a thread and a socket, which no limit counts.
const LOOKUPS: usize = 16;

/// Those who wait for the backend, the first one first.
#[derive(Debug)]
pub(super) struct Waiting {
    /// For a place in the accept queue of a Unix one: one of them asks for it, however many wait.
    queue: Mutex<()>,
    /// For its name.
    lookups: Arc<Semaphore>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { queue: Mutex::new(()), lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

/// Passes `conn` on, until both ends are closed.
///
/// # Errors
/// The backend cannot be reached; the connection is shed for that.
pub(super) async fn serve(conn: ShedStream, front: &Front, waiting: &Waiting) -> io::Result<()> {
    let (limit, half_close) = (front.connect_timeout, front.half_close);
    match &front.backend {
        Backend::Tcp(address) => match tcp(address, limit, waiting).await {
            Ok(backend) => {
                // what one end sends at once goes on at once
                drop((backend.set_nodelay(true), conn.get_ref().set_nodelay(true)));
                pass(Pair::new(conn, backend), half_close, |it| drop(it.set_zero_linger())).await;
                Ok(())
            }
            Err(err) => refuse(conn, err),
        },
        Backend::Unix(path) => match unix(path, limit, waiting).await {
            Ok(backend) => {
                drop(conn.get_ref().set_nodelay(true));
                pass(Pair::new(conn, backend), half_close, |_| ()).await;
                Ok(())
            }
            Err(err) => refuse(conn, err),
        },
    }
}

async fn tcp(address: &str, limit: Duration, waiting: &Waiting) -> io::Result<TcpStream> {
    let until = Instant::now() + limit;
    let targets = match address.parse::<SocketAddr>() {
        Ok(target) => vec![target],
        Err(_) => {
            let known = time::timeout_at(until, lookup(address, &waiting.lookups)).await;
            let late = || io::Error::new(io::ErrorKind::TimedOut, "its name has no answer in time");
            known.unwrap_or_else(|_| Err(late()))?
        }
    };
    let connected = time::timeout_at(until, TcpStream::connect(&targets[..])).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn lookup(address: &str, lookups: &Arc<Semaphore>) -> io::Result<Vec<SocketAddr>> {
    let address = address.to_owned();
    bounded(lookups, move || address.to_socket_addrs().map(Iterator::collect)).await?
}

/// Does `job` in a thread, when it is its turn. It goes on, and has its turn, where nobody awaits it
/// any more: getaddrinfo(3) cannot be ended.
async fn bounded<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let turn = Arc::clone(turns).acquire_owned().await.map_err(io::Error::other)?;
    let done = task::spawn_blocking(move || {
        let _turn = turn;
        job()
    });
    done.await.map_err(io::Error::other)
}

/// Waits for a place in the accept queue, as TCP does by itself: connect(2) of a Unix socket that may
/// not block says EAGAIN when there is none (`unix_stream_connect`, net/unix/af_unix.c), and nothing
/// tells when there is one.
async fn unix(path: &Path, limit: Duration, waiting: &Waiting) -> io::Result<UnixStream> {
    let is_full = |err: &io::Error| err.kind() == io::ErrorKind::WouldBlock;
    match UnixStream::connect(path).await {
        Err(err) if is_full(&err) => {}
        connected => return connected,
    }
    let in_turn = async {
        let _turn = waiting.queue.lock().await;
        loop {
            match UnixStream::connect(path).await {
                Err(err) if is_full(&err) => time::sleep(AGAIN).await,
                connected => return connected,
            }
        }
    };
    let full = || io::Error::new(io::ErrorKind::TimedOut, "its accept queue is full");
    time::timeout(limit, in_turn).await.unwrap_or_else(|_| Err(full()))
}

fn refuse(conn: ShedStream, err: io::Error) -> io::Result<()> {
    conn.shed(Reason::BackendDown);
    Err(err)
}

/// Bytes to and fro. The end of one direction is passed on by itself, a reset as a reset; after the
/// first end, the other direction has `half_close`.
///
/// `reset` has the backend's close be a reset.
async fn pass<B>(mut pair: Pair<B>, half_close: Option<Duration>, reset: impl FnOnce(&B))
where
    B: AsyncRead + AsyncWrite + Unpin,
{
    let ended = match (pair.ends(1).await, half_close) {
        (Err(err), _) => Ok(Err(err)),
        (Ok(()), None) => Ok(pair.ends(2).await),
        (Ok(()), Some(limit)) => time::timeout(limit, pair.ends(2)).await,
    };
    let Pair { mut conn, backend, back, .. } = pair;
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(_)) => {
            if conn.permit().cause() != Cause::Error {
                conn.permit().ends_by(Cause::Backend);
            }
            reset(&backend);
            conn.reset();
        }
        Err(_) => {
            conn.permit().ends_by_deadline(Deadline::HalfClose);
            reset(&backend);
            // an end would say that it has the whole answer
            if back.stage != Stage::Ended {
                conn.reset();
            }
        }
    }
}

/// A connection and its backend's.
struct Pair<B> {
    conn: ShedStream,
    backend: B,
    /// From the client to the backend.
    there: Direction,
    back: Direction,
}

impl<B: AsyncRead + AsyncWrite + Unpin> Pair<B> {
    fn new(conn: ShedStream, backend: B) -> Self {
        Self { conn, backend, there: Direction::default(), back: Direction::default() }
    }

    /// Passes bytes on until `n` directions ended.
    async fn ends(&mut self, n: usize) -> io::Result<()> {
        let Self { conn, backend, there, back } = self;
        future::poll_fn(|cx| {
            let there = there.poll(cx, conn, backend)?;
            let back = back.poll(cx, backend, conn)?;
            let n_ended = usize::from(there.is_ready()) + usize::from(back.is_ready());
            if n <= n_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }
}

/// One direction of a connection. It has no memory of its own but for what cannot be written at
/// once, so that an idle one has none.
#[derive(Debug, Default)]
struct Direction {
    /// What was read, and the part of it that was written.
    held: Vec<u8>,
    written: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The end was read, and not passed on so far.
    Ending,
    Ended,
}

impl Direction {
    /// Passes on what there is. Ready when the end was passed on.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        ready!(self.poll_held(cx, to))?;
        let mut room = [MaybeUninit::uninit(); BUFFER];
        while self.stage == Stage::Open {
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut read))?;
            match read.filled() {
                [] => self.stage = Stage::Ending,
                bytes => ready!(self.poll_write(cx, to, bytes))?,
            }
        }
        if self.stage == Stage::Ending {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.stage = Stage::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, and holds those that have to wait.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
        mut bytes: &[u8],
    ) -> Poll<io::Result<()>> {
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(n) => bytes = &bytes[n..],
                Poll::Pending => {
                    self.held.extend_from_slice(bytes);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is held.
    fn poll_held(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.held[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        (self.held, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn jobs_that_nobody_awaits_keep_their_turn_until_they_end() {
        let turns = Arc::new(Semaphore::new(2));
        let begun = Arc::new(AtomicUsize::new(0));
        let (end, ends) = mpsc::channel::<()>();
        let ends = Arc::new(std::sync::Mutex::new(ends));
        let job = || {
            let (begun, ends) = (Arc::clone(&begun), Arc::clone(&ends));
            bounded(&turns, move || {
                begun.fetch_add(1, Ordering::SeqCst);
                let waits = ends.lock().expect("no panic");
                waits.recv().is_ok()
            })
        };
        for _ in 0..5 {
            let late = time::timeout(Duration::from_millis(20), job()).await;
            assert!(late.is_err());
        }
        while begun.load(Ordering::SeqCst) < 2 {
            time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((begun.load(Ordering::SeqCst), turns.available_permits()), (2, 0));
        for _ in 0..3 {
            end.send(()).expect("a receiver");
        }
        assert!(job().await.expect("it is its turn"));
        assert_eq!(begun.load(Ordering::SeqCst), 3);
        let all = time::timeout(Duration::from_secs(10), turns.acquire_many(2)).await;
        drop(all.expect("they come back").expect("it is open"));
    }

    #[tokio::test]
    async fn what_is_no_address_is_looked_up() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = server.local_addr().expect("it is bound").port();
        let (limit, waiting) = (Duration::from_secs(10), Waiting::default());
        for host in ["127.0.0.1", "localhost"] {
            let stream = tcp(&format!("{host}:{port}"), limit, &waiting).await.expect("connected");
            assert_eq!(stream.peer_addr().expect("connected").port(), port);
        }
        let turns = waiting.lookups.acquire_many(u32::try_from(LOOKUPS).expect("few"));
        let _all = turns.await.expect("they are free");
        let late = tcp(&format!("localhost:{port}"), Duration::from_millis(20), &waiting).await;
        let late = late.expect_err("it is not its turn");
        assert_eq!(late.to_string(), "its name has no answer in time");
        tcp(&format!("127.0.0.1:{port}"), limit, &waiting).await.expect("it has no name");
    }
}
