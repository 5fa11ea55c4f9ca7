//! The PROXY protocol on real sockets: whose connection it is, and that no header can do harm.

mod sources;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use backlogd_shed::{Builder, Cause, OnShed, PerIp, ProxyProtocol, Rate, Reason, Stage};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream as Client,
    runtime, task, time,
};

use crate::sources::{
    A, B, EveryOther, bind, check_end, connect, connect_in_turn, n_served, range, serve, until,
};

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
    let deadline = Duration::from_secs(2);
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

/// A header that is right, with extensions if it is of version 2, and whom it names.
fn header() -> impl Strategy<Value = (Vec<u8>, Option<SocketAddr>)> {
    prop_oneof![
        any::<SocketAddrV4>().prop_map(|it| {
            let line = format!("PROXY TCP4 {} 192.0.2.2 {} 80\r\n", it.ip(), it.port());
            (line.into_bytes(), Some(it.into()))
        }),
        (any::<SocketAddrV4>(), 0_usize..4_000).prop_map(|(it, more)| {
            let addresses =
                [&it.ip().octets()[..], &[192, 0, 2, 2], &it.port().to_be_bytes(), &[0, 80]];
            (v2(0x21, 0x11, &addresses.concat(), more), Some(it.into()))
        }),
        (0_usize..4_000).prop_map(|more| (v2(0x20, 0x00, &[], more), None)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn wherever_it_is_cut_not_a_byte_after_the_header_is_taken(
        (header, peer) in header(),
        request in prop::collection::vec(any::<u8>(), 0..2_000),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let whole = [&header[..], &request].concat();
        let mut cuts: Vec<_> = cuts.into_iter().map(|it| it.index(whole.len())).collect();
        cuts.sort_unstable();
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut listener = proxied().build().expect("a listener");
            let mut client = Client::connect(listener.local_addr()).await.expect("queued");
            client.set_nodelay(true).expect("an option");
            let sends = async {
                let mut from = 0;
                for cut in cuts.into_iter().chain([whole.len()]) {
                    client.write_all(&whole[from..cut]).await.expect("room");
                    from = cut;
                    // what was sent is read before more is
                    task::yield_now().await;
                    task::yield_now().await;
                }
                client.shutdown().await.expect("open");
            };
            let (conn, ()) = tokio::join!(listener.accept(), sends);
            let mut conn = conn.expect("admitted");
            prop_assert_eq!(conn.peer_addr(), peer.unwrap_or(conn.raw_peer_addr()));
            let mut got = Vec::new();
            conn.read_to_end(&mut got).await.expect("an end");
            prop_assert_eq!(got, request);
            Ok(())
        })?;
    }
}
