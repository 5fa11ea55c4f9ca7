//! One connection: from the listener to its backend, and back.

use std::{io, time::Duration};

use backlogd_shed::{Cause, Reason, ShedStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpStream, UnixStream},
    time,
};

use super::{Backend, Front};

/// Passes `conn` on, until both ends are closed.
///
/// # Errors
/// The backend cannot be reached; the connection is shed for that.
pub(super) async fn serve(conn: ShedStream, front: &Front) -> io::Result<()> {
    let limit = front.connect_timeout;
    match &front.backend {
        Backend::Tcp(address) => match connected(limit, TcpStream::connect(address)).await {
            Ok(backend) => {
                // what one end sends at once goes on at once
                drop(backend.set_nodelay(true));
                pass(conn, backend, |backend| drop(backend.set_zero_linger())).await;
                Ok(())
            }
            Err(err) => refuse(conn, err),
        },
        Backend::Unix(path) => match connected(limit, UnixStream::connect(path)).await {
            Ok(backend) => {
                pass(conn, backend, |_| ()).await;
                Ok(())
            }
            Err(err) => refuse(conn, err),
        },
    }
}

async fn connected<S>(
    limit: Duration,
    connect: impl Future<Output = io::Result<S>>,
) -> io::Result<S> {
    time::timeout(limit, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn refuse(conn: ShedStream, err: io::Error) -> io::Result<()> {
    conn.shed(Reason::BackendDown);
    Err(err)
}

/// Bytes to and fro. The end of one direction is passed on by itself, a reset as a reset.
///
/// `reset` has the backend's close be a reset.
async fn pass<B>(mut conn: ShedStream, mut backend: B, reset: impl FnOnce(&B))
where
    B: AsyncRead + AsyncWrite + Unpin,
{
    if copy_bidirectional(&mut conn, &mut backend).await.is_err() {
        if conn.permit().cause() != Cause::Error {
            conn.permit().ends_by(Cause::Backend);
        }
        reset(&backend);
        conn.reset();
    }
}
