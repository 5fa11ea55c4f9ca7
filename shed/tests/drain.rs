//! The end of a listener: nobody is cut off by its close, and whoever is left has a deadline.

mod load;

use std::{
    env,
    io::{self, Write as _},
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use backlogd_shed::{AcceptError, Cause, Drain, DrainStage, Queued, Reason, ShedListener};
use load::{Load, check_identities, serve, until};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task, time,
};

const AT_ONCE: Drain =
    Drain { delay: Duration::ZERO, deadline: Duration::from_secs(5), queued: Queued::Serve };

/// How often somebody is reset in so many final closes.
async fn close_under_load(rounds: usize) {
    for round in 0..rounds {
        let listener = ShedListener::bind("127.0.0.1:0").soft(5_000).build().expect("a listener");
        let (address, handle) = (listener.local_addr(), listener.handle());
        let served = tokio::spawn(serve(listener));
        let load = Load::start(address, 256, Duration::ZERO);
        load.until_served(300).await;
        let drained = handle.drain(AT_ONCE).await;
        served.await.expect("it ends");
        // what was reset is told by now; the others wait for an answer to their SYN
        time::sleep(Duration::from_millis(20)).await;
        let [_, shed, _, reset, hung] = load.abort().await;
        let stats = until(&handle, |stats| stats.open == 0).await;
        assert_eq!((shed, reset, hung, drained.reset), (0, 0, 0, 0), "round {round}: {stats:?}");
        check_identities(&stats);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_final_close_resets_nobody() {
    close_under_load(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: 50 closes under load"]
async fn fifty_final_closes_reset_nobody() {
    close_under_load(50).await;
}

/// A client that is connected, while the listener's side of the handshake does not end: its ACKs
/// are dropped until the listener gets another filter.
async fn half_done(listener: &std::net::TcpListener) -> TcpStream {
    let only_syns =
        [(0x30, 0, 0, 13), (0x54, 0, 0, 2), (0x15, 0, 1, 2), (6, 0, 0, u32::MAX), (6, 0, 0, 0)];
    SockRef::from(listener)
        .attach_filter(&only_syns.map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k)))
        .expect("a filter");
    let address = listener.local_addr().expect("an address");
    let mut client = TcpStream::connect(address).await.expect("connected, as the client sees it");
    // sent again after 0.2 s, and then it is the ACK that is missing
    client.write_all(b"x").await.expect("connected");
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_waits_for_handshakes_that_go_on() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let mut client = half_done(&socket).await;
    let listener = ShedListener::adopt(socket).build().expect("a listener");
    let handle = listener.handle();
    let served = tokio::spawn(serve(listener));
    let drain = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(AT_ONCE).await }
    });
    assert_eq!(client.read_u8().await.expect("served"), b'x');
    drop(client);
    assert_eq!(drain.await.expect("a drain").reset, 0);
    served.await.expect("it ends");
    check_identities(&handle.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_tells_waits_and_resets_who_is_left() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(100).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let accepting = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok(mut conn) => tokio::spawn(async move {
                    let told = conn.draining();
                    match conn.read_u8().await {
                        // in-flight work, that outlives the close
                        Ok(b'w') => {
                            told.await;
                            time::sleep(Duration::from_millis(200)).await;
                            drop(conn.write_u8(b'd').await);
                        }
                        // idle: ended when it is told
                        Ok(b'i') => told.await,
                        // does not care
                        _ => while conn.read_u8().await.is_ok() {},
                    }
                }),
                Err(AcceptError::Closed) => return,
                Err(err) => panic!("{err}"),
            };
        }
    });
    let mut clients = Vec::new();
    for kind in *b"wwwiiirr" {
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_u8(kind).await.expect("connected");
        clients.push((kind, client));
    }
    until(&handle, |stats| stats.open == 8).await;
    assert!(handle.is_ready());
    let begun = Instant::now();
    let drain = Drain {
        delay: Duration::from_millis(100),
        deadline: Duration::from_millis(700),
        queued: Queued::Serve,
    };
    let draining = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(drain).await }
    });
    while handle.is_ready() {
        time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(handle.stage(), DrainStage::Announced);
    let ends = loop {
        match handle.drain_ends() {
            Some(ends) => break ends,
            None => time::sleep(Duration::from_millis(1)).await,
        }
    };
    let latest = begun + drain.delay + drain.deadline;
    assert!((latest..latest + Duration::from_millis(500)).contains(&ends), "{:?}", ends - begun);
    let late = TcpStream::connect(address).await.expect("it still accepts");
    until(&handle, |stats| stats.open == 9).await;
    drop(late);
    for (kind, mut client) in clients {
        let got = client.read_u8().await.map_err(|err| err.kind());
        match kind {
            b'w' => assert_eq!(got, Ok(b'd')),
            b'i' => assert_eq!(got, Err(io::ErrorKind::UnexpectedEof)),
            _ => {
                assert_eq!(got, Err(io::ErrorKind::ConnectionReset));
                assert!(drain.delay + drain.deadline <= begun.elapsed(), "{:?}", begun.elapsed());
            }
        }
    }
    assert_eq!(draining.await.expect("a drain").reset, 2);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    accepting.await.expect("it ends without an error");
    let stats = until(&handle, |stats| stats.open == 0).await;
    assert_eq!(stats.closed_for(Cause::Drain), 2, "{stats:?}");
    assert_eq!((handle.stage(), handle.drain_ends()), (DrainStage::Done, None));
    check_identities(&stats);
    let refused = TcpStream::connect(address).await.expect_err("it is closed");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

// one thread: what tells of the drain closes the queue in the same turn
#[tokio::test]
async fn what_is_queued_may_be_shed() {
    let mut listener = ShedListener::bind("127.0.0.1:0")
        .on_shed_for(Reason::Draining, backlogd_shed::OnShed::bytes(load::SHED))
        .build()
        .expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(TcpStream::connect(address).await.expect("queued"));
    }
    let draining = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(Drain { queued: Queued::Shed, ..AT_ONCE }).await }
    });
    handle.draining().await;
    assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
    for mut client in clients {
        assert_eq!(client.read_u8().await.expect("told"), b'S');
    }
    draining.await.expect("a drain");
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.shed_for(Reason::Draining)), (20, 20));
    check_identities(&stats);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_somebody_else_is_left_as_it_was() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    let copy = socket.try_clone().expect("a copy");
    let listener = ShedListener::adopt(copy).build().expect("a listener");
    let handle = listener.handle();
    let served = tokio::spawn(serve(listener));
    handle.drain(AT_ONCE).await;
    served.await.expect("it ends");
    let connected = time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await;
    connected.expect("a SYN is answered").expect("queued, for the one who has it");
}

