//! The servers of the examples: each sheds above the soft limit, finishes what was begun when it is
//! told to end, and says so when its listener fails.

mod stats;

use std::{
    error::Error,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    time::{Duration, Instant},
};

use backlogd_shed::{Builder, Deadline, Deadlines, Handle, Reason, ShedListener, Stage, Stats};
use stats::until;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net,
    sync::oneshot,
    task, time,
};
use tonic::{Request, codegen::http::uri::PathAndQuery, transport::Endpoint};

#[path = "../examples/axum.rs"]
#[expect(dead_code, reason = "its main")]
mod axum_example;
#[path = "../examples/echo.rs"]
#[expect(dead_code, reason = "its main")]
mod echo_example;
#[path = "../examples/hyper.rs"]
#[expect(dead_code, reason = "its main")]
mod hyper_example;
#[path = "../examples/tonic.rs"]
#[expect(dead_code, reason = "its main")]
mod tonic_example;

const LONGEST: Duration = Duration::from_secs(5);

type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;
type Serving = Pin<Box<dyn Future<Output = Result<(), Box<dyn Error>>>>>;
/// A server.
type Serve = fn(ShedListener, Stop) -> Serving;
/// The first half of a request, for which the server says something, and the other one.
type Client = (&'static str, fn(&TcpStream) -> io::Result<()>);

/// Runs `serve`, and `client` beside it, which is to end it.
async fn run<T>(
    listener: ShedListener,
    serve: Serve,
    client: impl AsyncFnOnce(SocketAddr, Handle, oneshot::Sender<()>) -> T,
) -> (Result<(), String>, T) {
    let (address, handle) = (listener.local_addr(), listener.handle());
    let (sender, receiver) = oneshot::channel();
    let stop: Stop = Box::pin(async { receiver.await.unwrap_or(()) });
    let both = async { tokio::join!(serve(listener, stop), client(address, handle, sender)) };
    let (served, got) = time::timeout(LONGEST, both).await.expect("both end in time");
    (served.map_err(|err| err.to_string()), got)
}

fn bind() -> Builder {
    ShedListener::bind("127.0.0.1:0")
}

/// Waits until `is_so`.
fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("queued");
    client.set_read_timeout(Some(LONGEST)).expect("a timeout");
    client
}

fn check_rest(stats: &Stats) {
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!((stats.admitted, stats.open), (closed, 0), "{stats:?}");
}

/// One is served, three are shed; told to end, it takes nobody and finishes the one.
async fn check_sheds_and_ends(serve: Serve, (first_half, end): Client) {
    let listener = bind().soft(1).build().expect("a listener");
    let of_all = listener.handle();
    let client = async move |address, handle: Handle, stop: oneshot::Sender<()>| {
        let begin = move || {
            let mut client = connect(address);
            let mut got = vec![0];
            client.write_all(first_half.as_bytes())?;
            client.read_exact(&mut got).map(|()| (client, got))
        };
        let begun = task::spawn_blocking(begin).await.expect("a client");
        let (mut first, mut got) = begun.expect("what shows that it is served");
        let shed = task::spawn_blocking(move || {
            // the reset may be quicker than connect(2)
            let read = |()| TcpStream::connect(address)?.read(&mut [0]);
            [(); 3].map(|()| read(()).map_err(|err: io::Error| err.kind()))
        });
        assert_eq!(shed.await.expect("clients"), [Err(io::ErrorKind::ConnectionReset); 3]);
        stop.send(()).expect("it serves");
        assert_eq!(handle.ended().await.to_string(), "the listener is closed");
        assert!(!handle.is_ready());
        let refused = TcpStream::connect(address).map_err(|err| err.kind());
        assert_eq!(refused.map(drop), Err(io::ErrorKind::ConnectionRefused));
        let finish = move || {
            end(&first)?;
            first.read_to_end(&mut got).map(|_| got)
        };
        task::spawn_blocking(finish).await.expect("a client").expect("an answer")
    };
    let (served, got) = run(listener, serve, client).await;
    assert_eq!(served, Ok(()));
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(got.ends_with("hello"), "{got:?}");
    let stats = until(&of_all, |stats| stats.open == 0).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Soft)), (1, 3));
    check_rest(&stats);
}

/// A listener that fails for ever ends its server, which says so, and does not turn meanwhile.
async fn check_fatal(serve: Serve) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = socket2::Socket::from(socket.try_clone().expect("a descriptor"));
    let listener = ShedListener::adopt(socket).soft(4).build().expect("a listener");
    let client = async move |_, handle: Handle, stop: oneshot::Sender<()>| {
        assert!(handle.is_ready());
        // it listens no more: accept(2) gives EINVAL
        other.shutdown(Shutdown::Read).expect("it listens");
        let err = handle.fatal().await;
        assert!(!handle.is_ready());
        (err.raw_os_error(), handle.ended().await.to_string(), stop)
    };
    let (served, (errno, ended, _)) = run(listener, serve, client).await;
    let message = "accept failed, and would fail again";
    assert_eq!((errno, ended.as_str()), (Some(libc::EINVAL), message));
    assert_eq!(served, Err(message.to_owned()));
}

const ECHO: Client = ("hel", |mut client| {
    client.write_all(b"lo")?;
    client.shutdown(Shutdown::Write)
});

const HTTP: Client = (
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhel",
    |mut client| client.write_all(b"lo"),
);

