//! The listeners as streams of connections.
//!
//! A stream ends where the listener is closed. Where it fails for ever, it yields the error, and
//! ends: who ignores errors does not turn. The socket is closed then.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::mpsc;

#[cfg(feature = "tls")]
use crate::tls::TlsListener;
use crate::{
    accept::AcceptError, conn::ShedStream, handle::Handle, listener::ShedListener, thread::Accepted,
};

/// What a listener admits. Made by [`ShedListener::into_stream`]; for streams `S` over TLS, by
/// `TlsListener::into_stream`.
pub struct ShedIncoming<S = ShedStream> {
    /// Has the listener, until it ends, and puts what it admits into the channel.
    accepting: Option<Pin<Box<dyn Future<Output = AcceptError> + Send>>>,
    admitted: mpsc::Receiver<S>,
    local: SocketAddr,
    handle: Handle,
}

impl ShedListener {
    /// The connections that are admitted, as a stream, which allocates nothing for each of them.
    #[must_use]
    pub fn into_stream(self) -> ShedIncoming {
        let (sender, admitted) = mpsc::channel(1);
        let (local, handle) = (self.local_addr(), self.handle());
        let accepting = Some(Box::pin(accept(self, sender)) as _);
        ShedIncoming { accepting, admitted, local, handle }
    }
}

/// Accepts one whenever there is room for it, that is, when the stream is polled.
async fn accept(mut listener: ShedListener, sender: mpsc::Sender<ShedStream>) -> AcceptError {
    loop {
        let Ok(place) = sender.reserve().await else { return AcceptError::Closed };
        match listener.accept().await {
            Ok(conn) => place.send(conn),
            Err(err) => return err,
        }
    }
}

#[cfg(feature = "tls")]
impl<S: Send + 'static> TlsListener<S> {
    /// The streams of peers that are done with their handshakes, as a stream.
    #[must_use]
    pub fn into_stream(self) -> ShedIncoming<S> {
        let (sender, admitted) = mpsc::channel(1);
        let (local, handle) = (self.local_addr(), self.handle());
        let accepting = Some(Box::pin(accept_tls(self, sender)) as _);
        ShedIncoming { accepting, admitted, local, handle }
    }
}

#[cfg(feature = "tls")]
async fn accept_tls<S: Send + 'static>(
    mut listener: TlsListener<S>,
    sender: mpsc::Sender<S>,
) -> AcceptError {
    loop {
        let Ok(place) = sender.reserve().await else { return AcceptError::Closed };
        match listener.accept().await {
            Ok((stream, _)) => place.send(stream),
            Err(err) => return err,
        }
    }
}

impl<S> ShedIncoming<S> {
    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What watches and steers the listener from elsewhere.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl<S> Stream for ShedIncoming<S> {
    type Item = Result<S, AcceptError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(accepting) = &mut self.accepting else { return Poll::Ready(None) };
        if let Poll::Ready(err) = accepting.as_mut().poll(cx) {
            // it came back for room that it did not use: the channel is empty
            self.accepting = None;
            return Poll::Ready(failure(err));
        }
        self.admitted.poll_recv(cx).map(|conn| conn.map(Ok))
    }
}

impl Stream for Accepted {
    type Item = Result<ShedStream, AcceptError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_at_end {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_accept(cx)).map_or_else(failure, |conn| Some(Ok(conn)));
        self.is_at_end = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }
}

/// What a stream yields last, if anything.
fn failure<S>(err: AcceptError) -> Option<Result<S, AcceptError>> {
    match err {
        AcceptError::Closed => None,
        AcceptError::Fatal(_) => Some(Err(err)),
    }
}

impl<S> fmt::Debug for ShedIncoming<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShedIncoming")
            .field("local", &self.local)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
