//! The accept loop on a thread of its own: handlers that block do not hold it up.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{
    AcceptError, Candidate, Cause, Decide, Handle, Linger, Load, OnShed, PerIp, ProxyProtocol,
    Rate, Reason, ShedListener, Stage, Stats, Verdict,
};
use tokio::{io::AsyncReadExt as _, runtime, task, time};

/// Waits until `is_so`, at most 5 s.
fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let stats = handle.stats();
        if is_so(&stats) {
            return stats;
        }
        assert!(Instant::now() < end, "{stats:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn check_rest(stats: &Stats) {
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!((stats.admitted, stats.open), (closed, 0), "{stats:?}");
}

/// The length of the accept queue of who listens on `port` (`get_tcp4_sock`, net/ipv4/tcp_ipv4.c).
fn queued(port: u16) -> u32 {
    let table = fs::read_to_string("/proc/self/net/tcp").expect("the kernel has it");
    let local = format!("0100007F:{port:04X}");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let listens = |fields: &Vec<String>| {
        fields.get(1) == Some(&local) && fields.get(3).is_some_and(|state| state == "0A")
    };
    let found = table.lines().map(fields).find(listens).expect("it listens");
    let (_, length) = found[4].split_once(':').expect("two lengths");
    u32::from_str_radix(length, 16).expect("a number")
}

#[test]
fn a_blocked_runtime_stops_neither_accept_nor_shedding() {
    // longer than a busy machine takes for 50 connections
    const BLOCKED: Duration = Duration::from_secs(2);
    const CAPACITY: usize = 10;
    let mut accepted =
        ShedListener::bind("127.0.0.1:0").soft(100).build_threaded(CAPACITY).expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let clients = thread::spawn(move || {
        // the handlers' runtime has been blocked since before the first of them
        let begun = Instant::now();
        let clients: Vec<_> =
            (0..50).map(|_| TcpStream::connect(address).expect("queued")).collect();
        let stats = until(&handle, |stats| stats.admitted + stats.shed_for(Reason::Handoff) == 50);
        assert!(begun.elapsed() < BLOCKED, "{:?}", begun.elapsed());
        assert_eq!(queued(address.port()), 0);
        assert_eq!((stats.admitted, stats.shed_for(Reason::Handoff)), (10, 40));
        let shed = clients[CAPACITY..].iter().map(|mut client| client.read(&mut [0]));
        for got in shed {
            assert_eq!(got.map_err(|err| err.kind()), Err(io::ErrorKind::ConnectionReset));
        }
        assert!(begun.elapsed() < BLOCKED, "{:?}", begun.elapsed());
        clients
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = accepted.handle();
    runtime.block_on(async {
        thread::sleep(BLOCKED);
        let clients = clients.join().expect("what they assert holds");
        let served: Vec<_> = {
            let mut served = Vec::new();
            for _ in 0..CAPACITY {
                served.push(accepted.accept().await.expect("admitted"));
            }
            served
        };
        let peers: Vec<_> = clients[..CAPACITY].iter().map(|it| it.local_addr().ok()).collect();
        assert_eq!(served.iter().map(|it| Some(it.peer_addr())).collect::<Vec<_>>(), peers);
        drop(clients);
        for mut conn in served {
            assert_eq!(conn.read(&mut [0]).await.expect("an end"), 0);
        }
    });
    let stats = handle.stats();
    assert_eq!(stats.closed_for(Cause::Peer), 10);
    check_rest(&stats);
}

#[tokio::test]
async fn who_finds_no_room_took_nothing() {
    let rate = Rate::per_second(1).burst(2);
    let mut accepted = ShedListener::bind("127.0.0.1:0")
        .soft(2)
        .rate(rate)
        .per_ip(PerIp { rate: Some(rate), ..PerIp::connections(2) })
        .build_threaded(1)
        .expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let connect = || TcpStream::connect(address).expect("queued");
    let mut clients = vec![connect()];
    until(&handle, |stats| stats.admitted == 1);
    clients.extend([(); 4].map(|()| connect()));
    until(&handle, |stats| stats.shed_for(Reason::Handoff) == 4);
    let first = accepted.accept().await.expect("admitted");
    clients.push(connect());
    // the limits come first
    until(&handle, |stats| stats.admitted == 2);
    clients.push(connect());
    until(&handle, |stats| stats.shed_for(Reason::Soft) == 1);
    drop((first, accepted.accept().await.expect("admitted"), accepted));
    check_rest(&until(&handle, |stats| stats.open == 0));
}

#[test]
fn dropped_it_refuses_and_waits_for_its_answers_to_arrive() {
    let accepted = ShedListener::bind("127.0.0.1:0")
        .soft(1)
        .on_shed(OnShed::http_503())
        .linger(Linger { time: Duration::from_secs(5), ..Linger::default() })
        .build_threaded(1)
        .expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let [_admitted, mut shed] = [(); 2].map(|()| TcpStream::connect(address).expect("queued"));
    until(&handle, |stats| stats.accepted == 2);
    drop(accepted);
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < end, "still there");
        thread::sleep(Duration::from_millis(1));
    }
    let mut got = String::new();
    shed.read_to_string(&mut got).expect("an answer");
    assert!(got.starts_with("HTTP/1.1 503 "), "{got:?}");
    // long enough for a thread to end
    thread::sleep(Duration::from_millis(30));
    assert_eq!(handle.stats().lingering, 1);
    drop(shed);
    check_rest(&until(&handle, |stats| stats.lingering == 0 && stats.open == 0));
}

