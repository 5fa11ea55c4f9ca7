//! Detections of this kind, by what they tell.

use std::{net::Ipv4Addr, sync::Arc};

use crate::{
    detect::fixture::{NETNS, World, add, find},
    id::ListenerKey,
    input::Absent,
    model::snapshot::UdpListener,
};

/// A socket that drops, by the second, as it is read each ten seconds; what is told at the end.
#[track_caller]
fn check(seconds: u64, drops: impl Fn(u64) -> u64, expected: &[&str]) -> World {
    let mut world = World::new();
    world.now.udp.push(UdpListener {
        key: ListenerKey { netns: NETNS, addr: Ipv4Addr::UNSPECIFIED.into(), port: 53 },
        comm: Some("named".into()),
        workload: Arc::default(),
        sockets: 1,
        queue_bytes: 4_000,
        limit_bytes: 212_992,
        // those from before the agent are no news
        drops: Ok(1_000_000),
    });
    let begun = world.now.at.0;
    world.check(seconds, expected, |world| {
        let second = (world.now.at.0 - begun) / 1_000_000_000;
        if second.is_multiple_of(10) {
            let n = (second - 9..=second).map(&drops).sum();
            add(&mut world.now.udp[0].drops, n);
        }
    });
    world
}

#[test]
fn drops_that_go_on_are_told_and_end() {
    const TOLD: &[&str] = &["UdpReceiveDrops"];
    check(350, |_| 3, &[]);
    let mut world = check(420, |_| 3, TOLD);
    let told = world.run(1, |_| {});
    let alert = find(&told, "UdpReceiveDrops");
    assert_eq!("named udp 0.0.0.0:53", alert.subject.name);
    assert!(alert.latest.seen.starts_with("900 datagrams dropped in 300 s"), "{alert:?}");
    world.check(300, TOLD, |_| {});
    world.check(80, &[], |_| {});
}

#[test]
fn bursts_and_few_are_quiet() {
    check(1_200, |second| if second == 600 { 100_000 } else { 0 }, &[]);
    check(700, |second| if (595..612).contains(&second) { 5_000 } else { 0 }, &[]);
    check(1_200, |second| u64::from(second % 2 == 0), &[]);
    check(1_200, |_| 0, &[]);
}

#[test]
fn without_the_kernels_count_it_is_unknown() {
    let mut world = check(1, |_| 0, &[]);
    let verdicts = world.run(1, |world| world.now.udp[0].drops = Err(Absent::NotOnThisKernel));
    let unknown = verdicts.unknown.iter().find(|it| it.alert == "UdpReceiveDrops");
    assert_eq!(Some(Absent::NotOnThisKernel), unknown.map(|it| it.why));
}
