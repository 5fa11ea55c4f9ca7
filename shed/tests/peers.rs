//! Limits by peer and by rate, exempt ranges and the PROXY protocol, on real sockets.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{
    Builder, Candidate, Cause, Cidr, Decide, Handle, Load, OnShed, PerIp, ProxyProtocol, Rate,
    Reason, ShedListener, Stage, Stats, Verdict, WhenFull,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream as Client,
    task, time,
};

/// Waits until `is_so`, at most 5 s.
async fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let stats = handle.stats();
        if is_so(&stats) {
            return stats;
        }
        assert!(Instant::now() < end, "{stats:?}");
        // a task, so that clocks of tests do not move on
        task::spawn_blocking(|| thread::sleep(Duration::from_millis(1))).await.expect("a wait");
    }
}

/// Both identities; everything at rest and given back.
async fn check_end(handle: &Handle) -> Stats {
    let stats = until(handle, |it| it.open == 0 && it.lingering == 0).await;
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!(stats.admitted, closed + stats.open, "{stats:?}");
    assert_eq!(stats.closed_for(Cause::Shed), stats.shed_at(Stage::Handshake), "{stats:?}");
    assert_eq!((stats.exempt_open, stats.handshaking), (0, 0), "{stats:?}");
    stats
}

fn bind() -> Builder {
    ShedListener::bind("127.0.0.1:0")
}

fn range(text: &str) -> Cidr {
    text.parse().expect("a range")
}

/// Serves in tasks: says who the peer is and what it sent so far, until it closes.
fn serve(builder: Builder) -> (SocketAddr, Handle, task::JoinHandle<()>) {
    let mut listener = builder.build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let server = tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            tokio::spawn(async move {
                let name = format!("{} {} ", conn.peer_addr(), conn.raw_peer_addr().ip());
                if conn.write_all(name.as_bytes()).await.is_ok() {
                    let mut buffer = [0; 1_024];
                    while let Ok(n @ 1..) = conn.read(&mut buffer).await {
                        if conn.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, handle, server)
}

/// A connection from `from`, any of 127.0.0.0/8.
fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    try_connect(from, to).expect("queued")
}

/// The same for one that may be shed: the reset may be quicker than connect(2).
fn try_connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// How `n` connections from `from` fare, in turn: `Ok` is served.
async fn connect_in_turn(
    from: Ipv4Addr,
    to: SocketAddr,
    n: usize,
) -> Vec<Result<TcpStream, ErrorKind>> {
    task::spawn_blocking(move || {
        (0..n)
            .map(|_| {
                let mut client = try_connect(from, to).map_err(|err| err.kind())?;
                client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                match client.read(&mut [0; 64]) {
                    Ok(0) => Err(ErrorKind::UnexpectedEof),
                    Ok(_) => Ok(client),
                    Err(err) => Err(err.kind()),
                }
            })
            .collect()
    })
    .await
    .expect("clients")
}

fn n_served(results: &[Result<TcpStream, ErrorKind>]) -> usize {
    assert!(results.iter().all(|it| it.is_ok() || matches!(it, Err(ErrorKind::ConnectionReset))));
    results.iter().filter(|it| it.is_ok()).count()
}

const A: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_does_not_take_what_others_need() {
    let (address, handle, _) = serve(bind().soft(100).per_ip(PerIp::connections(3)));
    let mut of_a = connect_in_turn(A, address, 10).await;
    let of_b = connect_in_turn(B, address, 2).await;
    assert_eq!((n_served(&of_a), n_served(&of_b)), (3, 2));
    let stats = handle.stats();
    assert_eq!((stats.shed_for(Reason::PerIp), stats.peers_tracked), (7, 2));
    // a place is free after a close
    drop(of_a.remove(0));
    until(&handle, |it| it.open == 4).await;
    let again = connect_in_turn(A, address, 2).await;
    assert_eq!(n_served(&again), 1);
    drop((of_a, of_b, again));
    let stats = check_end(&handle).await;
    assert_eq!((stats.shed_for(Reason::PerIp), stats.peers_tracked), (8, 0));
    assert_eq!((stats.accepted, stats.admitted), (14, 6));
}

#[tokio::test]
async fn the_rate_holds_for_all_together() {
    time::pause();
    let (address, handle, _) = serve(bind().rate(Rate::per_second(10).burst(5)));
    assert_eq!(n_served(&connect_in_turn(A, address, 8).await), 5);
    time::advance(Duration::from_millis(250)).await;
    assert_eq!(n_served(&connect_in_turn(B, address, 8).await), 2);
    time::advance(Duration::from_secs(60)).await;
    assert_eq!(n_served(&connect_in_turn(A, address, 8).await), 5);
    let stats = check_end(&handle).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Rate)), (12, 12));
}

