use std::{collections::BTreeSet, net::IpAddr, net::UdpSocket as Client};

use proptest::prelude::*;

use super::*;

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn client() -> Client {
    let client = Client::bind(loopback()).expect("a port");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    client
}

fn bind(config: UdpConfig) -> UdpGroup {
    UdpGroup::bind(loopback(), config).expect("a group")
}

#[test]
fn what_cannot_hold_is_named() {
    let check = |config: UdpConfig, expected: &str| {
        let refused = UdpGroup::bind(loopback(), config).expect_err("refused");
        assert_eq!(refused.to_string(), expected);
    };
    let default = UdpConfig::default();
    check(UdpConfig { sockets: 0, ..default }, "udp: sockets is 0, expected 1 to 1024");
    check(
        UdpConfig { max_datagram: 65_508, ..default },
        "udp: max_datagram is 65508, expected 1 to 65507",
    );
    let rate = Some(SourceRate { burst: 0, ..SourceRate::per_second(1) });
    check(UdpConfig { rate, ..default }, "udp: burst is 0, expected 1 to 1000000");
}

#[tokio::test]
async fn sockets_of_others_are_not_joined_unasked() {
    for address in ["127.0.0.1:0", "[::]:0"] {
        let config = UdpConfig { sockets: 2, ..Default::default() };
        let address = address.parse().expect("an address");
        let others = UdpGroup::bind(address, config).expect("a group");
        let address = others.local_addr();
        let refused = UdpGroup::bind(address, config).map(drop).expect_err("in use");
        let message = refused.to_string();
        let (begin, end) = message.split_once("by socket ").expect("an owner");
        assert_eq!(begin, format!("udp {address}: the address is in use, "));
        assert!(end.ends_with(&format!("[{}]", std::process::id())), "{message}");
        assert!(matches!(refused, UdpError::InUse { owner: Some(_), .. }), "{refused:?}");
        let joined = UdpGroup::bind(address, UdpConfig { join_others: true, ..config });
        assert_eq!(joined.expect("asked for").local_addr(), address);
    }
}

#[tokio::test]
async fn each_of_four_sockets_has_a_share_and_answers() {
    let group = bind(UdpConfig { sockets: 4, ..Default::default() });
    let (address, handle) = (group.local_addr(), group.handle());
    let (sender, mut shares) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, mut member) in group.into_members().into_iter().enumerate() {
        let sender = sender.clone();
        tasks.spawn(async move {
            let mut received = Vec::new();
            loop {
                member.recv(&mut received).await.expect("a socket");
                let echoes: Vec<_> = received.iter().map(|it| (&it[..], it.peer())).collect();
                let sent = member.send(&echoes).await.expect("a socket");
                sender.send((n, sent)).expect("somebody counts");
                received.clear();
            }
        });
    }
    let clients: Vec<_> = (0..64).map(|_| client()).collect();
    let clients = tokio::task::spawn_blocking(move || {
        for (n, client) in clients.iter().enumerate() {
            let said = n.to_string().repeat(n + 1);
            client.send_to(said.as_bytes(), address).expect("room");
            let mut heard = [0; 2_000];
            let (len, _) = client.recv_from(&mut heard).expect("an answer");
            assert_eq!(&heard[..len], said.as_bytes());
        }
        clients
    });
    drop(clients.await.expect("clients"));
    let (mut members, mut n) = (BTreeSet::new(), 0);
    while n < 64 {
        let (member, sent) = shares.recv().await.expect("some share");
        members.insert(member);
        n += sent;
    }
    assert_eq!(members.len(), 4, "64 sources miss one of 4 sockets once in 25 million runs");
    let stats = handle.stats();
    assert_eq!((stats.received, stats.sent), (64, 64));
    assert!(stats.dropped.iter().all(|(_, n)| *n == 0), "{stats:?}");
}

#[tokio::test]
async fn too_long_ones_are_dropped_either_way() {
    let group = bind(UdpConfig::default());
    let (address, handle) = (group.local_addr(), group.handle());
    let mut member = group.into_members().remove(0);
    let client = client();
    for len in [1_233, 1_232, 9_000, 0] {
        client.send_to(&vec![b'x'; len], address).expect("room");
    }
    let mut received = Vec::new();
    member.recv(&mut received).await.expect("a socket");
    let lens: Vec<_> = received.iter().map(|it| it.len()).collect();
    assert_eq!(lens, [1_232, 0], "an empty one is one, too");
    assert_eq!((handle.stats().received, handle.stats().dropped_for(Dropped::Oversize)), (4, 2));

    let to = client.local_addr().expect("an address");
    let long = vec![b'x'; 1_233];
    let sent = member.send(&[(b"a", to), (&long, to), (b"b", to)]).await.expect("a socket");
    assert_eq!((sent, handle.stats().dropped_for(Dropped::Oversize)), (2, 3));
    let mut heard = [0; 2_000];
    for expected in [b"a", b"b"] {
        let (len, _) = client.recv_from(&mut heard).expect("an answer");
        assert_eq!(&heard[..len], expected);
    }
}

