//! Health checks when the process has no descriptor left. A program of its own: others need theirs.

mod fds;

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use backlogd_shed::{
    Limits, ShedListener,
    health::{HealthConfig, HealthServer},
};
use tokio::time;

#[tokio::test]
async fn checks_are_answered_without_a_descriptor() {
    fds::limit(128);
    let limits = Limits { fd_reserve: Some(16), ..Limits::soft(10) };
    let listener = ShedListener::bind("127.0.0.1:0").limits(limits).build().expect("a listener");
    let server = HealthServer::bind(
        "127.0.0.1:0".parse().expect("an address"),
        &listener,
        HealthConfig { probe: None, ..HealthConfig::default() },
    )
    .expect("a port");
    // queued before the descriptors are gone; nobody accepts so far
    let connect = || TcpStream::connect(server.local_addr()).expect("queued");
    let _silent: Vec<_> = (0..8).map(|_| connect()).collect();
    let mut clients: Vec<_> = (0..10)
        .map(|_| {
            let mut client = connect();
            client.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").expect("room");
            client.set_nonblocking(true).expect("a socket");
            client
        })
        .collect();
    let _files = fds::fill();
    let answering = tokio::spawn(server.run());
    for client in &mut clients {
        let mut answer = [0; 15];
        let read = time::timeout(Duration::from_secs(3), async {
            while let Err(err) = client.read(&mut answer) {
                assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
                time::sleep(Duration::from_millis(5)).await;
            }
        });
        read.await.expect("an answer in time");
        assert_eq!(answer, *b"HTTP/1.1 200 OK");
    }
    answering.abort();
}
