//! A drain of a listener that has deadlines, awaits PROXY headers, or answers health checks.

mod stats;

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use backlogd_shed::{
    AcceptError, Builder, Cause, Cidr, Deadlines, Drain, DrainStage, Drained, Handle,
    ProxyProtocol, Queued, Reason, ShedListener, Stage, Stats,
    health::{HealthConfig, HealthServer, Unready},
};
use stats::until;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task, time,
};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n";

fn drain(deadline: u64) -> Drain {
    let deadline = Duration::from_millis(deadline);
    Drain { delay: Duration::ZERO, deadline, queued: Queued::Serve }
}

fn proxied() -> Builder {
    let proxies: Cidr = "127.0.0.0/8".parse().expect("a range");
    ShedListener::bind("127.0.0.1:0").proxy_protocol(ProxyProtocol::from([proxies]))
}

/// Echoes until the listener is closed.
fn serve(builder: Builder) -> (SocketAddr, Handle, task::JoinHandle<()>) {
    let mut listener = builder.build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let accepting = tokio::spawn(async move {
        loop {
            let mut conn = match listener.accept().await {
                Ok(conn) => conn,
                Err(AcceptError::Closed) => return,
                Err(err) => panic!("{err}"),
            };
            tokio::spawn(async move {
                while let Ok(byte) = conn.read_u8().await {
                    conn.write_u8(byte).await?;
                }
                io::Result::Ok(())
            });
        }
    });
    (address, handle, accepting)
}

/// All ended, and both identities hold.
async fn check_end(handle: &Handle) -> Stats {
    let stats = until(handle, |it| it.open == 0 && it.lingering == 0).await;
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    assert_eq!((stats.admitted, stats.handshaking), (closed, 0), "{stats:?}");
    assert_eq!(stats.closed_for(Cause::Shed), stats.shed_at(Stage::Handshake), "{stats:?}");
    stats
}

fn begin(handle: &Handle, drain: Drain) -> task::JoinHandle<Drained> {
    let handle = handle.clone();
    tokio::spawn(async move { handle.drain(drain).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_headers_that_are_awaited() {
    let (address, handle, accepting) = serve(proxied());
    let mut client = TcpStream::connect(address).await.expect("queued");
    until(&handle, |it| it.handshaking == 1).await;
    let drained = begin(&handle, drain(5_000));
    while handle.stage() < DrainStage::Draining {
        time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!drained.is_finished() && !accepting.is_finished());
    client.write_all(HEADER).await.expect("room");
    client.write_all(b"x").await.expect("room");
    assert_eq!(client.read_u8().await.expect("served"), b'x');
    accepting.await.expect("it is closed");
    drop(client);
    assert_eq!(drained.await.expect("a drain").reset, 0);
    let stats = check_end(&handle).await;
    assert_eq!(stats.closed_for(Cause::Peer), 1, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_did_not_come_by_its_deadline_are_awaited_no_longer() {
    let (address, handle, accepting) = serve(proxied());
    let mut silent = TcpStream::connect(address).await.expect("queued");
    let mut served = TcpStream::connect(address).await.expect("queued");
    served.write_all(HEADER).await.expect("room");
    until(&handle, |it| it.admitted == 2 && it.handshaking == 1).await;
    assert_eq!(begin(&handle, drain(100)).await.expect("a drain").reset, 1);
    accepting.await.expect("it is closed");
    for client in [&mut silent, &mut served] {
        let err = client.read_u8().await.expect_err("reset");
        assert_eq!(err.kind(), ErrorKind::ConnectionReset);
    }
    let stats = check_end(&handle).await;
    let causes = [Cause::Drain, Cause::Shed].map(|it| stats.closed_for(it));
    assert_eq!((causes, stats.shed_for(Reason::Draining)), ([1, 1], 1), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_deadlines_ends_by_the_drain() {
    let second = Some(Duration::from_secs(1));
    let deadlines = Deadlines { idle: second, lifetime: second, ..Deadlines::default() };
    let (address, handle, accepting) =
        serve(ShedListener::bind("127.0.0.1:0").deadlines(deadlines));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(TcpStream::connect(address).await.expect("queued"));
    }
    until(&handle, |it| it.open == 20).await;
    assert_eq!(begin(&handle, drain(100)).await.expect("a drain").reset, 20);
    accepting.await.expect("it is closed");
    let stats = check_end(&handle).await;
    let timeouts: u64 = stats.deadline_timeouts.iter().map(|(_, n)| n).sum();
    assert_eq!((stats.closed_for(Cause::Drain), timeouts), (20, 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_fails_from_the_announcement_on() {
    let mut listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let any = "127.0.0.1:0".parse().expect("an address");
    let server = HealthServer::bind(any, &listener, HealthConfig::default()).expect("a port");
    let health = server.health();
    assert_eq!((health.readiness(), handle.is_ready()), (Ok(()), true));
    let drained = begin(&handle, Drain { delay: Duration::from_secs(60), ..drain(100) });
    while handle.stage() < DrainStage::Announced {
        time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((health.readiness(), handle.is_ready()), (Err(Unready::Draining), false));
    assert!(health.is_alive());
    // it accepts all the same
    let _client = TcpStream::connect(address).await.expect("queued");
    drop(listener.accept().await.expect("it is queued"));
    drained.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_hold_at_each_member_of_a_group() {
    let idle = Some(Duration::from_millis(200));
    let deadlines = Deadlines { idle, ..Deadlines::default() };
    let builder = ShedListener::bind("127.0.0.1:0").deadlines(deadlines);
    let (mut group, mut members) = builder.build_group(2).expect("a group");
    members.push(group.grow().expect("one more"));
    let address = members[0].local_addr();
    for mut member in members {
        // the kernel chooses: so many that each gets one
        let clients = async {
            let mut clients = Vec::new();
            loop {
                clients.push(TcpStream::connect(address).await);
            }
        };
        let late = async {
            loop {
                let mut conn = member.accept().await.expect("a connection");
                let err = conn.read_u8().await.expect_err("nobody says anything");
                // one who came while another member was looked at has left
                if err.kind() != ErrorKind::UnexpectedEof {
                    return err;
                }
            }
        };
        let err = tokio::select! {
            err = late => err,
            () = clients => unreachable!("it does not end"),
        };
        assert_eq!(err.kind(), ErrorKind::TimedOut, "{err}");
    }
    check_end(&group.handle()).await;
}
