//! Those who are served while others are shed: once a burst is over, their requests take no longer
//! than where none was.

#![expect(clippy::print_stderr, reason = "numbers that only a bench could judge are for a person")]

#[path = "overload/crowd.rs"]
mod crowds;
#[path = "overload/space.rs"]
mod space;
mod stats;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use backlogd_shed::{Handle, Reason, ShedListener};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task,
};

use crate::{
    crowds::Crowd,
    space::{first_in_own_space, limit_descriptors, netstat},
};

/// The limit, and as many are served all the time.
const SOFT: usize = 1_000;
/// Clients of a burst, in four processes.
const BURST: usize = 9_000;
const BURSTS: usize = 12;
/// Rounds of requests before a burst, and after it.
const ROUNDS: usize = 4;
/// Requests of each connection in a round.
const EACH: usize = 4;

/// A listener at its limit.
struct Full {
    address: SocketAddr,
    handle: Handle,
    served: Arc<Vec<TcpStream>>,
}

impl Full {
    async fn start() -> Self {
        let mut listener =
            ShedListener::bind("127.0.0.1:0").soft(SOFT).build().expect("a listener");
        let (address, handle) = (listener.local_addr(), listener.handle());
        tokio::spawn(async move {
            while let Ok(mut conn) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(byte) = conn.read_u8().await {
                        if conn.write_u8(byte).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let connect = move || {
            let one = |_| {
                let client = TcpStream::connect(address).expect("queued");
                client.set_nodelay(true).expect("an option");
                client
            };
            (0..SOFT).map(one).collect()
        };
        let served = Arc::new(task::spawn_blocking(connect).await.expect("clients"));
        stats::until(&handle, |stats| stats.open == SOFT as u64).await;
        Self { address, handle, served }
    }

    /// Of a round of requests by all who are served, one after the other: the time that 99 of a
    /// hundred are below.
    async fn p99(&self) -> Duration {
        let served = Arc::clone(&self.served);
        let requests = move || {
            let mut times = Vec::with_capacity(EACH * SOFT);
            for _ in 0..EACH {
                for mut client in served.iter() {
                    let begun = Instant::now();
                    client.write_all(b"x").expect("served");
                    client.read_exact(&mut [0]).expect("served");
                    times.push(begun.elapsed());
                }
            }
            times.sort_unstable();
            times[times.len() * 99 / 100]
        };
        task::spawn_blocking(requests).await.expect("requests")
    }

    /// A burst of clients, all of whom are shed; returns when it is over.
    async fn burst(&self, mut crowd: Crowd) {
        let (address, before) = (self.address, self.handle.stats().shed_for(Reason::Soft));
        let seen = task::spawn_blocking(move || crowd.go(address, Duration::from_secs(10)));
        let seen = seen.await.expect("clients");
        assert_eq!((seen.n_served, seen.ends.len(), seen.n_hanging), (0, BURST, 0), "{seen}");
        let all = before + BURST as u64;
        stats::until(&self.handle, |stats| stats.shed_for(Reason::Soft) == all).await;
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Not a test: what a client's process does.
#[test]
fn crowd() {
    crowds::be();
}

/// Two listeners serve a thousand each. Time and again the one is asked, then the other is hit by a
/// burst and, when that is over, asked as often: 192,000 requests to each. The medians of the
/// rounds' p99 are compared, coarsely: what a tenth is, a bench tells (`cargo xtask bench shed`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kernel: needs root"]
async fn once_a_burst_is_over_requests_take_no_longer_than_where_none_was() {
    if first_in_own_space("once_a_burst_is_over_requests_take_no_longer_than_where_none_was") {
        return;
    }
    limit_descriptors(16_384, 16_384);
    let (calm, hit) = (Full::start().await, Full::start().await);
    let (mut without, mut after) = (Vec::new(), Vec::new());
    for _ in 0..BURSTS {
        let crowd = Crowd::new(4, BURST / 4);
        for _ in 0..ROUNDS {
            without.push(calm.p99().await);
        }
        hit.burst(crowd).await;
        for _ in 0..ROUNDS {
            after.push(hit.p99().await);
        }
    }
    let (without, after) = (median(without), median(after));
    let ratio = after.as_secs_f64() / without.as_secs_f64();
    eprintln!(
        "p99 of requests: {without:?} without a burst, {after:?} after one, ratio {ratio:.3}"
    );
    assert!(ratio <= 2.0, "{ratio:.3}: {without:?} without, {after:?} after");
    assert_eq!(netstat("ListenDrops"), 0);
    let stats = hit.handle.stats();
    assert_eq!((stats.open, stats.admitted), (SOFT as u64, SOFT as u64), "{stats:?}");
    stats::check_identities(&stats);
}
