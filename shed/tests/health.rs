//! Health checks on real sockets: answered whatever the limits say, and by what the accept loop
//! does.

mod stats;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use backlogd_shed::{
    Limits, Linger, OnShed, Pause, Reason, ShedListener,
    health::{FailAt, HealthConfig, HealthServer, Unready},
};
use stats::{check_identities, until};
use tokio::{task, time};

/// Status and body of a check.
async fn check(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    task::spawn_blocking(move || {
        let mut client = TcpStream::connect(address).expect("it listens");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        // its head in two parts
        let (first, second) = request.as_bytes().split_at(9);
        client.write_all(first).expect("room");
        client.write_all(second).expect("room");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer and its end");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        (status.expect("a status"), body.trim_end().to_owned())
    })
    .await
    .expect("no panic")
}

fn well() -> (u16, String) {
    (200, "ok".to_owned())
}

fn ill(why: &str) -> (u16, String) {
    (503, why.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_pass_while_clients_are_shed_and_fail_where_they_are_to() {
    for (fail_at, expected) in
        [(FailAt::Never, well()), (FailAt::Soft, ill("overloaded")), (FailAt::Hard, well())]
    {
        let mut listener = ShedListener::bind("[::]:0").soft(1).build().expect("a listener");
        let (address, handle) = (listener.local_addr(), listener.handle());
        let config = HealthConfig {
            fail_at,
            fail_after: Duration::ZERO,
            recover_after: Duration::from_millis(20),
            probe: Some(Duration::from_millis(10)),
        };
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let server = HealthServer::bind(loopback, &listener, config).expect("a port");
        let (health, checks) = (server.health(), server.local_addr());
        let answering = tokio::spawn(server.run());
        let accepting = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok(conn) = listener.accept().await {
                held.push(conn);
            }
        });
        assert_eq!(check(checks, "/readyz").await, well());
        let client = TcpStream::connect(("127.0.0.1", address.port())).expect("queued");
        until(&handle, |stats| stats.open == 1).await;
        for _ in 0..20 {
            drop(TcpStream::connect(("127.0.0.1", address.port())).expect("queued"));
            assert_eq!(check(checks, "/readyz").await, expected, "{fail_at:?}");
            assert_eq!(check(checks, "/healthz").await, well());
        }
        let stats = until(&handle, |stats| stats.shed_for(Reason::Soft) == 20).await;
        assert_eq!((stats.accepted, stats.admitted), (21, 1), "checks and probes are none");
        until(&handle, |stats| 3 < stats.probes).await;

        health.drain();
        assert_eq!(check(checks, "/readyz").await, ill("draining"));
        assert_eq!(check(checks, "/healthz").await, well());
        handle.close();
        accepting.await.expect("no panic");
        let stats = handle.stats();
        assert_eq!(stats.open, 0);
        check_identities(&stats);
        health.cancel_drain();
        assert_eq!(health.readiness(), Err(Unready::Draining), "it is closed");
        answering.abort();
        drop(client);
    }
}

/// The accept loop stands still at the hard limit, and checks do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_pass_at_the_hard_limit() {
    for (fail_at, expected) in [(FailAt::Never, well()), (FailAt::Hard, ill("overloaded"))] {
        let mut listener = ShedListener::bind("127.0.0.1:0")
            .limits(Limits { hard: Some(2), ..Limits::soft(1) })
            .on_shed(OnShed::bytes("busy"))
            .linger(Linger { time: Duration::from_secs(60), ..Linger::default() })
            .build()
            .expect("a listener");
        let (address, handle) = (listener.local_addr(), listener.handle());
        let config = HealthConfig { fail_at, fail_after: Duration::ZERO, ..Default::default() };
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let server = HealthServer::bind(loopback, &listener, config).expect("a port");
        let (checks, answering) = (server.local_addr(), tokio::spawn(server.run()));
        let accepting = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok(conn) = listener.accept().await {
                held.push(conn);
            }
        });
        // one is served, the other does not close and so lingers
        let clients: Vec<_> =
            (0..2).map(|_| TcpStream::connect(address).expect("queued")).collect();
        until(&handle, |stats| stats.is_paused == Some(Pause::Hard)).await;
        for _ in 0..20 {
            assert_eq!(check(checks, "/readyz").await, expected, "{fail_at:?}");
            assert_eq!(check(checks, "/healthz").await, well());
        }
        drop(clients);
        let stats = until(&handle, |stats| stats.lingering == 0).await;
        assert_eq!((stats.admitted, stats.shed_for(Reason::Soft)), (1, 1));
        handle.close();
        accepting.await.expect("no panic");
        check_identities(&handle.stats());
        answering.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn an_accept_loop_that_does_not_answer_is_seen_after_5_s() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(1).build().expect("a listener");
    let handle = listener.handle();
    let server = HealthServer::bind(
        "127.0.0.1:0".parse().expect("an address"),
        &listener,
        HealthConfig::default(),
    )
    .expect("a port");
    let health = server.health();
    let answering = tokio::spawn(server.run());
    time::sleep(Duration::from_millis(4_900)).await;
    assert_eq!((health.readiness(), health.is_alive()), (Ok(()), true));
    time::sleep(Duration::from_millis(200)).await;
    assert_eq!((health.readiness(), health.is_alive()), (Err(Unready::Stale), false));

    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    time::sleep(Duration::from_secs(2)).await;
    assert_eq!((health.readiness(), health.is_alive()), (Err(Unready::Stale), true));
    time::sleep(Duration::from_secs(6)).await;
    assert_eq!((health.readiness(), health.is_alive()), (Ok(()), true));
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.open), (0, 0), "{stats:?}");
    assert!(5 < stats.probes, "{stats:?}");
    answering.abort();
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_accepts_is_asked_too() {
    let mut accepted =
        ShedListener::bind("127.0.0.1:0").soft(1).build_threaded(1).expect("a listener");
    let (local, handle) = (accepted.local_addr(), accepted.handle());
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let probe = Some(Duration::from_millis(10));
    let config = HealthConfig { probe, ..HealthConfig::default() };
    let server = HealthServer::watch(loopback, local, &handle, config).expect("a port");
    let (checks, answering) = (server.local_addr(), tokio::spawn(server.run()));
    until(&handle, |stats| 3 < stats.probes).await;
    assert_eq!(check(checks, "/readyz").await, well());
    handle.close();
    assert!(accepted.accept().await.is_err());
    assert_eq!(check(checks, "/readyz").await, ill("draining"));
    assert_eq!(handle.stats().accepted, 0);
    answering.abort();
}

