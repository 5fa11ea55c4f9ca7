//! The listener asks itself: a connection through its own socket, which its accept loop knows by
//! the address that it comes from, and ends at once.

use std::{
    future, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpSocket, time};

use crate::{accept::is_without_descriptors, shared::Shared};

/// One that nobody accepts is given up after so long; until then there is no second one, which
/// would be queued behind it.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Which connection is a probe, how many were accepted, and how many were not even sent.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// The port of the one below; 0: there is none. All that other connections are asked for.
    port: AtomicU32,
    from: Mutex<Option<SocketAddr>>,
    accepted: AtomicU64,
    unsent: AtomicU64,
    /// Those of them for which there was no descriptor.
    refused: AtomicU64,
}

impl Probe {
    /// Whether the connection from `peer` is the probe, which is counted then.
    pub(crate) fn is_from(&self, peer: SocketAddr) -> bool {
        if self.port.load(Ordering::Acquire) != u32::from(peer.port()) {
            return false;
        }
        let from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        let is_probe =
            from.is_some_and(|it| it.port() == peer.port() && it.ip() == peer.ip().to_canonical());
        if is_probe {
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
        is_probe
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Probes that could not be sent, for want of something that the accept loop has no part in.
    pub(super) fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }

    /// Probes for which there was no descriptor.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Counts a probe that failed by `err`, where that says nothing of the accept loop.
    fn failed(&self, err: &io::Error) {
        if wants(err) {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
        if is_without_descriptors(err) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn set(&self, from: Option<SocketAddr>) {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = from;
        self.port.store(from.map_or(0, |it| it.port().into()), Ordering::Release);
    }
}

/// Forgets the address when the probe ends, however it does.
struct Announced<'a>(&'a Probe);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Where a listener at `local` is reached from its own host.
pub(super) fn target(local: SocketAddr) -> SocketAddr {
    let ip = match local.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    match local {
        SocketAddr::V4(_) => SocketAddr::new(ip, local.port()),
        SocketAddr::V6(mut it) => {
            if let IpAddr::V6(ip) = ip {
                it.set_ip(ip);
            }
            it.into()
        }
    }
}

/// Probes for ever, `every` so often after the last one was accepted; not while another generation
/// has the socket, and may be the one that accepts it.
pub(super) async fn run(shared: &Shared, target: SocketAddr, every: Duration) {
    loop {
        if shared.is_closed() {
            return future::pending().await;
        }
        if !shared.gate.words().others_listen() {
            // any other failure shows as silence
            if let Ok(Err(err)) = time::timeout(GIVE_UP, once(&shared.probe, target)).await {
                shared.probe.failed(&err);
            }
        }
        time::sleep(every).await;
    }
}

/// Whether `err` is want of a descriptor, memory or a port: nothing was sent then. bind(2) without a
/// port says `EADDRINUSE` when none is left, connect(2) `EADDRNOTAVAIL`.
fn wants(err: &io::Error) -> bool {
    let of_ports = [libc::EADDRINUSE, libc::EADDRNOTAVAIL].map(Some);
    let of_memory = [libc::ENOBUFS, libc::ENOMEM].map(Some);
    let errno = err.raw_os_error();
    is_without_descriptors(err) || of_memory.contains(&errno) || of_ports.contains(&errno)
}

/// Connects, and waits until it is ended.
async fn once(probe: &Probe, target: SocketAddr) -> io::Result<()> {
    let (socket, mut from) = match target {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, target),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, target),
    };
    from.set_port(0);
    socket.bind(from)?;
    let from = socket.local_addr()?;
    let _announced = Announced(probe);
    probe.set(Some(SocketAddr::new(from.ip().to_canonical(), from.port())));
    let stream = socket.connect(target).await?;
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0]) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            _ => return Ok(()),
        }
    }
}
