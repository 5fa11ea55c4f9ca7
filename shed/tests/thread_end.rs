//! How a listener ends that accepts on a thread of its own: what it admitted is served, its headers
//! and deadlines hold to the last connection, and then the thread is gone. One test after the
//! other, in a program of their own: they look at all threads of the process.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backlogd_shed::{
    AcceptError, Cause, Deadline, Deadlines, Drain, Drained, Handle, ProxyProtocol, Queued, Reason,
    ShedListener, Stage, Stats,
};
use tokio::{io::AsyncReadExt as _, time};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const AT_ONCE: Drain =
    Drain { delay: Duration::ZERO, deadline: Duration::from_secs(5), queued: Queued::Serve };

/// Whether an accept loop has its thread.
fn has_thread() -> bool {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs").flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.into_iter().any(|name| name == "shed-accept\n")
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        time::sleep(Duration::from_millis(1)).await;
    }
}

/// Both identities; everything given back, and the thread gone.
async fn check_end(handle: &Handle) -> Stats {
    until("all is closed", || handle.stats().open == 0).await;
    until("the thread is gone", || !has_thread()).await;
    let stats = handle.stats();
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!(stats.admitted, closed, "{stats:?}");
    assert_eq!(stats.closed_for(Cause::Shed), stats.shed_at(Stage::Handshake), "{stats:?}");
    assert_eq!((stats.lingering, stats.handshaking), (0, 0), "{stats:?}");
    stats
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("queued");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "a runtime for each test")]
async fn a_drain_serves_who_was_admitted_and_ends_the_thread() {
    let _alone = alone();
    let mut accepted =
        ShedListener::bind("127.0.0.1:0").soft(10).build_threaded(4).expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let clients = [(); 3].map(|()| connect(address));
    until("three wait", || handle.stats().admitted == 3).await;
    let first = accepted.accept().await.expect("admitted");
    let drain = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(AT_ONCE).await }
    });
    assert!(matches!(handle.ended().await, AcceptError::Closed));
    assert!(!handle.is_ready());
    assert!(TcpStream::connect(address).is_err(), "it still listens");
    let mut served = vec![first];
    while let Ok(conn) = accepted.accept().await {
        served.push(conn);
    }
    assert_eq!(served.len(), 3);
    assert!(has_thread() && !drain.is_finished());
    drop(clients);
    for mut conn in served {
        assert_eq!(conn.read(&mut [0]).await.expect("an end"), 0);
    }
    assert_eq!(drain.await.expect("no panic"), Drained::default());
    assert_eq!(check_end(&handle).await.closed_for(Cause::Peer), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "a runtime for each test")]
async fn headers_are_read_and_a_drain_ends_the_wait_for_them() {
    let _alone = alone();
    let from = ["127.0.0.0/8".parse().expect("a range")];
    let settings = ProxyProtocol { max: 2, ..ProxyProtocol::from(from) };
    let mut accepted = ShedListener::bind("127.0.0.1:0")
        .proxy_protocol(ProxyProtocol { deadline: Duration::from_secs(60), ..settings })
        .build_threaded(8)
        .expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let mut named = connect(address);
    named.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\nx").expect("sent");
    let mut conn = accepted.accept().await.expect("named");
    assert_eq!(conn.peer_addr(), SocketAddr::from(([192, 0, 2, 1], 8080)));
    assert_eq!(conn.raw_peer_addr(), named.local_addr().expect("connected"));
    assert_eq!(conn.read_u8().await.expect("what comes after it"), b'x');

    // two are awaited, for the third there is no room
    let mut silent = [(); 3].map(|()| connect(address));
    let served = tokio::spawn(async move {
        time::timeout(Duration::from_secs(5), accepted.accept()).await.expect("it ends").map(drop)
    });
    until("one is shed", || handle.stats().shed_for(Reason::ProxyHeader) == 1).await;
    assert_eq!(handle.stats().handshaking, 2);
    let drained = handle.drain(Drain { deadline: Duration::from_millis(50), ..AT_ONCE }).await;
    assert_eq!(drained.reset, 1);
    assert!(matches!(served.await.expect("no panic"), Err(AcceptError::Closed)));
    for client in &mut silent {
        let got = client.read(&mut [0]).map_err(|err| err.kind());
        assert_eq!(got, Err(ErrorKind::ConnectionReset));
    }
    drop(conn);
    let stats = check_end(&handle).await;
    assert_eq!((stats.shed_for(Reason::Draining), stats.closed_for(Cause::Drain)), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "a runtime for each test")]
async fn deadlines_hold_after_it_was_closed() {
    let _alone = alone();
    let idle = Some(Duration::from_millis(300));
    let mut accepted = ShedListener::bind("127.0.0.1:0")
        .deadlines(Deadlines { idle, ..Deadlines::default() })
        .build_threaded(8)
        .expect("a listener");
    let (address, handle) = (accepted.local_addr(), accepted.handle());
    let _client = connect(address);
    let mut conn = accepted.accept().await.expect("admitted");
    drop(accepted);
    until("it is closed", || TcpStream::connect(address).is_err()).await;
    let read = time::timeout(Duration::from_secs(3), conn.read_u8()).await.expect("it is ended");
    assert_eq!(read.map_err(|err| err.kind()), Err(ErrorKind::TimedOut));
    drop(conn);
    let stats = check_end(&handle).await;
    assert_eq!((stats.timeouts_of(Deadline::Idle), stats.closed_for(Cause::Deadline)), (1, 1));
}
