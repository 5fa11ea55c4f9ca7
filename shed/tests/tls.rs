//! TLS handshakes: silent, foolish and too many peers are shed and hold up nobody.

mod stats;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use backlogd_shed::{
    AnyListener, Candidate, Cause, Deadline, Deadlines, Decide, Handle, Handshakes, Load, OnShed,
    Reason, ShedListener, Stage, Staged, Stats, TlsListener, Verdict, rustls_config,
};
use stats::{Times, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net, task, time,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring, pki_types::ServerName},
    server::TlsStream,
};

#[path = "../examples/tls.rs"]
#[expect(dead_code, reason = "its main")]
mod tls_example;

/// A certificate for localhost and its key, as PEM.
fn made() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Both ends' configurations.
fn configured() -> (Arc<ServerConfig>, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = made.signing_key.serialize_pem();
    let server =
        rustls_config(made.cert.pem().as_bytes(), key.as_bytes()).expect("they belong together");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), TlsConnector::from(Arc::new(client)))
}

/// A listener for TLS, and a task that says to each peer what it says.
fn serve(
    listener: impl Into<AnyListener>,
    bounds: Handshakes,
    config: Arc<ServerConfig>,
) -> (SocketAddr, Handle) {
    let mut listener: TlsListener<TlsStream<Staged>> =
        TlsListener::rustls(listener, bounds, config).expect("in range");
    let (address, handle) = (listener.local_addr(), listener.handle());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    stream.write_u8(byte).await?;
                    stream.flush().await?;
                }
                stream.shutdown().await
            });
        }
    });
    (address, handle)
}

/// One byte there and back over TLS.
async fn talk(address: SocketAddr, connector: &TlsConnector) -> io::Result<()> {
    let name = ServerName::try_from("localhost").expect("a name");
    let conn = net::TcpStream::connect(address).await?;
    let mut stream = connector.connect(name, conn).await?;
    stream.write_u8(b'x').await?;
    stream.flush().await?;
    assert_eq!(stream.read_u8().await?, b'x');
    stream.shutdown().await
}

/// Everything was given back, and who was shed at the handshake was closed for that.
async fn check_rest(handle: &Handle) -> Stats {
    let stats = until(handle, |stats| stats.open == 0).await;
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!(stats.admitted, closed, "{stats:?}");
    assert_eq!(stats.shed_at(Stage::Handshake), stats.closed_for(Cause::Shed), "{stats:?}");
    stats
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("queued");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    client
}

/// How the connection of a client ended that reads, and when.
fn end(mut client: &TcpStream) -> (Option<io::ErrorKind>, Instant) {
    let result = client.read_to_end(&mut Vec::new());
    (result.err().map(|err| err.kind()), Instant::now())
}

