//! Clients that connect, say a byte, have it said back, and close, again and again.

#![allow(dead_code, reason = "each test takes what it needs")]

#[path = "../stats/mod.rs"]
mod stats;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use backlogd_shed::{Handle, ShedListener, Stats};
#[allow(unused_imports, reason = "each test takes what it needs")]
pub(crate) use stats::check_identities;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time,
};

/// What a shed connection is told, so that it is told from one that was cut off.
pub(crate) const SHED: &str = "S";

/// What became of the clients.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) served: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) reset: AtomicU64,
    pub(crate) hung: AtomicU64,
    /// Clients that are served at this moment, and how many at most were at once.
    inside: AtomicU64,
    pub(crate) most_inside: AtomicU64,
}

impl Counts {
    /// Served, shed, refused, reset, hung.
    pub(crate) fn all(&self) -> [u64; 5] {
        [&self.served, &self.shed, &self.refused, &self.reset, &self.hung]
            .map(|it| it.load(Ordering::SeqCst))
    }
}

pub(crate) struct Load {
    pub(crate) counts: Arc<Counts>,
    is_over: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// `n` clients at a time; each waits for `pause` between two connections.
    pub(crate) fn start(address: SocketAddr, n: usize, pause: Duration) -> Self {
        Self::start_holding(address, n, pause, Duration::ZERO)
    }

    /// Each is served for `hold` at least.
    pub(crate) fn start_holding(
        address: SocketAddr,
        n: usize,
        pause: Duration,
        hold: Duration,
    ) -> Self {
        let (counts, is_over) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for _ in 0..n {
            let (counts, is_over) = (Arc::clone(&counts), Arc::clone(&is_over));
            clients.spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    let count =
                        match time::timeout(Duration::from_secs(5), visit(address, &counts, hold))
                            .await
                        {
                            Ok(Ok(b'S')) => &counts.shed,
                            Ok(Ok(_)) => &counts.served,
                            Ok(Err(err)) if err.kind() == io::ErrorKind::ConnectionRefused => {
                                &counts.refused
                            }
                            Ok(Err(_)) => &counts.reset,
                            Err(_) => &counts.hung,
                        };
                    count.fetch_add(1, Ordering::SeqCst);
                    time::sleep(pause).await;
                }
            });
        }
        Self { counts, is_over, clients }
    }

    pub(crate) async fn until_served(&self, n: u64) {
        let end = Instant::now() + Duration::from_secs(20);
        let goal = self.counts.all()[0] + n;
        while self.counts.all()[0] < goal {
            assert!(Instant::now() < end, "{:?}", self.counts);
            time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends it when all that go on have ended.
    pub(crate) async fn stop(mut self) -> [u64; 5] {
        self.is_over.store(true, Ordering::SeqCst);
        while self.clients.join_next().await.is_some() {}
        self.counts.all()
    }

    /// Ends it with those that still connect.
    pub(crate) async fn abort(mut self) -> [u64; 5] {
        self.clients.shutdown().await;
        self.counts.all()
    }
}

async fn visit(address: SocketAddr, counts: &Counts, hold: Duration) -> io::Result<u8> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"x").await?;
    let byte = stream.read_u8().await?;
    // no TIME_WAIT, or the ports of one host are not enough
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    if byte == b'x' && !hold.is_zero() {
        // whoever has its byte back and did not close is admitted
        let inside = counts.inside.fetch_add(1, Ordering::SeqCst) + 1;
        counts.most_inside.fetch_max(inside, Ordering::SeqCst);
        time::sleep(hold).await;
        counts.inside.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(byte)
}

/// Says back what is said, until each peer closes.
pub(crate) async fn serve(mut listener: ShedListener) {
    while let Ok(mut conn) = listener.accept().await {
        tokio::spawn(async move {
            while let Ok(byte) = conn.read_u8().await {
                if conn.write_u8(byte).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Waits until `is_so`, at most 10 s.
pub(crate) async fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    stats::within(Duration::from_secs(10), handle, is_so).await
}