#[tokio::test]
async fn a_peer_has_a_rate_of_its_own() {
    time::pause();
    let limit = PerIp { rate: Some(Rate::per_second(1).burst(2)), ..PerIp::connections(10) };
    let (address, handle, _) = serve(bind().per_ip(limit));
    assert_eq!(n_served(&connect_in_turn(A, address, 5).await), 2);
    assert_eq!(n_served(&connect_in_turn(B, address, 5).await), 2);
    until(&handle, |it| it.open == 0).await;
    assert_eq!(handle.stats().peers_tracked, 2, "their buckets are not full");
    time::advance(Duration::from_secs(1)).await;
    assert_eq!(n_served(&connect_in_turn(A, address, 5).await), 1);
    time::advance(Duration::from_secs(3)).await;
    let stats = check_end(&handle).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::PerIp), stats.peers_tracked), (5, 10, 0));
}

/// Refuses every other one, and keeps in mind who was asked about.
#[derive(Clone, Default)]
struct EveryOther(Arc<Mutex<Vec<SocketAddr>>>);

impl Decide for EveryOther {
    fn decide(&self, candidate: &Candidate<'_>, _: &Load) -> Verdict {
        let mut asked = self.0.lock().expect("no panic");
        asked.push(candidate.peer);
        if asked.len().is_multiple_of(2) { Verdict::Shed(None) } else { Verdict::Admit }
    }
}

