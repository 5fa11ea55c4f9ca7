//! The listeners as streams: what they admit, then the error if there is one, then nothing.

mod stats;

use std::{
    future,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    time::Duration,
};

use backlogd_shed::{AcceptError, Builder, Handle, Reason, ShedListener, ShedStream, Stage};
use futures_core::Stream;
use stats::until;
use tokio::time;

type Item = Result<ShedStream, AcceptError>;

async fn next(stream: &mut (impl Stream<Item = Item> + Unpin)) -> Option<Item> {
    let next = future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx));
    time::timeout(Duration::from_secs(5), next).await.expect("in time")
}

/// A listener to be, its address, and its socket.
fn open() -> (Builder, SocketAddr, socket2::Socket) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    let other = socket.try_clone().expect("a descriptor").into();
    (ShedListener::adopt(socket).soft(2), address, other)
}

/// Yields two that are admitted, and ends as `end` has it, for good.
async fn check(
    mut stream: impl Stream<Item = Item> + Unpin,
    address: SocketAddr,
    handle: &Handle,
    end: impl FnOnce(),
    expected: Option<&str>,
) {
    let clients = [(); 3].map(|()| TcpStream::connect(address).expect("queued"));
    let mut held = Vec::new();
    for client in &clients[..2] {
        let conn = next(&mut stream).await.expect("one").expect("admitted");
        assert_eq!(Some(conn.peer_addr()), client.local_addr().ok());
        held.push(conn);
    }
    let stats = tokio::select! {
        more = future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)) => panic!("{more:?}"),
        stats = until(handle, |stats| stats.accepted == 3) => stats,
    };
    assert_eq!((stats.admitted, stats.shed_for(Reason::Soft)), (2, 1));
    assert_eq!(stats.shed_at(Stage::Accept), 1);
    end();
    if let Some(expected) = expected {
        let err = next(&mut stream).await.expect("an error").expect_err("an end");
        assert_eq!(err.to_string(), expected);
    }
    assert!(next(&mut stream).await.is_none());
    drop(held);
    let stats = handle.stats();
    assert_eq!((stats.open, stats.closed.iter().map(|(_, n)| n).sum()), (0, 2), "{stats:?}");
}

const FATAL: Option<&str> = Some("accept failed, and would fail again");

#[tokio::test]
async fn ends_where_the_listener_is_closed() {
    let (builder, address, _) = open();
    let stream = builder.build().expect("a listener").into_stream();
    let handle = stream.handle();
    check(stream, address, &handle, || handle.close(), None).await;

    let (builder, address, _) = open();
    let accepted = builder.build_threaded(3).expect("a listener");
    let handle = accepted.handle();
    check(accepted, address, &handle, || handle.close(), None).await;
}

#[tokio::test]
async fn yields_an_error_once_where_it_fails_for_ever() {
    let (builder, address, socket) = open();
    let stream = builder.build().expect("a listener").into_stream();
    let handle = stream.handle();
    let fail = || socket.shutdown(Shutdown::Read).expect("it listens");
    check(stream, address, &handle, fail, FATAL).await;

    let (builder, address, socket) = open();
    let accepted = builder.build_threaded(3).expect("a listener");
    let handle = accepted.handle();
    let fail = || socket.shutdown(Shutdown::Read).expect("it listens");
    check(accepted, address, &handle, fail, FATAL).await;
}
