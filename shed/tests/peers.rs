//! Limits by peer and by rate, and exempt ranges, on real sockets.

mod sources;

use std::{
    io::{ErrorKind, Read as _},
    net::Ipv4Addr,
    time::Duration,
};

use backlogd_shed::{Builder, PerIp, ProxyProtocol, Rate, Reason, ShedListener, Stats, WhenFull};
use tokio::{task, time};

use crate::sources::{
    A, B, EveryOther, bind, check_end, connect, connect_in_turn, n_served, range, serve, until,
};

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