/// At the hard limit nothing is accepted, which is no reason to end the process.
#[tokio::test(start_paused = true)]
async fn an_accept_loop_that_stands_still_at_the_hard_limit_is_alive() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(9).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let config = HealthConfig { fail_at: FailAt::Never, ..Default::default() };
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let server = HealthServer::bind(loopback, &listener, config).expect("a port");
    let (health, answering) = (server.health(), tokio::spawn(server.run()));
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(conn) = listener.accept().await {
            held.push(conn);
        }
    });
    let connect = || TcpStream::connect(address).expect("queued");
    let mut clients = vec![connect(), connect()];
    time::sleep(Duration::from_secs(1)).await;
    assert_eq!(handle.stats().open, 2);
    handle.set_limits(Limits { hard: Some(2), ..Limits::soft(1) }).expect("they hold");
    clients.push(connect());
    time::sleep(Duration::from_secs(20)).await;
    assert_eq!(handle.stats().is_paused, Some(Pause::Hard));
    assert_eq!((health.readiness(), health.is_alive()), (Ok(()), true));
    handle.set_limits(Limits::soft(9)).expect("they hold");
    time::sleep(Duration::from_secs(20)).await;
    let stats = handle.stats();
    assert_eq!((stats.is_paused, health.readiness()), (None, Ok(())));
    assert_eq!((stats.admitted, stats.shed_for(Reason::Hard)), (2, 1));
    check_identities(&stats);
    answering.abort();
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_holds_no_check_off() {
    let listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let config = HealthConfig { probe: None, ..HealthConfig::default() };
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let server = HealthServer::bind(loopback, &listener, config).expect("a port");
    let (checks, answering) = (server.local_addr(), tokio::spawn(server.run()));
    for _ in 0..3 {
        let _silent: Vec<_> =
            (0..24).map(|_| TcpStream::connect(checks).expect("queued")).collect();
        // half of the time that each of them may take
        let answer = time::timeout(Duration::from_secs(1), check(checks, "/readyz")).await;
        assert_eq!(answer.expect("in time"), well());
    }
    answering.abort();
}

#[tokio::test]
async fn an_address_in_use_names_who_has_it() {
    let listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let address = listener.local_addr();
    let err = HealthServer::bind(address, &listener, HealthConfig::default()).expect_err("in use");
    assert_eq!(err.kind(), std::io::ErrorKind::AddrInUse);
    let message = err.to_string();
    let expected = format!("listener {address}: the address is in use, by socket ");
    assert!(message.starts_with(&expected), "{message}");
    assert!(message.ends_with(&format!("[{}]", std::process::id())), "{message}");
}

#[test]
fn what_cannot_be_is_an_error() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = {
        let _entered = runtime.enter();
        ShedListener::bind("127.0.0.1:0").build().expect("a listener")
    };
    let bind = |probe| {
        let config = HealthConfig { probe, ..HealthConfig::default() };
        let loopback = "127.0.0.1:0".parse().expect("an address");
        HealthServer::bind(loopback, &listener, config).map(drop).map_err(|err| err.to_string())
    };
    let none = "there is no tokio runtime, expected one to be entered";
    assert_eq!(bind(None), Err(none.to_owned()));
    let _entered = runtime.enter();
    let ms = Duration::from_millis;
    for holds in [None, Some(ms(10)), Some(ms(4_000))] {
        assert_eq!(bind(holds), Ok(()));
    }
    let most = u64::MAX;
    for (probe, us) in [
        (Duration::ZERO, 0),
        (ms(9), 9_000),
        (ms(4_000) + Duration::from_nanos(1), 4_000_001),
        (ms(60_000), 60_000_000),
        (Duration::MAX, most),
    ] {
        let expected = format!("probe of health checks in us is {us}, expected 10000 to 4000000");
        assert_eq!(bind(Some(probe)), Err(expected), "{probe:?}");
    }
}
