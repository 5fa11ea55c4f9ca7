//! The HTTP servers: what they listen on, and how they end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
};

use axum::Router;
use tokio::sync::watch;

use super::{DaemonError, failed};

/// Takes the address for scrapes.
pub(super) fn bind_tcp(addr: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(addr).map_err(|source| DaemonError::Listen { addr, source })
}

/// What the servers listen on.
pub(super) struct Listeners {
    pub(super) tcp: TcpListener,
    pub(super) unix: Option<UnixListener>,
}

impl Listeners {
    /// The address for scrapes, and the servers: they answer by `router` until `stopped` changes,
    /// and end with the last request. To be called within the runtime.
    pub(super) fn serve(
        self,
        router: Router,
        stopped: watch::Receiver<()>,
    ) -> Result<(SocketAddr, impl Future<Output = io::Result<()>>), DaemonError> {
        self.tcp.set_nonblocking(true).map_err(failed("the server"))?;
        let tcp = tokio::net::TcpListener::from_std(self.tcp).map_err(failed("the server"))?;
        let unix = self
            .unix
            .map(tokio::net::UnixListener::from_std)
            .transpose()
            .map_err(failed("the server on the Unix socket"))?;
        // not as configured: port 0 is any free one
        let listen = tcp.local_addr().map_err(failed("the server"))?;
        let serve_tcp =
            axum::serve(tcp, router.clone()).with_graceful_shutdown(until(stopped.clone()));
        let serve_unix = async {
            match unix {
                Some(unix) => {
                    axum::serve(unix, router).with_graceful_shutdown(until(stopped)).await
                }
                None => Ok(()),
            }
        };
        Ok((listen, async { tokio::try_join!(serve_tcp, serve_unix).map(drop) }))
    }
}

async fn until(mut stopped: watch::Receiver<()>) {
    drop(stopped.changed().await);
}
