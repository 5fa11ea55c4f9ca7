//! A connection to a backend, over TCP or a Unix socket.

use std::{
    fmt, io,
    mem::MaybeUninit,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// An address.
    Tcp(SocketAddr),
    /// The path of a stream socket.
    Unix(PathBuf),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub enum BackendStream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl BackendStream {
    pub(super) async fn dial(backend: &Backend, keepalive: Option<Duration>) -> io::Result<Self> {
        match backend {
            Backend::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                if let Some(idle) = keepalive {
                    keep_alive(&stream, idle)?;
                }
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Backend::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
        }
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        }
    }

    /// Whether its backend is silent and there: it has not closed, nor said what nobody asked for,
    /// which the next user would take for its answer.
    pub(super) fn is_healthy(&self) -> bool {
        let peeked = self
            .socket()
            .recv_with_flags(&mut [MaybeUninit::uninit()], libc::MSG_PEEK | libc::MSG_DONTWAIT);
        peeked.is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock)
    }

    /// Has close(2) reset it, so that no TIME_WAIT keeps its port.
    pub(super) fn reset_at_close(&self) {
        if let Self::Tcp(stream) = self {
            // one that cannot be set is closed the other way
            drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
        }
    }
}

/// Three questions, a third of `idle` apart but at least 1 s, decide.
fn keep_alive(stream: &TcpStream, idle: Duration) -> io::Result<()> {
    let interval = (idle / 3).max(Duration::from_secs(1));
    let socket = SockRef::from(stream);
    let options = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3);
    socket.set_tcp_keepalive(&options)?;
    // the same bound for what was sent and is not acknowledged (TCP_USER_TIMEOUT, tcp(7))
    socket.set_tcp_user_timeout(Some(idle + interval * 3))
}

impl AsyncRead for BackendStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for BackendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
