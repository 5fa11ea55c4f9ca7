//! Thousands of clients: all of those above the limit learn it at once, none hangs, and nothing is
//! lost between the kernel's counts, ours and theirs.
//!
//! Clients are processes of their own: this program again, with a test that does nothing unless it
//! is told to. Each server has a network namespace of its own, which is the whole program's: a test
//! starts itself again in one.

#![expect(clippy::print_stderr, reason = "numbers that only a bench could judge are for a person")]

#[path = "overload/crowd.rs"]
mod crowds;
#[path = "overload/space.rs"]
mod space;
mod stats;

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{
    Candidate, Cause, Decide, Handle, OnShed, PerIp, ProxyProtocol, Rate, Reason, ShedListener,
    Stage, Stats, Verdict,
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Semaphore,
    task, time,
};

use crate::{
    crowds::{Crowd, Seen},
    space::{first_in_own_space, in_own_space, netstat, passive_opens, resets, time_waits},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Serves until each peer closes, in tasks.
fn serve(mut listener: ShedListener) -> (SocketAddr, Handle) {
    let (address, handle) = (listener.local_addr(), listener.handle());
    tokio::spawn(async move {
        while let Ok(conn) = listener.accept().await {
            tokio::spawn(echo(conn));
        }
    });
    (address, handle)
}

async fn echo(mut conn: impl AsyncRead + AsyncWrite + Unpin) {
    while let Ok(byte) = conn.read_u8().await {
        if conn.write_u8(byte).await.is_err() {
            return;
        }
    }
}

/// Waits until `is_so`, at most [`DEADLINE`].
async fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    stats::within(DEADLINE, handle, is_so).await
}

/// Both identities, and that nothing is open.
fn check_at_rest(stats: &Stats) {
    stats::check_identities(stats);
    let rest = (stats.open, stats.exempt_open, stats.lingering, stats.handshaking);
    assert_eq!(rest, (0, 0, 0, 0), "{stats:?}");
}

/// 10,000 clients in four processes.
async fn come(address: SocketAddr, patience: Duration) -> Seen {
    let clients = task::spawn_blocking(move || Crowd::new(4, 2_500).go(address, patience));
    clients.await.expect("clients")
}

/// Not a test: what a client's process does.
#[test]
fn crowd() {
    crowds::be();
}

/// How soon, coarsely: each client measures from the return of its connect(2) to that of the read(2)
/// that tells it, or from the beginning of a connect(2) that tells it itself. What a millisecond
/// is, a bench tells (`cargo xtask bench shed`): here, clients wait for each other, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kernel: needs root"]
async fn of_ten_thousand_clients_nine_thousand_are_shed_and_none_hangs() {
    if first_in_own_space("of_ten_thousand_clients_nine_thousand_are_shed_and_none_hangs") {
        return;
    }
    let (address, handle) =
        serve(ShedListener::bind("127.0.0.1:0").soft(1_000).build().expect("a listener"));
    let before = netstat("ListenDrops");
    let seen = come(address, Duration::from_secs(15)).await;
    assert_eq!((seen.n_served, seen.ends.len(), seen.n_hanging), (1_000, 9_000, 0), "{seen}");
    assert_eq!(netstat("ListenDrops"), before);
    eprintln!("{seen}");
    assert!(seen.ends.iter().all(|&after| after < Duration::from_secs(1)), "{seen}");
    let stats = until(&handle, |stats| stats.open == 0).await;
    assert_eq!((stats.accepted, stats.shed_for(Reason::Soft)), (10_000, 9_000), "{stats:?}");
    check_at_rest(&stats);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kernel: needs root"]
async fn a_server_that_waits_before_it_accepts_leaves_them_hanging() {
    if first_in_own_space("a_server_that_waits_before_it_accepts_leaves_them_hanging") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    SockRef::from(&listener).listen(4_096).expect("a backlog");
    listener.set_nonblocking(true).expect("a flag");
    let address = listener.local_addr().expect("an address");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(1_000));
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let Ok((conn, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let _permit = permit;
                echo(conn).await;
            });
        }
    });
    let seen = come(address, Duration::from_secs(4)).await;
    assert_eq!((seen.n_served, seen.ends.len()), (1_000, 0), "{seen}");
    assert_eq!(seen.n_hanging, 9_000, "{seen}");
    assert_ne!(netstat("ListenOverflows"), 0);
}

