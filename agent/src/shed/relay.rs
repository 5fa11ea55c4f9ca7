//! One connection: from the listener to its backend, and back.

use std::{
    future, io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use backlogd_shed::{Cause, Deadline, Reason, ShedStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time,
};

use super::{Backend, Front, dial::Dialer};

/// So many bytes are read at once.
const BUFFER: usize = 8 * 1024;

/// Passes `conn` on, until both ends are closed.
///
/// # Errors
/// The backend cannot be reached; the connection is shed for that.
pub(super) async fn serve(conn: ShedStream, front: &Front, dialer: &Dialer) -> io::Result<()> {
    let (limit, half_close) = (front.connect_timeout, front.half_close);
    match &front.backend {
        Backend::Tcp(address) => match dialer.tcp(address, limit).await {
            Ok(backend) => {
                // what one end sends at once goes on at once
                drop((backend.set_nodelay(true), conn.get_ref().set_nodelay(true)));
                pass(Pair::new(conn, backend), half_close, |it| drop(it.set_zero_linger())).await;
                Ok(())
            }
            Err(err) => refuse(conn, err),
        },
        Backend::Unix(path) => match dialer.unix(path, limit).await {
            Ok(backend) => {
                drop(conn.get_ref().set_nodelay(true));
                pass(Pair::new(conn, backend), half_close, |_| ()).await;
                Ok(())
            }
            Err(err) => refuse(conn, err),
        },
    }
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
