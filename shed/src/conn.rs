//! A connection that is served, with its permit.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{drain, permit::Permit, reason::Cause, registry::Registered};

/// A connection: reads and writes as its socket does, errors untouched, and counts bytes.
#[derive(Debug)]
pub struct ShedStream {
    // first, so that a drain leaves the descriptor alone before close(2)
    registered: Registered,
    // then, so that close(2) comes before the permit is given back
    stream: TcpStream,
    peer: SocketAddr,
    permit: Permit,
}

impl ShedStream {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr, permit: Permit) -> Self {
        let registered = Registered::new(permit.shared(), &stream);
        Self { registered, stream, peer, permit }
    }

    /// Whose connection it is.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The address it was accepted on.
    ///
    /// # Errors
    /// getsockname(2) fails.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Its socket, for options.
    #[must_use]
    pub fn get_ref(&self) -> &TcpStream {
        &self.stream
    }

    /// Its permit, to say why it ends.
    pub fn permit(&mut self) -> &mut Permit {
        &mut self.permit
    }

    /// Ends when the listener is about to close, for handlers to finish early: a server of HTTP ends
    /// what is idle then, and says `Connection: close` to the others. Where it never
    /// [drains](crate::Handle::drain), it ends when nothing of the listener is left.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        drain::told(self.registered.shared())
    }

    /// The socket and its permit, which has to be kept until the socket is closed. The deadline of a
    /// drain does not reset such a socket.
    pub fn into_parts(self) -> (TcpStream, Permit) {
        (self.stream, self.permit)
    }

    /// Counts what a write gave, and passes it on.
    fn wrote(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Ok(n) => self.permit.wrote(*n),
            Err(_) => self.permit.ends_by(Cause::Error),
        }
        result
    }
}

impl AsyncRead for ShedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        match (&result, buf.filled().len() - before) {
            (Ok(()), 0) if room != 0 => self.permit.ends_by(Cause::Peer),
            (Ok(()), n) => self.permit.read(n),
            (Err(_), _) => self.permit.ends_by(Cause::Error),
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for ShedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.wrote(result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.wrote(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