#[tokio::test]
async fn who_was_admitted_comes_before_the_end() {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address: SocketAddr = socket.local_addr().expect("bound");
    let other = socket2::Socket::from(socket.try_clone().expect("a descriptor"));
    let mut accepted = ShedListener::adopt(socket).soft(4).build_threaded(4).expect("a listener");
    let handle = accepted.handle();
    let client = TcpStream::connect(address).expect("queued");
    until(&handle, |stats| stats.admitted == 1);
    other.shutdown(Shutdown::Read).expect("it listens");
    let err = time::timeout(Duration::from_secs(5), handle.fatal()).await.expect("it fails");
    assert_eq!(err.raw_os_error(), Some(libc::EINVAL));
    drop(accepted.accept().await.expect("the one"));
    let end = accepted.accept().await.expect_err("nobody more");
    assert!(matches!(end, AcceptError::Fatal(_)), "{end:?}");
    drop(client);
    task::yield_now().await;
    check_rest(&until(&handle, |stats| stats.open == 0));
}

#[tokio::test]
async fn who_failed_for_ever_is_not_ready() {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let other = socket2::Socket::from(socket.try_clone().expect("a descriptor"));
    let mut listener = ShedListener::adopt(socket).soft(4).build().expect("a listener");
    let handle = listener.handle();
    assert!(handle.is_ready());
    other.shutdown(Shutdown::Read).expect("it listens");
    assert!(matches!(listener.accept().await, Err(AcceptError::Fatal(_))));
    assert!(!handle.is_ready());
    assert!(matches!(handle.ended().await, AcceptError::Fatal(_)));
}

#[test]
fn what_cannot_be_is_an_error_at_build() {
    let build = |address: &str, capacity| {
        let built = ShedListener::bind(address).build_threaded(capacity);
        built.expect_err("it cannot be").to_string()
    };
    assert_eq!(build("127.0.0.1:0", 0), "capacity is 0, expected 1 to 2097151 connections");
    assert_eq!(build("there", 1), "address is \"there\", expected IP:PORT, such as [::]:8080");
}

/// Panics at the second connection, and then admits.
#[derive(Default)]
struct PanicsOnce(AtomicUsize);

impl Decide for PanicsOnce {
    fn decide(&self, _: &Candidate<'_>, _: &Load) -> Verdict {
        assert_ne!(self.0.fetch_add(1, Ordering::Relaxed), 1, "on purpose");
        Verdict::Admit
    }
}

/// The error that the listener ends with says so, wherever it is asked.
async fn check_panicked(handle: &Handle, end: AcceptError) -> Stats {
    let expected = "the accept loop panicked, in Decide::decide";
    for end in [end, handle.ended().await, AcceptError::Fatal(handle.fatal().await)] {
        let AcceptError::Fatal(err) = end else { panic!("{end:?}") };
        assert_eq!(err.to_string(), expected);
    }
    assert!(!handle.is_ready());
    let stats = until(handle, |stats| stats.open == 0);
    check_rest(&stats);
    stats
}

#[tokio::test]
async fn a_decision_that_panics_ends_the_listener_and_its_connection_is_counted() {
    let builder = || ShedListener::bind("127.0.0.1:0").soft(4).decide(PanicsOnce::default());
    let mut accepted = builder().build_threaded(4).expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let _clients = [(); 2].map(|()| TcpStream::connect(address).expect("queued"));
    drop(accepted.accept().await.expect("the first"));
    let end = time::timeout(Duration::from_secs(5), accepted.accept()).await.expect("it ends");
    let stats = check_panicked(&handle, end.expect_err("nobody more")).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Policy)), (1, 1));

    let mut listener = builder().build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let _clients = [(); 3].map(|()| TcpStream::connect(address).expect("queued"));
    drop(listener.accept().await.expect("the first"));
    let end = listener.accept().await.expect_err("nobody more");
    let stats = check_panicked(&handle, end).await;
    // of those that were taken together, nobody is asked again
    assert_eq!((stats.admitted, stats.shed_for(Reason::Policy)), (1, 2));
}

#[tokio::test]
async fn a_decision_that_panics_after_a_header_ends_the_thread_that_waits() {
    let proxy = ProxyProtocol::from(["127.0.0.1".parse().expect("a range")]);
    let builder = ShedListener::bind("127.0.0.1:0").decide(PanicsOnce::default());
    let mut accepted = builder.proxy_protocol(proxy).build_threaded(4).expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let _clients = [(); 2].map(|()| {
        let mut client = TcpStream::connect(address).expect("queued");
        client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").expect("room");
        client
    });
    drop(accepted.accept().await.expect("the first"));
    let end = time::timeout(Duration::from_secs(5), accepted.accept()).await.expect("it ends");
    let stats = check_panicked(&handle, end.expect_err("nobody more")).await;
    assert_eq!((stats.shed_at(Stage::Handshake), stats.shed_for(Reason::Policy)), (1, 1));
}
