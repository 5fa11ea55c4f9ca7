//! What the probe says when the process has no descriptor left. A program of its own: others need
//! theirs.

mod fds;

use std::{net::SocketAddr, time::Duration};

use backlogd_shed::{
    Limits, Reason, ShedListener,
    health::{HealthConfig, HealthServer, Unready},
};
use socket2::{Domain, Socket, Type};
use tokio::time;

/// Each client is reset at once, in the place of the spare descriptor: nobody is served, and the
/// accept loop runs.
#[tokio::test(start_paused = true)]
async fn without_a_descriptor_the_accept_loop_is_alive_and_not_ready() {
    fds::limit(128);
    let limits = Limits { fd_reserve: Some(16), ..Limits::soft(10) };
    let mut listener =
        ShedListener::bind("127.0.0.1:0").limits(limits).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let server = HealthServer::bind(loopback, &listener, HealthConfig::default()).expect("a port");
    let (health, answering) = (server.health(), tokio::spawn(server.run()));
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let open = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a client");
    let clients: Vec<_> = (0..40).map(|_| open()).collect();
    let mut files = fds::fill();

    for (client, n) in clients.iter().zip(1..) {
        client.connect(&address.into()).expect("queued");
        time::sleep(Duration::from_millis(200)).await;
        let stats = handle.stats();
        assert_eq!((stats.shed_for(Reason::Emfile), stats.accepted), (n, n), "{stats:?}");
        assert!(health.is_alive(), "after {n} clients");
    }
    assert_eq!(health.readiness(), Err(Unready::Backoff));
    // nobody comes, since it is not ready
    for _ in 0..100 {
        time::sleep(Duration::from_millis(200)).await;
        assert_eq!((health.is_alive(), health.readiness()), (true, Err(Unready::Backoff)));
    }

    // there is one for the probe, and so none to accept it
    files.pop();
    let before = handle.stats();
    time::sleep(Duration::from_secs(4)).await;
    let stats = handle.stats();
    assert!(before.probes + 2 < stats.probes, "{stats:?}");
    assert!(before.accept_errors < stats.accept_errors, "{stats:?}");
    assert_eq!(
        (stats.accepted, stats.shed_for(Reason::Emfile)),
        (before.accepted, before.accepted),
        "a probe is no connection"
    );

    drop(files);
    time::sleep(Duration::from_secs(6)).await;
    assert_eq!((health.is_alive(), health.readiness()), (true, Ok(())));
    answering.abort();
    accepting.abort();
}