/// From a proxy that leaves in the middle of its header.
fn leave_amid_header(to: SocketAddr) {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.bind(&SocketAddr::from((PROXY, 0)).into()).expect("a port");
    client.connect(&to.into()).expect("queued");
    client.send(b"PROXY TC").expect("room");
}

const PROXY: [u8; 4] = [127, 0, 2, 1];

fn proxies() -> ProxyProtocol {
    ProxyProtocol::from(["127.0.2.0/24".parse().expect("a range")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_a_task_ends_its_permit_comes_back() {
    const N: usize = 500;
    /// Who never get so far as to have a task of the server.
    const N_LEAVE: usize = N / 5;
    let builder = ShedListener::bind("127.0.0.1:0").soft(N + N_LEAVE).proxy_protocol(proxies());
    let mut listener = builder.build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    for round in 1..=20 {
        let clients = task::spawn_blocking(move || {
            (0..N_LEAVE).for_each(|_| leave_amid_header(address));
            connect(address, N)
        });
        let mut aborted = Vec::new();
        for turn in 0..N {
            let conn = time::timeout(DEADLINE, listener.accept()).await.expect("a place");
            let mut conn = conn.expect("admitted");
            let serving = tokio::spawn(async move {
                match turn % 5 {
                    0 => Ok(()),
                    1 => conn.read_u8().await.map(drop),
                    // no message: the hook is for panics that nobody expects
                    2 => std::panic::resume_unwind(Box::new(())),
                    // as after an upgrade: the stream and its permit are somebody else's
                    3 => {
                        let (mut stream, permit) = conn.into_parts();
                        let upgraded = tokio::spawn(async move {
                            let _permit = permit;
                            stream.read_u8().await.map(drop)
                        });
                        upgraded.await.expect("no panic")
                    }
                    _ => std::future::pending().await,
                }
            });
            if turn % 5 == 4 {
                aborted.push(serving);
            }
        }
        drop(clients.await.expect("clients"));
        for serving in aborted {
            serving.abort();
        }
        let n_admitted = round * (N + N_LEAVE) as u64;
        let stats = until(&handle, |stats| stats.admitted == n_admitted && stats.open == 0).await;
        assert_eq!(stats.closed_for(Cause::Panic), round * (N as u64) / 5, "{stats:?}");
        assert_eq!(stats.closed_for(Cause::Shed), round * N_LEAVE as u64, "{stats:?}");
        assert_eq!(stats.shed_at(Stage::Handshake), stats.closed_for(Cause::Shed), "{stats:?}");
        check_at_rest(&stats);
    }
}

/// Refuses every tenth.
struct EveryTenth(AtomicU64);

impl Decide for EveryTenth {
    fn decide(&self, _: &Candidate<'_>, _: &backlogd_shed::Load) -> Verdict {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        if n % 10 == 9 { Verdict::Shed(Some(OnShed::bytes("no"))) } else { Verdict::Admit }
    }
}

/// A client that comes from `from`, says `says` and ends as `turn` has it.
fn visit(from: [u8; 4], to: SocketAddr, says: &[u8], turn: usize) {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.bind(&SocketAddr::from((from, 0)).into()).expect("a port");
    // a reset may be quicker than connect(2), and than what is said
    drop(client.connect(&to.into()));
    drop(client.send(says));
    match turn % 3 {
        // comes and goes
        0 => {}
        // leaves by a reset
        1 => client.set_linger(Some(Duration::ZERO)).expect("an option"),
        _ => {
            client.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
            drop(TcpStream::from(client).read(&mut [0; 64]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kernel: needs root"]
async fn of_a_hundred_thousand_connections_each_is_counted_as_the_kernel_counts_it() {
    if in_own_space("of_a_hundred_thousand_connections_each_is_counted_as_the_kernel_counts_it") {
        return;
    }
    let listener = ShedListener::bind("127.0.0.1:0")
        .soft(3)
        .hard(7)
        .on_shed_for(Reason::Rate, OnShed::Fin)
        .on_shed_for(Reason::Soft, OnShed::http_503())
        .rate(Rate::per_second(1_000).burst(1_000))
        .per_ip(PerIp::connections(1))
        .exempt(["127.0.3.0/24".parse().expect("a range")])
        .proxy_protocol(ProxyProtocol { deadline: Duration::from_millis(20), ..proxies() })
        .decide(EveryTenth(AtomicU64::new(0)))
        .build()
        .expect("a listener");
    let (address, handle) = serve(listener);
    let before = passive_opens();
    let clients = task::spawn_blocking(move || {
        let one = move || {
            for turn in 0..25_000 {
                // of many addresses, so that each has ports enough
                let host = u8::try_from(turn / 8 % 250).expect("below 256");
                // exempt ones, proxies with a header, without and with part of one, and anybody
                let (from, says): ([u8; 4], &[u8]) = match turn % 8 {
                    0 => ([127, 0, 3, host], b""),
                    1 => ([127, 0, 2, host], b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n"),
                    2 => ([127, 0, 2, host], b"GET / HTTP/1.1\r\n"),
                    3 => ([127, 0, 2, host], b"PROXY TC"),
                    _ => ([127, 0, 1, host], b""),
                };
                visit(from, address, says, turn);
            }
        };
        for client in [(); 4].map(|()| thread::spawn(one)) {
            client.join().expect("no panic");
        }
    });
    clients.await.expect("clients");
    let stats = until(&handle, |stats| {
        stats.accepted == 100_000 && stats.open == 0 && stats.lingering == 0
    })
    .await;
    assert_eq!(passive_opens() - before, 100_000);
    for reason in [Reason::Soft, Reason::Rate, Reason::PerIp, Reason::Policy, Reason::ProxyHeader] {
        assert_ne!(stats.shed_for(reason), 0, "{reason}: {stats:?}");
    }
    assert_eq!(stats.closed_for(Cause::Shed), stats.shed_at(Stage::Handshake), "{stats:?}");
    assert_eq!(stats.peers_tracked, 0, "{stats:?}");
    check_at_rest(&stats);
}

/// `n` that are connected, and say nothing.
fn connect(address: SocketAddr, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(address).expect("queued")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kernel: needs root"]
async fn a_reset_leaves_no_time_wait_and_an_end_leaves_as_many_as_are_counted() {
    if in_own_space("a_reset_leaves_no_time_wait_and_an_end_leaves_as_many_as_are_counted") {
        return;
    }
    for (answer, n_expected) in [(OnShed::Rst, 0), (OnShed::Fin, 5_000)] {
        let before = resets();
        let listener = ShedListener::bind("127.0.0.1:0").soft(1).on_shed(answer.clone());
        let (address, handle) = serve(listener.build().expect("a listener"));
        let held = connect(address, 1);
        until(&handle, |stats| stats.open == 1).await;
        task::spawn_blocking(move || {
            // ports one after the other: whoever came by the same one would end its TIME_WAIT
            for port in 20_000..25_000 {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                client.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("a port");
                // a reset may be quicker than connect(2)
                drop(client.connect(&address.into()));
                drop(TcpStream::from(client).read(&mut [0]));
            }
        })
        .await
        .expect("clients");
        let stats = until(&handle, |stats| stats.shed_for(Reason::Soft) == 5_000).await;
        assert_eq!(stats.time_wait_closes, n_expected as u64, "{answer:?}");
        // where a busy kernel has packets overtake each other, a peer that has closed may answer
        // with a reset, which ends a TIME_WAIT (RFC 1337)
        let left = || {
            let ended = if answer == OnShed::Fin { resets() - before } else { 0 };
            time_waits(address.port()) + ended
        };
        let end = Instant::now() + Duration::from_secs(5);
        while left() != n_expected && Instant::now() < end {
            time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(left(), n_expected, "{answer:?}");
        drop(held);
        check_at_rest(&until(&handle, |stats| stats.open == 0).await);
    }
}

#[tokio::test]
#[ignore = "kernel: needs root"]
async fn a_burst_of_thousands_is_queued_while_the_loop_is_held() {
    if in_own_space("a_burst_of_thousands_is_queued_while_the_loop_is_held") {
        return;
    }
    for n in [500, 4_000] {
        let before = netstat("ListenOverflows");
        let listener = ShedListener::bind("127.0.0.1:0").soft(5_000).build().expect("a listener");
        let (address, handle) = serve(listener);
        let clients = thread::spawn(move || {
            let begun = Instant::now();
            (connect(address, n), begun.elapsed())
        });
        // the runtime has one thread, which has no time
        thread::sleep(Duration::from_millis(200));
        let stats = until(&handle, |stats| stats.open == n as u64).await;
        let (held, took) = clients.join().expect("no panic");
        // a retry takes a second
        assert!(took < Duration::from_millis(900), "{took:?}");
        assert_eq!((stats.accepted, netstat("ListenOverflows")), (n as u64, before));
        drop(held);
        check_at_rest(&until(&handle, |stats| stats.open == 0).await);
    }
}