/// Whether a SYN is answered soon.
async fn is_answered(address: SocketAddr) -> bool {
    let connected = time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await;
    connected.is_ok_and(|it| it.is_ok())
}

/// A client that gets no SYN-ACK: the listener's side of the handshake goes on for seconds.
fn half_open(address: SocketAddr) -> Socket {
    let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
    client.attach_filter(&[SockFilter::new(6, 0, 0, 0)]).expect("a filter");
    // its SYN is sent
    drop(client.connect(&address.into()));
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_somebody_else_answers_though_its_drain_was_hurried() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    let _client = half_open(address);
    let copy = socket.try_clone().expect("a copy");
    let listener = ShedListener::adopt(copy).build().expect("a listener");
    let handle = listener.handle();
    let served = tokio::spawn(serve(listener));
    let first = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(AT_ONCE).await }
    });
    // then it waits for the handshake
    let begun = Instant::now();
    while is_answered(address).await {
        assert!(begun.elapsed() < Duration::from_secs(10), "no SYN is refused");
    }
    handle.drain(AT_ONCE).await;
    first.await.expect("a drain");
    served.await.expect("it ends");
    assert!(is_answered(address).await, "by the one who has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_ends_everything_at_once() {
    let listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    tokio::spawn(serve(listener));
    let mut client = TcpStream::connect(address).await.expect("connected");
    until(&handle, |stats| stats.open == 1).await;
    let begun = Instant::now();
    let first = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(Drain::default()).await }
    });
    while handle.is_ready() {
        time::sleep(Duration::from_millis(1)).await;
    }
    let second = handle.drain(Drain::default()).await;
    assert_eq!(first.await.expect("a drain"), second);
    assert_eq!(second.reset, 1);
    assert!(begun.elapsed() < Drain::default().delay, "{:?}", begun.elapsed());
    let ended = time::timeout(Duration::from_secs(5), client.read_u8()).await.expect("it ends");
    assert_eq!(ended.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}