/// `n` peers that say nothing are reset in time, and others are served meanwhile.
async fn check_silent(n: usize, deadline: Duration) {
    let (config, connector) = configured();
    let bounds = Handshakes { deadline, max: n + 40, ..Handshakes::default() };
    for is_threaded in [false, true] {
        let times = Times::of(Cause::Shed);
        let builder = ShedListener::bind("127.0.0.1:0").soft(n + 140).decide(times.clone());
        let (address, handle) = if is_threaded {
            let listener = builder.build_threaded(n + 140).expect("a listener");
            serve(listener, bounds, Arc::clone(&config))
        } else {
            serve(builder.build().expect("a listener"), bounds, Arc::clone(&config))
        };
        let silent = task::spawn_blocking(move || {
            let mut clients: Vec<_> = (0..n).map(|_| connect(address)).collect();
            // bytes that trickle in do not put it off
            clients[0].write_all(&[22]).expect("room");
            clients
        });
        let silent = silent.await.expect("clients");
        until(&handle, |stats| stats.open == n as u64).await;
        for _ in 0..10 {
            let begun = Instant::now();
            talk(address, &connector).await.expect("served");
            assert!(begun.elapsed() < deadline, "{:?}", begun.elapsed());
        }
        let stats = stats::within(deadline * 2, &handle, |stats| stats.open == 0).await;
        assert_eq!((stats.admitted, stats.shed_for(Reason::Tls)), (n as u64 + 10, n as u64));
        check_rest(&handle).await;
        let ends = task::spawn_blocking(move || silent.iter().map(|it| end(it).0).collect());
        let ends: Vec<_> = ends.await.expect("clients");
        assert_eq!(ends, vec![Some(io::ErrorKind::ConnectionReset); n]);
        let times = times.sorted();
        // on a busy machine, some are late
        let (first, most, last) = (times[0], times[n * 9 / 10 - 1], times[n - 1]);
        assert!(deadline <= first && most < deadline + Duration::from_millis(200), "{times:?}");
        assert!(last < deadline * 2, "{times:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_peers_are_reset_at_the_deadline_and_hold_up_nobody() {
    check_silent(60, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: twice the deadline that is the default"]
async fn three_hundred_silent_peers_are_reset_at_the_default_deadline() {
    let deadline = Handshakes::default().deadline;
    assert_eq!(deadline, Duration::from_secs(5));
    check_silent(300, deadline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_the_limit_of_handshakes_a_peer_is_reset_at_once() {
    let (config, connector) = configured();
    let listener = ShedListener::bind("127.0.0.1:0").soft(20).build().expect("a listener");
    let bounds = Handshakes { max: 4, ..Handshakes::default() };
    let (address, handle) = serve(listener, bounds, config);
    let silent: Vec<_> = (0..4).map(|_| connect(address)).collect();
    until(&handle, |stats| stats.open == 4).await;
    let ends =
        task::spawn_blocking(move || (0..6).map(|_| end(&connect(address)).0).collect::<Vec<_>>());
    assert_eq!(ends.await.expect("clients"), [Some(io::ErrorKind::ConnectionReset); 6]);
    // one that leaves makes room
    drop(silent);
    until(&handle, |stats| stats.open == 0).await;
    talk(address, &connector).await.expect("served");
    let stats = check_rest(&handle).await;
    assert_eq!((stats.shed_for(Reason::TlsBusy), stats.shed_for(Reason::Tls)), (6, 4));
    assert_eq!(stats.admitted, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_the_next_one_served() {
    let (config, connector) = configured();
    let listener = ShedListener::bind("127.0.0.1:0").soft(20).build().expect("a listener");
    let (address, handle) = serve(listener, Handshakes::default(), config);
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[22, 3, 1, 255, 255, 0], &[0; 512]] {
        let client = task::spawn_blocking(move || {
            let mut client = connect(address);
            client.write_all(garbage).expect("room");
            let mut got = Vec::new();
            (client.read_to_end(&mut got).map_err(|err| err.kind()), got)
        });
        let (ended, alert) = client.await.expect("a client");
        assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
        // a record of type 21 with two bytes, of which the first is: fatal
        assert_eq!((alert.len(), alert[0], alert[5]), (7, 21, 2), "{alert:?}");
    }
    talk(address, &connector).await.expect("served");
    let stats = check_rest(&handle).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Tls)), (4, 3));
}

/// Sheds everybody, with a text.
struct Answers;

impl Decide for Answers {
    fn decide(&self, _: &Candidate<'_>, _: &Load) -> Verdict {
        Verdict::Shed(Some(OnShed::http_429()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_of_a_verdict_is_a_reset_before_the_handshake() {
    let (config, _) = configured();
    let listener = ShedListener::bind("127.0.0.1:0").decide(Answers).build().expect("a listener");
    let (address, handle) = serve(listener, Handshakes::default(), config);
    let client = task::spawn_blocking(move || {
        let mut got = Vec::new();
        (connect(address).read_to_end(&mut got).map_err(|err| err.kind()), got)
    });
    let ended = client.await.expect("a client");
    assert_eq!(ended, (Err(io::ErrorKind::ConnectionReset), Vec::new()));
    let stats = check_rest(&handle).await;
    assert_eq!((stats.accepted, stats.shed_for(Reason::Policy)), (1, 1));
}

#[tokio::test]
async fn any_function_can_be_the_handshake() {
    let listener = ShedListener::bind("127.0.0.1:0").soft(20).build().expect("a listener");
    let mut listener =
        TlsListener::new(listener, Handshakes::default(), async |mut conn: Staged| {
            match conn.read_u8().await? {
                b'!' => panic!("on purpose"),
                b'?' => Ok(conn),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        })
        .expect("in range");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let clients = [b"!", b"x", b"?"].map(|word| {
        let mut client = connect(address);
        client.write_all(word).expect("room");
        client
    });
    let (passed, peer) = listener.accept().await.expect("the last one");
    assert_eq!(Some(peer), clients[2].local_addr().ok());
    handle.close();
    assert!(listener.accept().await.is_err());
    drop(passed);
    let stats = check_rest(&handle).await;
    assert_eq!((stats.shed_for(Reason::Tls), stats.closed_for(Cause::Panic)), (1, 1));
    assert_eq!(stats.closed_for(Cause::Handler), 1);
}

/// Counts who is inside at the same time.
#[derive(Debug, Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Inside {
    /// As a computation does, it keeps its thread.
    fn compute(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn so_many_compute_at_once_and_none_of_those_who_wait_for_their_peer() {
    let inside = Arc::<Inside>::default();
    let start = {
        let inside = Arc::clone(&inside);
        move |mut conn: Staged| {
            let inside = Arc::clone(&inside);
            async move {
                // silent ones stay here, and those who stop after a byte below
                conn.read_u8().await?;
                inside.compute();
                conn.read_u8().await?;
                inside.compute();
                Ok(conn)
            }
        }
    };
    let listener = ShedListener::bind("127.0.0.1:0").soft(500).build().expect("a listener");
    let bounds = Handshakes { max: 400, at_once: 2, deadline: Duration::from_secs(30) };
    let mut listener = TlsListener::new(listener, bounds, start).expect("in range");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let clients = task::spawn_blocking(move || {
        let silent = std::iter::repeat_n(b"".as_slice(), 300);
        let words = silent.chain([b"1".as_slice(); 20]).chain([b"12".as_slice(); 20]);
        words
            .map(|word| {
                let mut client = connect(address);
                client.write_all(word).expect("room");
                client
            })
            .collect::<Vec<_>>()
    });
    let passed = time::timeout(Duration::from_secs(10), async {
        let mut passed = Vec::new();
        while passed.len() < 20 {
            passed.push(listener.accept().await.expect("done"));
        }
        passed
    });
    let passed = passed.await.expect("others hold up nobody");
    assert_eq!(inside.most.load(Ordering::SeqCst), 2);
    drop((passed, listener, clients.await.expect("clients")));
    check_rest(&handle).await;
}

#[tokio::test]
async fn closed_it_finishes_what_was_begun() {
    let listener = ShedListener::bind("127.0.0.1:0").soft(20).build().expect("a listener");
    let mut listener =
        TlsListener::new(listener, Handshakes::default(), async |mut conn: Staged| {
            conn.read_u8().await.map(|_| conn)
        })
        .expect("in range");
    let handle = listener.handle();
    let mut client = connect(listener.local_addr());
    let begun = time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(begun.is_err(), "silent");
    handle.close();
    let begun = time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(begun.is_err(), "still silent");
    client.write_all(b"!").expect("room");
    assert!(listener.accept().await.is_ok());
    assert!(listener.accept().await.is_err());
    assert!(listener.accept().await.is_err());
    assert_eq!(check_rest(&handle).await.closed_for(Cause::Handler), 1);
}

#[tokio::test]
async fn dropped_it_ends_the_handshakes() {
    let (config, _) = configured();
    let listener = ShedListener::bind("127.0.0.1:0").soft(20).build().expect("a listener");
    let handle = listener.handle();
    let mut listener =
        TlsListener::rustls(listener, Handshakes::default(), config).expect("in range");
    let client = connect(listener.local_addr());
    let begun = time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(begun.is_err(), "silent");
    assert_eq!(handle.stats().open, 1);
    drop(listener);
    check_rest(&handle).await;
    assert_eq!(end(&client).0, Some(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn what_cannot_be_is_an_error_at_build() {
    let ((certificate, key), (_, other)) = (made(), made());
    let (config, _) = configured();
    let pem = |certificate: &str, key: &str| {
        let made = rustls_config(certificate.as_bytes(), key.as_bytes());
        made.expect_err("it cannot be").to_string()
    };
    let mismatch =
        "TLS key is not that of the first certificate, expected the two to belong together";
    assert_eq!(pem(&certificate, &other), mismatch);
    assert_eq!(
        pem("", &key),
        "TLS certificates: got none, expected PEM with at least one CERTIFICATE"
    );
    assert_eq!(
        pem(&certificate, &certificate),
        "TLS key: got none, expected PEM with a PRIVATE KEY"
    );
    let built = |on_shed: OnShed, bounds: Handshakes| {
        let listener = ShedListener::bind("127.0.0.1:0").on_shed_for(Reason::Soft, on_shed);
        let listener = listener.build().expect("a listener");
        TlsListener::rustls(listener, bounds, Arc::clone(&config))
            .map(|_| ())
            .map_err(|err| err.to_string())
    };
    let bounds = Handshakes::default();
    assert_eq!(built(OnShed::Fin, bounds), Ok(()));
    let text = "shed connections get a text, expected a reset or an end: a TLS client reads no \
                text before its handshake";
    assert_eq!(built(OnShed::http_503(), bounds), Err(text.to_owned()));
    assert_eq!(
        built(OnShed::Rst, Handshakes { max: 0, ..bounds }),
        Err("limit of TLS handshakes is 0, expected 1 to 2097151".to_owned())
    );
    assert_eq!(
        built(OnShed::Rst, Handshakes { at_once: 0, ..bounds }),
        Err("TLS handshakes at once are 0, expected 1 to 2097151".to_owned())
    );
    assert_eq!(
        built(OnShed::Rst, Handshakes { deadline: Duration::from_secs(61), ..bounds }),
        Err("deadline of TLS handshakes is 61s, expected 1ms to 60s".to_owned())
    );
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn axum_serves_who_is_done_and_shuts_down() {
    use axum::{Router, extract::ConnectInfo};
    use backlogd_shed::PeerAddr;

    let (config, connector) = configured();
    let listener = ShedListener::bind("127.0.0.1:0").soft(2).build().expect("a listener");
    let listener = TlsListener::rustls(listener, Handshakes::default(), config).expect("in range");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let app = Router::new()
        .fallback(|ConnectInfo(PeerAddr(it)): ConnectInfo<PeerAddr>| async move { it.to_string() })
        .into_make_service_with_connect_info::<PeerAddr>();
    let ended = {
        let handle = handle.clone();
        async move { drop(handle.ended().await) }
    };
    let client = async {
        let name = ServerName::try_from("localhost").expect("a name");
        let conn = net::TcpStream::connect(address).await.expect("queued");
        let own = conn.local_addr().expect("connected").to_string();
        let mut stream = connector.connect(name, conn).await.expect("served");
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("room");
        let mut got = String::new();
        stream.read_to_string(&mut got).await.expect("an answer");
        assert!(got.ends_with(&own), "{got:?}, expected {own}");
        handle.close();
    };
    let serving = axum::serve(listener, app).with_graceful_shutdown(ended);
    let (served, ()) = time::timeout(Duration::from_secs(5), async {
        tokio::join!(serving.into_future(), client)
    })
    .await
    .expect("both end");
    served.expect("closed");
    assert_eq!(check_rest(&handle).await.admitted, 1);
}

#[cfg(feature = "tonic")]
#[tokio::test]
async fn tonic_is_given_who_is_done_and_ends_with_the_listener() {
    use std::pin::Pin;

    use futures_core::Stream as _;
    use tonic::{
        service::Routes,
        transport::{Server, server::Connected as _},
    };

    let (config, connector) = configured();
    let listen = || {
        let listener = ShedListener::bind("127.0.0.1:0").soft(20).build().expect("a listener");
        let bounds = Handshakes::default();
        TlsListener::rustls(listener, bounds, Arc::clone(&config)).expect("in range").into_stream()
    };
    let mut stream = listen();
    let (address, handle) = (stream.local_addr(), stream.handle());
    let mut next = async || std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
    let client = async {
        let name = ServerName::try_from("localhost").expect("a name");
        let conn = net::TcpStream::connect(address).await.expect("queued");
        let own = conn.local_addr().expect("connected");
        (connector.connect(name, conn).await.expect("served"), own)
    };
    let ((_client, own), served) = tokio::join!(client, next());
    let served = served.expect("one").expect("admitted");
    assert_eq!(served.connect_info().get_ref().remote_addr(), Some(own));
    handle.close();
    assert!(next().await.is_none());
    drop(served);
    check_rest(&handle).await;

    let stream = listen();
    let handle = stream.handle();
    let server = Server::builder().add_routes(Routes::default()).serve_with_incoming(stream);
    handle.close();
    time::timeout(Duration::from_secs(5), server).await.expect("it ends").expect("closed");
}

#[tokio::test]
async fn whom_a_deadline_of_the_listener_ended_is_closed_for_that() {
    let (config, _) = configured();
    let handshake = Some(Duration::from_millis(100));
    let listener = ShedListener::bind("127.0.0.1:0")
        .deadlines(Deadlines { handshake, ..Deadlines::default() })
        .build()
        .expect("a listener");
    let (address, handle) = serve(listener, Handshakes::default(), config);
    let client = connect(address);
    until(&handle, |stats| stats.closed_for(Cause::Deadline) == 1).await;
    assert_eq!(end(&client).0, Some(io::ErrorKind::ConnectionReset));
    assert_eq!(check_rest(&handle).await.shed_for(Reason::Tls), 0);
}

#[tokio::test]
async fn who_is_done_with_its_handshake_has_met_that_deadline() {
    let (config, connector) = configured();
    let deadline = Duration::from_millis(300);
    let handshake = Some(deadline);
    let listener = ShedListener::bind("127.0.0.1:0")
        .deadlines(Deadlines { handshake, ..Deadlines::default() })
        .build()
        .expect("a listener");
    let (address, handle) = serve(listener, Handshakes::default(), config);
    let name = ServerName::try_from("localhost").expect("a name");
    let conn = net::TcpStream::connect(address).await.expect("queued");
    let mut stream = connector.connect(name, conn).await.expect("served");
    let (begun, mut pace) = (Instant::now(), time::interval(Duration::from_millis(50)));
    while begun.elapsed() < deadline * 3 {
        pace.tick().await;
        stream.write_u8(b'x').await.expect("room");
        stream.flush().await.expect("room");
        assert_eq!(stream.read_u8().await.expect("served"), b'x');
    }
    stream.shutdown().await.expect("served");
    assert_eq!(check_rest(&handle).await.closed_for(Cause::Deadline), 0);
}

#[tokio::test]
async fn a_header_is_expected_from_the_end_of_the_handshake_on() {
    let (config, connector) = configured();
    let header = Some(Duration::from_millis(500));
    let listener = ShedListener::bind("127.0.0.1:0")
        .deadlines(Deadlines { header, ..Deadlines::default() })
        .build()
        .expect("a listener");
    let (address, handle) = serve(listener, Handshakes::default(), config);
    let name = ServerName::try_from("localhost").expect("a name");
    let conn = net::TcpStream::connect(address).await.expect("queued");
    // the handshake takes longer than a header may
    time::sleep(Duration::from_millis(800)).await;
    let mut stream = connector.connect(name, conn).await.expect("served");
    assert_eq!(handle.stats().timeouts_of(Deadline::Header), 0);
    // the server reads, and says nothing of a header
    let ended = time::timeout(Duration::from_secs(5), stream.read_u8()).await;
    ended.expect("in time").expect_err("no answer");
    assert_eq!(handle.stats().timeouts_of(Deadline::Header), 1);
    check_rest(&handle).await;
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn axum_over_tls_is_asked_on_one_connection_again_and_again() {
    let (config, connector) = configured();
    let deadline = Some(Duration::from_millis(300));
    let listener = ShedListener::bind("127.0.0.1:0")
        .deadlines(Deadlines { handshake: deadline, header: deadline, ..Deadlines::default() })
        .max_request_bytes(2_000)
        .build()
        .expect("a listener");
    let listener = TlsListener::rustls(listener, Handshakes::default(), config).expect("in range");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let app = axum::Router::new().fallback(async || "x");
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    let name = ServerName::try_from("localhost").expect("a name");
    let conn = net::TcpStream::connect(address).await.expect("queued");
    let mut stream = connector.connect(name, conn).await.expect("served");
    let (begun, mut pace) = (Instant::now(), time::interval(Duration::from_millis(20)));
    while begun.elapsed() < Duration::from_millis(900) {
        pace.tick().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("room");
        let mut got = [0; 1_024];
        let n = stream.read(&mut got).await.expect("an answer");
        assert!(got[..n].starts_with(b"HTTP/1.1 200 "), "{:?}", &got[..n]);
    }
    assert!(2_000 < handle.stats().bytes_in, "{:?}", handle.stats());
    drop(stream);
    assert_eq!(check_rest(&handle).await.closed_for(Cause::Deadline), 0);
    serving.abort();
}

#[tokio::test]
async fn the_example_serves() {
    let (config, connector) = configured();
    let accepted = ShedListener::bind("127.0.0.1:0").build_threaded(8).expect("a listener");
    let listener = TlsListener::rustls(accepted, Handshakes::default(), config).expect("in range");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let (told, stop) = tokio::sync::oneshot::channel();
    let client = async {
        talk(address, &connector).await.expect("served");
        told.send(()).expect("it serves");
    };
    let serving = tls_example::serve(listener, async { stop.await.unwrap_or(()) });
    let (served, ()) = tokio::join!(serving, client);
    served.expect("closed");
    check_rest(&handle).await;
}
