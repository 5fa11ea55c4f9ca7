//! A connection that is served, with its permit.

use std::{
    error::Error,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    budget::Budget,
    close,
    deadline::cell::Loan,
    drain,
    permit::{Moved, Permit},
    reason::{Cause, Reason},
    registry::Registered,
};

/// A connection: reads and writes as its socket does, errors untouched, and counts bytes. It is
/// ended when it takes longer than the listener's [`Deadlines`](crate::Deadlines) have it, even
/// while nobody reads or writes.
///
/// Bytes are added to the listener's counters with each write, when a read has to wait, after 64
/// KiB, and at its end: what was read while whoever serves it is busy is all that may be missing
/// there.
#[derive(Debug)]
pub struct ShedStream {
    // these first, so that a drain and the wheel have done with the socket before it is closed
    registered: Registered,
    loan: Option<Loan>,
    // before the permit, so that close(2) comes before that is given back
    stream: TcpStream,
    peer: SocketAddr,
    raw_peer: SocketAddr,
    /// Bytes of this request, and how many it may have.
    request: u64,
    max_request: u64,
    budget: Budget,
    permit: Permit,
}

/// Why reads fail: a request is larger than it may be. Writes go on, so that it can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OversizedRequest {
    /// The bytes it may have.
    pub limit: u64,
}

impl fmt::Display for OversizedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request is too large, expected at most {} bytes", self.limit)
    }
}

impl Error for OversizedRequest {}

impl ShedStream {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr, mut permit: Permit) -> Self {
        let registered = Registered::new(permit.shared(), &stream);
        let loan = permit.watch(&stream);
        let (raw_peer, budget, max_request) = (peer, Budget::ENDLESS, permit.max_request());
        Self { registered, loan, stream, peer, raw_peer, request: 0, max_request, budget, permit }
    }

    /// The connection, passed on by a proxy for `peer`.
    pub(crate) fn on_behalf_of(self, peer: SocketAddr) -> Self {
        Self { peer, ..self }
    }

    /// Whose connection it is; where a proxy passed it on, who it did that for.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The other end of its socket: the proxy, where there is one.
    #[must_use]
    pub fn raw_peer_addr(&self) -> SocketAddr {
        self.raw_peer
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

    /// Ends when the listener is about to close, for handlers to finish early: a server of HTTP
    /// ends what is idle then, and says `Connection: close` to the others. Where it never
    /// [drains](crate::Handle::drain), it ends when nothing of the listener is left.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        drain::told(self.registered.shared())
    }

    /// The socket and its permit, which has to be kept until the socket is closed. Its deadlines
    /// end here, but that of the kernel for a stalled write, and bytes are counted no longer; the
    /// deadline of a drain does not reset such a socket.
    pub fn into_parts(self) -> (TcpStream, Permit) {
        let Self { registered, loan, stream, mut permit, .. } = self;
        drop((registered, loan));
        permit.unwatch();
        (stream, permit)
    }

    /// Bytes that were read and written so far.
    #[must_use]
    pub fn moved(&self) -> Moved {
        self.permit.moved()
    }

    /// The handshake is done: the header of the first request is expected next.
    pub fn handshake_done(&mut self) {
        if let Some((watcher, cell)) = self.permit.watched() {
            watcher.handshake_done(cell);
        }
    }

    /// The header of a request was read.
    pub fn header_done(&mut self) {
        if let Some((watcher, cell)) = self.permit.watched() {
            watcher.header_done(cell);
        }
    }

    /// A request was read and answered: its size and its budget end here, and the next one begins
    /// with the next byte that is read. After one that was too large there is none: bytes of it
    /// were lost, and reads fail for good.
    pub fn request_done(&mut self) {
        if self.check_size().is_ok() {
            self.request = 0;
        }
        self.budget = Budget::ENDLESS;
        if let Some((watcher, cell)) = self.permit.watched() {
            watcher.request_done(cell);
        }
    }

    /// Whoever reads it tells nothing of its requests: they have neither a deadline for a header
    /// nor a size.
    #[cfg(any(feature = "axum", feature = "tls"))]
    pub(crate) fn hide_requests(&mut self) {
        self.max_request = u64::MAX;
        self.header_done();
    }

    /// The deadline for all that is done for this connection at the moment: the one that was begun
    /// for the request, and in any case the connection's lifetime.
    #[must_use]
    pub fn budget(&self) -> Budget {
        self.budget.min(self.permit.lifetime())
    }

    /// Gives the request `time` from this moment on, until [`request_done`](Self::request_done),
    /// and no more than the connection has.
    pub fn begin_budget(&mut self, time: Duration) -> Budget {
        self.budget = Budget::of(time);
        self.budget()
    }

    /// Whether a deadline ended it.
    fn check_time(&self) -> io::Result<()> {
        match self.permit.timed_out() {
            None => Ok(()),
            Some(err) => Err(io::Error::new(io::ErrorKind::TimedOut, err)),
        }
    }

    /// Whether the request is as large as it may be.
    fn check_size(&self) -> io::Result<()> {
        let limit = self.max_request;
        if self.request <= limit {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, OversizedRequest { limit }))
    }

    /// Counts what a read gave, and passes it on.
    fn was_read(&mut self, result: io::Result<usize>, is_asked: bool) -> io::Result<()> {
        match result {
            Ok(0) => {
                self.check_time()?;
                if is_asked {
                    self.permit.ends_by(Cause::Peer);
                }
                Ok(())
            }
            Ok(n) => {
                self.permit.read(n);
                self.request = self.request.saturating_add(n as u64);
                self.check_size().inspect_err(|_| self.permit.oversized())
            }
            Err(err) => Err(self.failed(err)),
        }
    }

    /// Ends it before it is served, for `reason`, with what the listener has for that.
    pub fn shed(self, reason: Reason) {
        // what a deadline or a drain ended already is theirs
        if self.permit.timed_out().is_none() && !self.registered.shared().life.is_over() {
            let (stream, permit) = self.into_parts();
            permit.shed(stream, (reason, None), 0);
        }
    }

    /// Ends it with a reset, which throws away what its peer has not read.
    pub fn reset(self) {
        let (stream, _permit) = self.into_parts();
        // where it fails, the runtime is gone and the socket closed
        if let Ok(stream) = stream.into_std() {
            close::reset(stream.into());
        }
    }

    /// Counts what a write gave, and passes it on.
    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(n)) => {
                self.permit.wrote(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(err)) => Poll::Ready(Err(self.failed(err))),
        }
    }

    /// The error itself, but where a deadline is what made it.
    fn failed(&mut self, err: io::Error) -> io::Error {
        match self.check_time() {
            Ok(()) => {
                self.permit.failed(&err);
                err
            }
            Err(timed_out) => timed_out,
        }
    }
}