#[tokio::test]
async fn the_slab_never_grows() {
    let group = bind(UdpConfig { buffers: 3, ..Default::default() });
    let (address, handle) = (group.local_addr(), group.handle());
    let mut member = group.into_members().remove(0);
    let client = client();
    let before = member.slab.n_free();
    assert_eq!(before.0, 3);
    let mut held = Vec::new();
    for n in 0..70_u8 {
        client.send_to(&[n], address).expect("room");
    }
    member.recv(&mut held).await.expect("a socket");
    assert_eq!(held.iter().map(|it| it[0]).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(member.slab.n_free().0, 0);
    // with all of them held it goes on to read, and to drop
    let more = time::timeout(Duration::from_millis(50), member.recv(&mut held)).await;
    assert!(more.is_err(), "nothing can be given");
    let stats = handle.stats();
    assert_eq!((stats.received, stats.dropped_for(Dropped::Queue)), (70, 67));
    assert_eq!(held.iter().map(|it| it[0]).collect::<Vec<_>>(), [0, 1, 2], "they are untouched");
    held.clear();
    assert_eq!(member.slab.n_free(), before);
    client.send_to(b"x", address).expect("room");
    member.recv(&mut held).await.expect("a socket");
    assert_eq!(&held[0][..], b"x");
}

/// Plays results of sendmmsg(2) for `len` datagrams, and tells the steps up to the end.
fn play(len: usize, results: &[Result<usize, i32>]) -> (Vec<Step>, usize) {
    let mut sending = Sending::new(len);
    let steps = results
        .iter()
        .map(|&it| sending.after(it.map_err(io::Error::from_raw_os_error)).expect("a step"))
        .collect();
    (steps, sending.next())
}

#[test]
fn want_of_a_buffer_is_tried_once_more_and_then_dropped() {
    let enobufs = Err(libc::ENOBUFS);
    let wait = || Step::Wait(Duration::from_micros(50));
    assert_eq!(play(2, &[enobufs, Ok(2)]), (vec![wait(), Step::Sent(2)], 2));
    assert_eq!(
        play(3, &[Ok(1), enobufs, enobufs, Ok(1)]),
        (vec![Step::Sent(1), wait(), Step::Drop(Dropped::Enobufs), Step::Sent(1)], 3)
    );
    // each has two attempts of its own
    assert_eq!(
        play(2, &[enobufs, enobufs, enobufs, enobufs]),
        (vec![wait(), Step::Drop(Dropped::Enobufs), wait(), Step::Drop(Dropped::Enobufs)], 2)
    );
    assert_eq!(
        play(3, &[Err(libc::EINTR), Err(libc::EMSGSIZE), Err(libc::ENETUNREACH), Ok(1)]),
        (
            vec![
                Step::Again,
                Step::Drop(Dropped::Oversize),
                Step::Drop(Dropped::Error),
                Step::Sent(1)
            ],
            3
        )
    );
    let fatal = Sending::new(1).after(Err(io::Error::from_raw_os_error(libc::EBADF)));
    assert_eq!(fatal.expect_err("no socket").raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_source_sends_as_fast_as_it_may() {
    let rate = SourceRate { per_second: 10, burst: 3, sources: 4 };
    let mut sources = Sources::new(rate);
    let ip = |it: &str| it.parse::<IpAddr>().expect("an address");
    let mut check = |source: &str, millis, expected: &[bool]| {
        let got: Vec<_> = expected
            .iter()
            .map(|_| sources.admits(ip(source), Duration::from_millis(millis)))
            .collect();
        assert_eq!(got, expected, "{source} at {millis}");
    };
    check("192.0.2.1", 0, &[true, true, true, false, false]);
    check("::ffff:192.0.2.1", 0, &[false]);
    check("192.0.2.2", 0, &[true, true, true, false]);
    check("192.0.2.1", 99, &[false]);
    check("192.0.2.1", 100, &[true, false]);
    check("192.0.2.1", 10_000, &[true, true, true, false]);
    check("2001:db8::1", 10_000, &[true, true]);
    check("2001:db8::ffff:2", 10_000, &[true, false]);
    check("2001:db8:0:1::1", 10_000, &[true]);
}

/// By source, on real sockets.
#[tokio::test]
async fn what_is_over_the_rate_is_dropped() {
    let rate = Some(SourceRate { per_second: 1, burst: 5, sources: 64 });
    let group = bind(UdpConfig { rate, ..Default::default() });
    let (address, handle) = (group.local_addr(), group.handle());
    let mut member = group.into_members().remove(0);
    let client = client();
    for _ in 0..20 {
        client.send_to(b"x", address).expect("room");
    }
    let mut received = Vec::new();
    let received_some = time::timeout(Duration::from_secs(5), member.recv(&mut received)).await;
    received_some.expect("some are within it").expect("a socket");
    let stats = handle.stats();
    assert_eq!((received.len(), stats.dropped_for(Dropped::Rate)), (5, 15), "{stats:?}");
}

proptest! {
    #[test]
    fn of_many_sources_none_gets_more_and_a_lone_one_gets_all(
        ips in proptest::collection::vec(any::<u16>(), 1..300), sources in 4_usize..64,
    ) {
        let rate = SourceRate { per_second: 1, burst: 2, sources };
        let mut table = Sources::new(rate);
        let mut lone = Sources::new(rate);
        for ip in ips {
            let ip = IpAddr::from([10, 0, ip.to_be_bytes()[0], ip.to_be_bytes()[1]]);
            table.admits(ip, Duration::from_millis(1));
        }
        let ip = IpAddr::from([192, 0, 2, 1]);
        let admitted = (0..60).filter(|n| lone.admits(ip, Duration::from_millis(n * 1_000)));
        prop_assert_eq!(admitted.count(), 60);
        let admitted = (0..100).filter(|_| table.admits(ip, Duration::from_secs(9))).count();
        prop_assert_eq!(admitted, 2, "whoever is full again makes room");
    }
}

#[test]
fn without_a_runtime_it_is_an_error() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let err = UdpGroup::bind(address, UdpConfig::default()).expect_err("there is none");
    assert_eq!(err.to_string(), "udp: there is no tokio runtime, expected one to be entered");
}