#[tokio::test]
async fn plain_accept_sheds_and_ends() {
    let serve: Serve = |listener, stop| Box::pin(echo_example::serve(listener, stop));
    check_sheds_and_ends(serve, ECHO).await;
    check_fatal(serve).await;
}

#[tokio::test]
async fn hyper_sheds_and_ends() {
    let serve: Serve = |listener, stop| Box::pin(hyper_example::serve(listener, stop));
    check_sheds_and_ends(serve, HTTP).await;
    check_fatal(serve).await;
}

#[tokio::test]
async fn axum_sheds_and_ends() {
    let serve: Serve = |listener, stop| Box::pin(axum_example::serve(listener, stop));
    check_sheds_and_ends(serve, HTTP).await;
    check_fatal(serve).await;
}

#[tokio::test]
async fn axum_that_is_told_nothing_waits_and_refuses() {
    let listener = bind().build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let serving = tokio::spawn(axum::serve(listener, axum::Router::new()).into_future());
    handle.close();
    let end = Instant::now() + LONGEST;
    // no listener that looks alive
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < end, "still there");
        time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!handle.is_ready());
    assert!(!serving.is_finished());
    serving.abort();
}

#[tokio::test]
async fn axum_knows_the_peer() {
    use axum::{Router, extract::ConnectInfo};
    use backlogd_shed::PeerAddr;

    let app = || {
        Router::new()
            .fallback(
                |ConnectInfo(PeerAddr(it)): ConnectInfo<PeerAddr>| async move { it.to_string() },
            )
            .into_make_service_with_connect_info::<PeerAddr>()
    };
    let here = bind().build().expect("a listener");
    let threaded = bind().build_threaded(8).expect("a listener");
    let addresses = [here.local_addr(), threaded.local_addr()];
    let servings = [
        tokio::spawn(axum::serve(here, app()).into_future()),
        tokio::spawn(axum::serve(threaded, app()).into_future()),
    ];
    for address in addresses {
        let ask = move || {
            let mut client = connect(address);
            let own = client.local_addr().expect("connected").to_string();
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .expect("room");
            let mut got = String::new();
            client.read_to_string(&mut got).expect("an answer");
            (own, got)
        };
        let (own, got) = task::spawn_blocking(ask).await.expect("a client");
        assert!(got.ends_with(&own), "{got:?}, expected {own}");
    }
    for serving in servings {
        serving.abort();
    }
}

#[tokio::test]
async fn axum_is_asked_on_one_connection_again_and_again() {
    let deadline = Some(Duration::from_millis(300));
    let build = || {
        let deadlines = Deadlines { handshake: deadline, header: deadline, ..Deadlines::default() };
        bind().deadlines(deadlines).max_request_bytes(200)
    };
    let app = || axum::Router::new().fallback(async || "x");
    let here = build().build().expect("a listener");
    let threaded = build().build_threaded(8).expect("a listener");
    let ends = [(here.local_addr(), here.handle()), (threaded.local_addr(), threaded.handle())];
    let servings = [
        tokio::spawn(axum::serve(here, app()).into_future()),
        tokio::spawn(axum::serve(threaded, app()).into_future()),
    ];
    for (address, handle) in ends {
        let mut client = net::TcpStream::connect(address).await.expect("queued");
        let (begun, mut pace) = (Instant::now(), time::interval(Duration::from_millis(50)));
        while begun.elapsed() < Duration::from_millis(900) {
            pace.tick().await;
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("room");
            let mut got = [0; 1_024];
            let n = client.read(&mut got).await.expect("an answer");
            assert!(got[..n].starts_with(b"HTTP/1.1 200 "), "{:?}", &got[..n]);
        }
        assert!(200 < handle.stats().bytes_in, "{:?}", handle.stats());
        drop(client);
        let stats = until(&handle, |stats| stats.open == 0).await;
        assert_eq!(stats.timeouts_of(Deadline::Header), 0, "{stats:?}");
        check_rest(&stats);
    }
    for serving in servings {
        serving.abort();
    }
}

#[tokio::test]
async fn tonic_sheds_and_ends() {
    let serve: Serve = |listener, stop| Box::pin(tonic_example::serve(listener, stop));
    let listener = bind().soft(1).build().expect("a listener");
    let of_all = listener.handle();
    let client = async |address, handle: Handle, stop: oneshot::Sender<()>| {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URI");
        let channel = endpoint.connect().await.expect("served");
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.expect("served");
        let path = PathAndQuery::from_static("/example.Echo/Say");
        let request = Request::new(b"hello".to_vec());
        let got = client.unary(request, path, tonic_example::Raw).await.expect("an answer");
        let shed = task::spawn_blocking(move || {
            [(); 3].map(|()| connect(address).read(&mut [0]).map_err(|err| err.kind()))
        });
        assert_eq!(shed.await.expect("clients"), [Err(io::ErrorKind::ConnectionReset); 3]);
        stop.send(()).expect("it serves");
        assert_eq!(handle.ended().await.to_string(), "the listener is closed");
        got.into_inner()
    };
    let (served, got) = run(listener, serve, client).await;
    assert_eq!((served, got.as_slice()), (Ok(()), b"hello".as_slice()));
    let stats = until(&of_all, |stats| stats.open == 0).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Soft)), (1, 3));
    check_rest(&stats);
    check_fatal(serve).await;
}