impl AsyncRead for ShedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_time()?;
        self.check_size()?;
        let (before, room) = (buf.filled().len(), buf.remaining());
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => {
                self.permit.fold();
                Poll::Pending
            }
            Poll::Ready(result) => {
                let n = buf.filled().len() - before;
                let result = self.was_read(result.map(|()| n), room != 0);
                if result.is_err() {
                    buf.set_filled(before);
                }
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncWrite for ShedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_time()?;
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_time()?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_time()?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Deadlines, ShedListener};

    const ERRNOS: [i32; 20] = [
        libc::EINTR,
        libc::EIO,
        libc::EBADF,
        libc::ENOMEM,
        libc::EFAULT,
        libc::EINVAL,
        libc::EPIPE,
        libc::EPROTO,
        libc::EMSGSIZE,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::ENETRESET,
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::ENOBUFS,
        libc::ENOTCONN,
        libc::ETIMEDOUT,
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::EPERM,
    ];

    #[tokio::test]
    async fn errors_pass_untouched() {
        let stall = Deadlines { write_stall: Some(Duration::from_secs(9)), ..Deadlines::default() };
        for deadlines in [Deadlines::default(), stall] {
            let mut listener =
                ShedListener::bind("127.0.0.1:0").deadlines(deadlines).build().expect("a listener");
            let (address, handle) = (listener.local_addr(), listener.handle());
            for (errno, is_read) in ERRNOS.into_iter().flat_map(|it| [(it, true), (it, false)]) {
                let _client = std::net::TcpStream::connect(address).expect("queued");
                let mut conn = listener.accept().await.expect("it is queued");
                let err = || Err(io::Error::from_raw_os_error(errno));
                let got = match is_read {
                    true => conn.was_read(err(), true).err(),
                    false => match conn.wrote(Poll::Ready(err())) {
                        Poll::Ready(result) => result.err(),
                        Poll::Pending => None,
                    },
                };
                let got = got.expect("an error");
                assert_eq!(got.raw_os_error(), Some(errno), "{got}");
                assert_eq!(got.kind(), io::Error::from_raw_os_error(errno).kind(), "{got}");
            }
            let stats = handle.stats();
            let stalled = if deadlines == stall { 2 } else { 0 };
            assert_eq!(stats.timeouts_of(crate::Deadline::WriteStall), stalled, "{stats:?}");
            assert_eq!(stats.closed_for(Cause::Deadline), stalled, "{stats:?}");
            assert_eq!(stats.closed_for(Cause::Error), 40 - stalled, "{stats:?}");
        }
    }
}
