//! Clients from addresses of 127.0.0.0/8, a server that says who it takes them for, and what
//! becomes of both.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    io::{self, ErrorKind, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{
    Builder, Candidate, Cause, Cidr, Decide, Handle, Load, ShedListener, Stage, Stats, Verdict,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task,
};

/// Waits until `is_so`, at most 5 s.
pub(crate) async fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let stats = handle.stats();
        if is_so(&stats) {
            return stats;
        }
        assert!(Instant::now() < end, "{stats:?}");
        // a task, so that clocks of tests do not move on
        task::spawn_blocking(|| thread::sleep(Duration::from_millis(1))).await.expect("a wait");
    }
}

/// Both identities; everything at rest and given back.
pub(crate) async fn check_end(handle: &Handle) -> Stats {
    let stats = until(handle, |it| it.open == 0 && it.lingering == 0).await;
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!(stats.admitted, closed + stats.open, "{stats:?}");
    assert_eq!(stats.closed_for(Cause::Shed), stats.shed_at(Stage::Handshake), "{stats:?}");
    assert_eq!((stats.exempt_open, stats.handshaking), (0, 0), "{stats:?}");
    stats
}

pub(crate) fn bind() -> Builder {
    ShedListener::bind("127.0.0.1:0")
}

pub(crate) fn range(text: &str) -> Cidr {
    text.parse().expect("a range")
}

/// Serves in tasks: says who the peer is and what it sent so far, until it closes.
pub(crate) fn serve(builder: Builder) -> (SocketAddr, Handle, task::JoinHandle<()>) {
    let mut listener = builder.build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let server = tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            tokio::spawn(async move {
                let name = format!("{} {} ", conn.peer_addr(), conn.raw_peer_addr().ip());
                if conn.write_all(name.as_bytes()).await.is_ok() {
                    let mut buffer = [0; 1_024];
                    while let Ok(n @ 1..) = conn.read(&mut buffer).await {
                        if conn.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, handle, server)
}

/// A connection from `from`, any of 127.0.0.0/8.
pub(crate) fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    try_connect(from, to).expect("queued")
}

/// The same for one that may be shed: the reset may be quicker than connect(2).
pub(crate) fn try_connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// How `n` connections from `from` fare, in turn: `Ok` is served.
pub(crate) async fn connect_in_turn(
    from: Ipv4Addr,
    to: SocketAddr,
    n: usize,
) -> Vec<Result<TcpStream, ErrorKind>> {
    task::spawn_blocking(move || {
        (0..n)
            .map(|_| {
                let mut client = try_connect(from, to).map_err(|err| err.kind())?;
                client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                match client.read(&mut [0; 64]) {
                    Ok(0) => Err(ErrorKind::UnexpectedEof),
                    Ok(_) => Ok(client),
                    Err(err) => Err(err.kind()),
                }
            })
            .collect()
    })
    .await
    .expect("clients")
}

pub(crate) fn n_served(results: &[Result<TcpStream, ErrorKind>]) -> usize {
    assert!(results.iter().all(|it| it.is_ok() || matches!(it, Err(ErrorKind::ConnectionReset))));
    results.iter().filter(|it| it.is_ok()).count()
}

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Refuses every other one, and keeps in mind who was asked about.
#[derive(Clone, Default)]
pub(crate) struct EveryOther(pub(crate) Arc<Mutex<Vec<SocketAddr>>>);

impl Decide for EveryOther {
    fn decide(&self, candidate: &Candidate<'_>, _: &Load) -> Verdict {
        let mut asked = self.0.lock().expect("no panic");
        asked.push(candidate.peer);
        if asked.len().is_multiple_of(2) { Verdict::Shed(None) } else { Verdict::Admit }
    }
}