#[tokio::test]
async fn what_a_refused_connection_took_is_given_back_exactly() {
    time::pause();
    let rate = Some(Rate::per_second(1).burst(2));
    let limit = PerIp { rate, ..PerIp::connections(2) };
    let builder = bind().soft(4).rate(Rate::per_second(1).burst(3)).per_ip(limit);
    let (address, handle, _) = serve(builder.decide(EveryOther::default()));
    // admitted, refused by the user, admitted, and then by what the peer may have
    let of_a = connect_in_turn(A, address, 10).await;
    assert_eq!(n_served(&of_a), 2);
    let stats = handle.stats();
    assert_eq!((stats.shed_for(Reason::Policy), stats.shed_for(Reason::PerIp)), (1, 7));
    // of three tokens one is left, in spite of eight that were refused after they had one
    let of_b = connect_in_turn(B, address, 3).await;
    assert_eq!(n_served(&of_b), 1, "the user refuses the first");
    let stats = handle.stats();
    assert_eq!((stats.shed_for(Reason::Policy), stats.shed_for(Reason::Rate)), (2, 1));
    drop((of_a, of_b));
    check_end(&handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_limit_that_refuses_is_the_reason() {
    let limit = PerIp::connections(1);
    let (address, handle, _) =
        serve(bind().soft(2).per_ip(limit).rate(Rate::per_second(1).burst(9)));
    let held = connect_in_turn(A, address, 2).await;
    let more = connect_in_turn(B, address, 3).await;
    assert_eq!((n_served(&held), n_served(&more)), (1, 1));
    let stats = handle.stats();
    assert_eq!((stats.shed_for(Reason::PerIp), stats.shed_for(Reason::Soft)), (1, 2));
    drop((held, more));
    check_end(&handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exempt_peers_are_served_above_the_soft_limit_but_not_above_the_hard_one() {
    let builder = bind().soft(4).hard(10).exempt([range("127.0.0.2")]);
    let builder = builder.per_ip(PerIp::connections(4)).rate(Rate::per_second(1).burst(4));
    let (address, handle, _) = serve(builder);
    let held = connect_in_turn(A, address, 5).await;
    assert_eq!(n_served(&held), 4);
    // one after the other, so that none is in the way of the next
    for n in 1..=100 {
        assert_eq!(n_served(&connect_in_turn(B, address, 1).await), 1, "check {n}");
        until(&handle, |it| it.open == 4).await;
    }
    let checks = connect_in_turn(B, address, 6).await;
    assert_eq!(n_served(&checks), 6, "above what a peer may have");
    // hard: the next one waits in the accept queue until there is room
    let mut waits = connect(B, address);
    let stats = until(&handle, |it| it.is_paused.is_some()).await;
    assert_eq!((stats.open, stats.exempt_open), (10, 6));
    waits.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let err = waits.read(&mut [0; 64]).expect_err("nobody serves it");
    assert_eq!(err.kind(), ErrorKind::WouldBlock);
    drop(checks);
    waits.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    assert_ne!(waits.read(&mut [0; 64]).expect("served"), 0);
    drop((held, waits));
    let stats = check_end(&handle).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Soft)), (111, 1));
}

/// What a proxy sends, and then what comes back until the end.
async fn exchange(address: SocketAddr, parts: &[&[u8]]) -> Result<String, ErrorKind> {
    let mut client = Client::connect(address).await.expect("queued");
    client.set_nodelay(true).expect("an option");
    for part in parts {
        if client.write_all(part).await.is_err() {
            break;
        }
        task::yield_now().await;
    }
    // a reset may have come before
    drop(client.shutdown().await);
    let mut got = Vec::new();
    let result = time::timeout(Duration::from_secs(5), client.read_to_end(&mut got)).await;
    result.expect("an end").map_err(|err| err.kind())?;
    Ok(String::from_utf8(got).expect("text"))
}

/// Waits for an answer, at most 5 s; `Ok`: it is served.
async fn answer(client: &mut Client) -> Result<(), ErrorKind> {
    let mut buffer = [0; 64];
    let got = time::timeout(Duration::from_secs(5), client.read(&mut buffer)).await;
    match got.expect("an answer") {
        Ok(0) => Err(ErrorKind::UnexpectedEof),
        Ok(_) => Ok(()),
        Err(err) => Err(err.kind()),
    }
}

fn proxied() -> Builder {
    bind().proxy_protocol(ProxyProtocol::from([range("127.0.0.0/8")]))
}

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, with extensions of `more` bytes.
fn v2(command: u8, family: u8, addresses: &[u8], more: usize) -> Vec<u8> {
    let length = u16::try_from(addresses.len() + more).expect("two bytes");
    let mut bytes = [V2, &[command, family], &length.to_be_bytes(), addresses].concat();
    bytes.resize(bytes.len() + more, 0xee);
    bytes
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x1f, 0x90, 0, 80];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_says_whose_connection_it_is_and_nothing_after_it_is_lost() {
    let (address, handle, _) = serve(proxied());
    let cases: [(Vec<u8>, &str); 6] = [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n".into(), "192.0.2.1:8080"),
        (b"PROXY TCP6 2001:db8::1 ::1 8080 80\r\n".into(), "[2001:db8::1]:8080"),
        (v2(0x21, 0x11, &IPV4, 0), "192.0.2.1:8080"),
        (v2(0x21, 0x11, &IPV4, 4_068), "192.0.2.1:8080"),
        (v2(0x20, 0x00, &[], 0), "127.0.0.1:"),
        (b"PROXY UNKNOWN\r\n".into(), "127.0.0.1:"),
    ];
    let n = cases.len() as u64;
    for (header, peer) in cases {
        let whole = [header.as_slice(), b"GET / \0\xc3\xa4"].concat();
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        let halves: Vec<&[u8]> = whole.chunks(whole.len() / 2).collect();
        let at_the_end = [header.as_slice(), b"GET / \0\xc3\xa4"];
        for parts in [&[whole.as_slice()][..], &bytes, &halves, &at_the_end] {
            let got = exchange(address, parts).await.expect("served");
            assert!(got.starts_with(peer), "{got:?}, expected {peer}");
            assert!(got.ends_with(" 127.0.0.1 GET / \0ä"), "{got:?}");
        }
    }
    let stats = check_end(&handle).await;
    assert_eq!((stats.admitted, stats.closed_for(Cause::Peer)), (4 * n, 4 * n));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_with_a_wrong_header_is_shed() {
    let (address, handle, _) = serve(proxied());
    let too_long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 4_096]].concat();
    let cases: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 8080 80\r\n",
        b"PROXY TCP4 192.0.2.1",
        b"",
        &too_long,
        &v2(0x21, 0x11, &IPV4[..11], 0),
        &v2(0x21, 0x11, &IPV4, 4_069),
    ];
    for (n, bytes) in cases.iter().enumerate() {
        let got = exchange(address, &[bytes]).await;
        assert!(matches!(got, Err(ErrorKind::ConnectionReset)), "{n}: {got:?}");
    }
    let stats = check_end(&handle).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::ProxyHeader)), (7, 7));
    assert_eq!(stats.shed_at(Stage::Handshake), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_proxy_cannot_lie() {
    let settings = ProxyProtocol::from([range("127.0.0.2")]);
    let (address, handle, _) = serve(bind().proxy_protocol(settings).per_ip(PerIp::connections(1)));
    let lie = b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n";
    let got = exchange(address, &[lie]).await.expect("served");
    assert!(got.starts_with("127.0.0.1:"), "{got:?}");
    assert!(got.ends_with("PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n"), "{got:?}");
    check_end(&handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_by_peer_is_that_of_the_header() {
    let builder = proxied().per_ip(PerIp::connections(2)).exempt([range("198.51.100.0/24")]);
    let (address, handle, _) = serve(builder);
    let mut held = Vec::new();
    for (source, served) in [
        ("TCP6 2001:db8:0:1::1 ::1", true),
        ("TCP6 2001:db8:0:1:ffff::2 ::1", true),
        ("TCP6 2001:db8:0:1::3 ::1", false),
        ("TCP6 2001:db8:0:2::1 ::1", true),
        ("TCP4 192.0.2.1 192.0.2.2", true),
        ("TCP6 ::ffff:192.0.2.1 ::1", true),
        ("TCP4 192.0.2.1 192.0.2.2", false),
        ("TCP4 198.51.100.1 192.0.2.2", true),
        ("TCP4 198.51.100.1 192.0.2.2", true),
        ("TCP4 198.51.100.1 192.0.2.2", true),
    ] {
        let mut client = Client::connect(address).await.expect("queued");
        let header = format!("PROXY {source} 1 2\r\n");
        client.write_all(header.as_bytes()).await.expect("room");
        assert_eq!(answer(&mut client).await.is_ok(), served, "{source}");
        held.push(client);
    }
    // the proxy itself is not limited: its own checks are many
    for _ in 0..5 {
        let mut client = Client::connect(address).await.expect("queued");
        client.write_all(&v2(0x20, 0, &[], 0)).await.expect("room");
        assert_eq!(answer(&mut client).await, Ok(()));
        held.push(client);
    }
    let stats = handle.stats();
    assert_eq!((stats.shed_for(Reason::PerIp), stats.peers_tracked), (2, 3));
    assert_eq!(stats.shed_at(Stage::Handshake), 2);
    drop(held);
    assert_eq!(check_end(&handle).await.peers_tracked, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_is_asked_about_whom_the_header_names() {
    let asked = EveryOther::default();
    let limit = PerIp { rate: Some(Rate::per_second(1).burst(2)), ..PerIp::connections(1) };
    let (address, handle, _) = serve(proxied().per_ip(limit).decide(asked.clone()));
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n";
    // who is refused took no token
    for is_served in [true, false, true] {
        assert_eq!(exchange(address, &[header]).await.is_ok(), is_served);
        until(&handle, |it| it.open == 0).await;
    }
    let stats = check_end(&handle).await;
    assert_eq!((stats.shed_for(Reason::Policy), stats.shed_at(Stage::Handshake)), (1, 1));
    let peer: SocketAddr = "192.0.2.1:8080".parse().expect("an address");
    assert_eq!(*asked.0.lock().expect("no panic"), [peer; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_proxies_end_at_the_deadline_and_hold_nobody_up() {
    let deadline = Duration::from_millis(300);
    let settings = ProxyProtocol { deadline, max: 20, ..ProxyProtocol::from([range("127.0.0.2")]) };
    let (address, handle, _) =
        serve(bind().proxy_protocol(settings).on_shed_for(Reason::ProxyHeader, OnShed::Fin));
    let begun = Instant::now();
    let silent: Vec<_> =
        task::spawn_blocking(move || (0..25).map(|_| connect(B, address)).collect::<Vec<_>>())
            .await
            .expect("clients");
    let stats =
        until(&handle, |it| it.handshaking == 20 && it.shed_for(Reason::ProxyHeader) == 5).await;
    assert_eq!(stats.accepted, 25);
    assert_eq!(n_served(&connect_in_turn(A, address, 10).await), 10);
    assert!(begun.elapsed() < deadline, "{:?}", begun.elapsed());
    // a byte does not move it
    (&silent[0]).write_all(b"P").expect("room");
    let stats = until(&handle, |it| it.handshaking == 0).await;
    assert!(deadline <= begun.elapsed(), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < deadline * 2, "{:?}", begun.elapsed());
    assert_eq!(stats.shed_for(Reason::ProxyHeader), 25);
    for mut client in silent.iter().skip(1) {
        assert_eq!(client.read(&mut [0; 1]).expect("an end"), 0);
    }
    check_end(&handle).await;
}

#[tokio::test]
async fn a_flood_of_proxied_connections_leaves_others_their_turn() {
    let settings = ProxyProtocol { max: 4, ..ProxyProtocol::from([range("127.0.0.2")]) };
    let mut listener = bind().proxy_protocol(settings).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let flood =
        task::spawn_blocking(move || (0..200).map(|_| connect(B, address)).collect::<Vec<_>>());
    let flood = flood.await.expect("clients");
    let watched = handle.clone();
    let other = tokio::spawn(async move {
        while watched.stats().accepted == 0 {
            task::yield_now().await;
        }
        watched.stats().accepted
    });
    let server = tokio::spawn(async move { listener.accept().await.map(drop) });
    let n = other.await.expect("its turn");
    assert!(n < 20, "{n} of 200 were accepted in a row");
    let stats =
        until(&handle, |it| it.handshaking == 4 && it.shed_for(Reason::ProxyHeader) == 196).await;
    assert_eq!(stats.accepted, 200);
    drop(flood);
    until(&handle, |it| it.handshaking == 0).await;
    server.abort();
    check_end(&handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_hard_limit_headers_are_still_read() {
    // accepts again at 24
    let builder = proxied().soft(16).hard(32).exempt([range("127.0.0.1")]);
    let (address, handle, _) = serve(builder);
    let mut held = Vec::new();
    for _ in 0..33 {
        held.push(Client::connect(address).await.expect("queued"));
    }
    until(&handle, |it| it.is_paused.is_some() && it.handshaking == 32).await;
    let queued = held.pop().expect("33");
    for client in held.iter_mut().take(12) {
        client.write_all(b"PROXY UNKNOWN\r\n").await.expect("room");
        assert_eq!(answer(client).await, Ok(()));
        assert_eq!(handle.stats().accepted, 32);
    }
    // below the hard limit, and above where accepting goes on: also for a loop that was busy
    drop(held.remove(0));
    until(&handle, |it| it.open == 31).await;
    held[20].write_all(b"PROXY UNKNOWN\r\n").await.expect("room");
    assert_eq!(answer(&mut held[20]).await, Ok(()));
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.handshaking, stats.exempt_open), (32, 19, 31));
    assert!(stats.is_paused.is_some());
    held.truncate(24);
    until(&handle, |it| it.accepted == 33).await;
    drop((held, queued));
    check_end(&handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_ends_gives_all_back() {
    let (address, handle, server) = serve(proxied().per_ip(PerIp::connections(9)));
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(Client::connect(address).await.expect("queued"));
    }
    until(&handle, |it| it.handshaking == 10).await;
    server.abort();
    drop(server.await);
    let stats = check_end(&handle).await;
    assert_eq!((stats.shed_for(Reason::Draining), stats.shed_at(Stage::Handshake)), (10, 10));
    for client in &mut held {
        let err = client.read(&mut [0; 1]).await.expect_err("shed");
        assert_eq!(err.kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_closed_serves_whom_it_accepted() {
    let (address, handle, server) = serve(proxied());
    let mut client = Client::connect(address).await.expect("queued");
    until(&handle, |it| it.handshaking == 1).await;
    handle.close();
    // so that the loop knows of it before the header comes
    time::sleep(Duration::from_millis(20)).await;
    client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n").await.expect("room");
    assert_eq!(answer(&mut client).await, Ok(()));
    server.await.expect("it ends");
    drop(client);
    check_end(&handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv4_over_an_ipv6_socket_is_ipv4() {
    let builder = ShedListener::bind("[::]:0").per_ip(PerIp::connections(1));
    let (address, handle, _) = serve(builder.exempt([range("127.0.0.2")]));
    let address = (A, address.port()).into();
    let (of_a, of_b) = (connect_in_turn(A, address, 3).await, connect_in_turn(B, address, 3).await);
    assert_eq!((n_served(&of_a), n_served(&of_b)), (1, 3));
    assert_eq!(n_served(&connect_in_turn(Ipv4Addr::new(127, 0, 0, 3), address, 1).await), 1);
    drop((of_a, of_b));
    check_end(&handle).await;
}

#[tokio::test]
async fn numbers_out_of_range_are_refused() {
    #[track_caller]
    fn check(builder: Builder, expected: &str) {
        assert_eq!(builder.build().expect_err("out of range").to_string(), expected);
    }
    check(bind().rate(Rate::per_second(0)), "rate is 0, expected 1 to 1000000");
    check(bind().per_ip(PerIp::connections(0)), "limit per peer is 0, expected 1 to 2097151");
    let settings = ProxyProtocol::from([]);
    let deadline = Duration::from_secs(61);
    check(
        bind().proxy_protocol(ProxyProtocol { deadline, ..settings.clone() }),
        "deadline of PROXY headers in ms is 61000, expected 1 to 60000",
    );
    check(
        bind().proxy_protocol(ProxyProtocol { max: 0, ..settings }),
        "PROXY headers awaited at once is 0, expected 1 to 65536",
    );
}

/// Of this process.
fn resident_pages() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("a file of the kernel");
    statm.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a number")
}

/// Connects once from each of `n` addresses, in turn; how many were served.
async fn from_distinct_sources(n: u32, capacity: usize) -> (Stats, usize) {
    let rate = Some(Rate::per_second(1).burst(1));
    let limit = PerIp { rate, capacity, when_full: WhenFull::Shed, ..PerIp::connections(1) };
    let (address, handle, _) = serve(bind().per_ip(limit));
    // what is allocated once is so
    drop(connect_in_turn(A, address, 100).await);
    let before = resident_pages();
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
    task::spawn_blocking(move || {
        for n in 0..n {
            let mut client = connect((first + n).into(), address);
            assert_ne!(client.read(&mut [0; 64]).expect("served"), 0);
        }
    })
    .await
    .expect("clients");
    let after = resident_pages();
    (check_end(&handle).await, after.saturating_sub(before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_sources_than_places_are_served_all_the_same() {
    let (stats, _) = from_distinct_sources(2_000, 64).await;
    assert!(stats.peers_tracked <= 64, "{stats:?}");
    assert!(1_500 < stats.peers_evicted, "{stats:?}");
    assert_eq!(stats.peers_full, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: 100,000 connections one after the other"]
async fn a_hundred_thousand_sources_take_no_memory() {
    let (stats, pages) = from_distinct_sources(100_000, 4_096).await;
    assert!(stats.peers_tracked <= 4_096, "{stats:?}");
    assert_eq!(stats.peers_full, 0);
    assert!(pages < 512, "{pages} pages more");
}
