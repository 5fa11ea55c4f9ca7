//! The HTTP servers: what they listen on, and how they end.

use std::{
    future, io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
};

use axum::{Router, serve::Listener};
use backlogd_shed::Owner;
use tokio::sync::watch;

use super::{DaemonError, failed};

/// Takes the address for scrapes.
pub(super) fn bind_tcp(addr: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(addr).map_err(|source| {
        let is_in_use = source.kind() == io::ErrorKind::AddrInUse;
        let owner = is_in_use.then(|| Owner::of_listener(addr)).flatten();
        DaemonError::Listen { addr, owner, source }
    })
}

/// How far the servers are with their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    #[default]
    Serving,
    /// Somebody else accepts scrapes from the same socket; those that were accepted here are
    /// answered.
    Leaving,
    /// Connections without a request are closed, though one may be under way.
    Stopped,
}

/// What the servers listen on.
pub(super) struct Listeners {
    pub(super) tcp: TcpListener,
    pub(super) unix: Option<UnixListener>,
}

impl Listeners {
    /// The address for scrapes, and the servers: they answer by `router` until `ending` says
    /// otherwise, and end with the last request. To be called within the runtime.
    pub(super) fn serve(
        self,
        router: Router,
        ending: watch::Receiver<Ending>,
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
        let tcp = Leaves { listener: tcp, ending: ending.clone() };
        let serve_tcp =
            axum::serve(tcp, router.clone()).with_graceful_shutdown(stopped(ending.clone()));
        let serve_unix = async {
            match unix {
                Some(unix) => {
                    axum::serve(unix, router).with_graceful_shutdown(stopped(ending)).await
                }
                None => Ok(()),
            }
        };
        Ok((listen, async { tokio::try_join!(serve_tcp, serve_unix).map(drop) }))
    }
}

async fn stopped(mut ending: watch::Receiver<Ending>) {
    // an error: nobody is left to say more
    drop(ending.wait_for(|it| *it == Ending::Stopped).await);
}

/// Accepts until it is to leave.
struct Leaves {
    listener: tokio::net::TcpListener,
    ending: watch::Receiver<Ending>,
}

impl Listener for Leaves {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let Self { listener, ending } = self;
        tokio::select! {
            biased;
            Ok(_) = ending.wait_for(|it| Ending::Leaving <= *it) => {}
            accepted = Listener::accept(listener) => return accepted,
        }
        future::pending().await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
