//! `axum::serve` takes the listeners.
//!
//! Its listeners return no error: one that can accept nothing more waits for ever. It takes no
//! processor then, its socket is closed, so that clients are refused and do not queue,
//! [`Handle::is_ready`](crate::Handle::is_ready) is false, and
//! [`Handle::fatal`](crate::Handle::fatal) and [`Handle::ended`](crate::Handle::ended) end. A
//! server is to shut down by the latter:
//!
//! ```no_run
//! # async fn serve(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//! let listener = backlogd_shed::ShedListener::bind("[::]:8080").build()?;
//! let handle = listener.handle();
//! let ended = async move { drop(handle.ended().await) };
//! axum::serve(listener, app).with_graceful_shutdown(ended).await?;
//! # Ok(())
//! # }
//! ```
//!
//! hyper has the streams, and tells nothing of requests. So of connections that come this way,
//! [`Deadlines::header`](crate::Deadlines::header) and
//! [`Builder::max_request_bytes`](crate::Builder::max_request_bytes) are off, and so is
//! [`Deadlines::handshake`](crate::Deadlines::handshake) where there is no TLS;
//! [`Deadlines::min_rate`](crate::Deadlines::min_rate) counts the time between two requests, too.
//! hyper's `header_read_timeout`, in a server that is not `axum::serve`, and axum's
//! `DefaultBodyLimit` are for that. All other deadlines hold.
//!
//! For [`Adaptive::Gradient`](crate::adaptive::Adaptive::Gradient), a middleware says how long
//! requests take, by [`Handle::sample`](crate::Handle::sample):
//!
//! ```no_run
//! use std::time::Instant;
//! use axum::{extract::Request, middleware::{self, Next}};
//!
//! # fn measured(app: axum::Router, handle: backlogd_shed::Handle) -> axum::Router {
//! app.layer(middleware::from_fn(move |request: Request, next: Next| {
//!     let handle = handle.clone();
//!     async move {
//!         let begun = Instant::now();
//!         let response = next.run(request).await;
//!         handle.sample(begun.elapsed());
//!         response
//!     }
//! }))
//! # }
//! ```

use std::{future, io, net::SocketAddr};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};

use crate::{conn::ShedStream, listener::ShedListener, thread::Accepted};

/// Whose connection a request came by: `ConnectInfo<PeerAddr>` in a handler, where the server was
/// made by `into_make_service_with_connect_info::<PeerAddr>()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

impl Listener for ShedListener {
    type Io = ShedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ShedStream, SocketAddr) {
        // the listener's own accept, not this one
        match Self::accept(self).await {
            Ok(conn) => with_peer(conn),
            // its socket is closed
            Err(_) => future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(Self::local_addr(self))
    }
}

impl Listener for Accepted {
    type Io = ShedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ShedStream, SocketAddr) {
        match Self::accept(self).await {
            Ok(conn) => with_peer(conn),
            // the thread has closed the socket
            Err(_) => future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(Self::local_addr(self))
    }
}

/// What hyper gets, which tells nothing of requests.
fn with_peer(mut conn: ShedStream) -> (ShedStream, SocketAddr) {
    conn.hide_requests();
    let peer = conn.peer_addr();
    (conn, peer)
}

impl Connected<IncomingStream<'_, ShedListener>> for PeerAddr {
    fn connect_info(stream: IncomingStream<'_, ShedListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Connected<IncomingStream<'_, Accepted>> for PeerAddr {
    fn connect_info(stream: IncomingStream<'_, Accepted>) -> Self {
        Self(*stream.remote_addr())
    }
}

#[cfg(feature = "tls")]
mod tls {
    use tokio::io::{AsyncRead, AsyncWrite};

    use super::{Connected, IncomingStream, Listener, PeerAddr, SocketAddr, future, io};
    use crate::tls::TlsListener;

    impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Listener for TlsListener<S> {
        type Io = S;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (S, SocketAddr) {
            self.hide_requests();
            match Self::accept(self).await {
                Ok(accepted) => accepted,
                Err(_) => future::pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(Self::local_addr(self))
        }
    }

    impl<S> Connected<IncomingStream<'_, TlsListener<S>>> for PeerAddr
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        fn connect_info(stream: IncomingStream<'_, TlsListener<S>>) -> Self {
            Self(*stream.remote_addr())
        }
    }
}