/// The address that the process of clients connects to, and how many they are.
const ADDRESS: &str = "SHED_TEST_ADDRESS";
const CLIENTS: &str = "SHED_TEST_CLIENTS";

/// 1 % have work done, the others say nothing.
#[tokio::test]
#[ignore = "no test: clients, in a process with descriptors of its own"]
async fn clients() {
    let Ok(address) = env::var(ADDRESS) else { return };
    let n: usize = env::var(CLIENTS).expect("a number").parse().expect("a number");
    let mut clients = Vec::new();
    for _ in 0..n {
        clients.push(TcpStream::connect(&address).await.expect("connected"));
    }
    for client in &mut clients[..n / 100] {
        client.write_u8(b'w').await.expect("connected");
    }
    let (mut done, mut reset, mut other) = (0, 0, 0);
    for mut client in clients {
        match client.read_u8().await.map_err(|err| err.kind()) {
            Ok(b'd') => done += 1,
            Err(io::ErrorKind::ConnectionReset) => reset += 1,
            _ => other += 1,
        }
    }
    writeln!(io::stdout(), "\n@{done} {reset} {other}").expect("somebody reads");
}

/// In-flight work is done inside the deadline, the rest is reset, and all permits come back.
async fn drain_many(n: usize) {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(n).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let working = Arc::<AtomicU64>::default();
    let at_work = Arc::clone(&working);
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            let at_work = Arc::clone(&at_work);
            tokio::spawn(async move {
                if matches!(conn.read_u8().await, Ok(b'w')) {
                    at_work.fetch_add(1, Ordering::SeqCst);
                    conn.draining().await;
                    time::sleep(Duration::from_millis(300)).await;
                    drop(conn.write_u8(b'd').await);
                }
            });
        }
    });
    let clients = task::spawn_blocking(move || {
        Command::new(env::current_exe().expect("a path"))
            .args(["--exact", "clients", "--ignored", "--nocapture"])
            .env(ADDRESS, address.to_string())
            .env(CLIENTS, n.to_string())
            .output()
            .expect("clients")
    });
    let n_working = n as u64 / 100;
    until(&handle, |stats| stats.open == n as u64).await;
    while working.load(Ordering::SeqCst) < n_working {
        time::sleep(Duration::from_millis(1)).await;
    }
    let begun = Instant::now();
    let deadline = Duration::from_secs(2);
    let drained = handle.drain(Drain { deadline, ..AT_ONCE }).await;
    let took = begun.elapsed();
    assert!(deadline <= took && took < deadline * 2, "{took:?}");
    assert_eq!(drained.reset, n as u64 - n_working);
    let stats = until(&handle, |stats| stats.open == 0).await;
    assert_eq!(stats.closed_for(Cause::Drain), drained.reset);
    check_identities(&stats);
    let said = clients.await.expect("clients").stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let expected = format!("@{n_working} {} 0", drained.reset);
    assert!(said.contains(&expected), "expected {expected} in {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: 10,000 connections"]
async fn ten_thousand_connections_drain() {
    drain_many(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_hundred_connections_drain() {
    drain_many(300).await;
}

#[tokio::test]
async fn who_asks_again_ends_it_though_the_first_request_was_dropped() {
    let listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let serving = tokio::spawn(serve(listener));
    let mut client = TcpStream::connect(address).await.expect("connected");
    until(&handle, |stats| stats.open == 1).await;
    let long =
        Drain { delay: Duration::ZERO, deadline: Duration::from_secs(60), queued: Queued::Serve };
    for wait in [10, 100] {
        let begun = time::timeout(Duration::from_millis(wait), handle.drain(long));
        if let Ok(drained) = begun.await {
            assert_eq!(drained.reset, 1);
        }
    }
    assert_eq!(handle.stage(), DrainStage::Done);
    assert!(client.read_u8().await.is_err());
    serving.await.expect("it ends");
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}
