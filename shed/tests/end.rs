//! A listener that accepts nothing more does not listen, whoever still has it: clients are refused,
//! and do not queue where nobody accepts.

mod stats;

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use backlogd_shed::{
    AcceptError, Builder, Candidate, Decide, Handle, Load, ShedListener, Verdict,
    health::{HealthConfig, HealthServer, Unready},
};
use stats::check_identities;
use tokio::time;

/// The rule that fails a listener for ever.
struct Panics;

impl Decide for Panics {
    fn decide(&self, _: &Candidate<'_>, _: &Load) -> Verdict {
        panic!("as it is to");
    }
}

fn bind() -> Builder {
    ShedListener::bind("127.0.0.1:0").soft(9)
}

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).expect("queued")
}

#[track_caller]
fn check_is_reset(mut client: TcpStream) {
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let err = client.read(&mut [0]).expect_err("nobody serves it");
    assert_eq!(err.kind(), ErrorKind::ConnectionReset);
}

/// Nobody listens, and so many were accepted before.
#[track_caller]
fn check_is_over(address: SocketAddr, handle: &Handle, accepted: u64) {
    let err = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(err.kind(), ErrorKind::ConnectionRefused);
    assert!(handle.accept_queue().is_err());
    assert!(!handle.is_ready());
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.open, &stats.members), (accepted, 0, &vec![]));
    check_identities(&stats);
}

#[tokio::test]
async fn a_listener_that_was_closed_refuses_clients() {
    let mut listener = bind().build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let queued = connect(address);
    handle.close();
    for _ in 0..2 {
        assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
    }
    check_is_reset(queued);
    check_is_over(address, &handle, 0);
}

#[tokio::test]
async fn a_listener_that_is_closed_while_it_is_awaited_refuses_clients() {
    let mut listener = bind().build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let (accepted, ()) = tokio::join!(biased; listener.accept(), async { handle.close() });
    assert!(matches!(accepted, Err(AcceptError::Closed)));
    check_is_over(address, &handle, 0);
}

#[tokio::test]
async fn a_listener_that_failed_refuses_clients() {
    let mut listener = bind().decide(Panics).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let client = connect(address);
    for _ in 0..2 {
        assert!(matches!(listener.accept().await, Err(AcceptError::Fatal(_))));
    }
    check_is_reset(client);
    check_is_over(address, &handle, 1);
    assert!(matches!(handle.ended().await, AcceptError::Fatal(_)));
}

#[tokio::test]
async fn each_member_of_a_group_that_was_closed_refuses_clients() {
    let (group, mut members) = bind().build_group(2).expect("a group");
    let (address, handle) = (members[0].local_addr(), group.handle());
    handle.close();
    for member in &mut members {
        assert!(matches!(member.accept().await, Err(AcceptError::Closed)));
    }
    check_is_over(address, &handle, 0);
}

#[tokio::test]
async fn where_a_member_of_a_group_fails_all_refuse_clients() {
    let (group, mut members) = bind().decide(Panics).build_group(2).expect("a group");
    let (address, handle) = (members[0].local_addr(), group.handle());
    let client = connect(address);
    let (first, second) = members.split_at_mut(1);
    let ends = tokio::join!(first[0].accept(), second[0].accept());
    assert!(matches!(ends, (Err(AcceptError::Fatal(_)), Err(AcceptError::Fatal(_)))), "{ends:?}");
    check_is_reset(client);
    check_is_over(address, &handle, 1);
}

#[tokio::test]
async fn a_thread_whose_listener_ended_refuses_clients() {
    for fails in [false, true] {
        let builder = if fails { bind().decide(Panics) } else { bind() };
        let mut accepted = builder.build_threaded(1).expect("a listener");
        let (address, handle) = (accepted.local_addr(), accepted.handle());
        if fails {
            check_is_reset(connect(address));
        } else {
            handle.close();
        }
        let accepting = time::timeout(Duration::from_secs(5), accepted.accept());
        let err = accepting.await.expect("in time").expect_err("it ended");
        assert_eq!(matches!(err, AcceptError::Fatal(_)), fails, "{err}");
        // the thread closes it
        let end = Instant::now() + Duration::from_secs(5);
        while handle.accept_queue().is_ok() {
            assert!(Instant::now() < end, "it listens");
            time::sleep(Duration::from_millis(1)).await;
        }
        check_is_over(address, &handle, fails.into());
    }
}

/// It is not about to end, as one is that was closed: who supervises it is to know.
#[tokio::test(start_paused = true)]
async fn a_listener_that_failed_is_not_ready_at_once_and_not_alive_after_5_s() {
    for fails in [false, true] {
        let builder = if fails { bind().decide(Panics) } else { bind() };
        let mut listener = builder.build().expect("a listener");
        let (address, handle) = (listener.local_addr(), listener.handle());
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let server =
            HealthServer::bind(loopback, &listener, HealthConfig::default()).expect("a port");
        let (health, answering) = (server.health(), tokio::spawn(server.run()));
        if fails {
            let _client = connect(address);
            assert!(matches!(listener.accept().await, Err(AcceptError::Fatal(_))));
        } else {
            handle.close();
            assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
        }
        let unready = Err(Unready::Draining);
        assert_eq!((health.readiness(), health.is_alive()), (unready, true), "fails: {fails}");
        time::sleep(Duration::from_secs(6)).await;
        assert_eq!((health.readiness(), health.is_alive()), (unready, !fails), "fails: {fails}");
        answering.abort();
    }
}
