//! Detections of this kind, by what they tell.

use std::sync::Arc;

use crate::{
    detect::fixture::{World, add, find, listener},
    input::Absent,
};

#[test]
fn an_overflow_of_time_wait_is_told_and_ends() {
    let mut world = World::new();
    world.count("TCPTimeWaitOverflow", 900);
    // those from before the agent are no news
    let mut world = World { detector: crate::detect::Detector::default(), ..world };
    world.check(60, &[], |_| {});
    Arc::make_mut(&mut world.now.namespaces[0].sysctls).insert("tcp_max_tw_buckets", 8_192);
    let told = world.check(1, &["TimeWaitOverflow"], |world| world.count("TCPTimeWaitOverflow", 7));
    let evidence = &find(&told, "TimeWaitOverflow").latest;
    assert!(evidence.seen.starts_with("7 connections without TIME_WAIT"), "{evidence:?}");
    assert_eq!("sysctl -w net.ipv4.tcp_max_tw_buckets=16384", evidence.mend);
    world.check(560, &["TimeWaitOverflow"], |_| {});
    world.check(80, &[], |_| {});
}

/// An hour of drops: those that the kernel counts each ten seconds, and those that the listener shows.
#[track_caller]
fn check(kernel: u64, ours: u64, late: bool, expected: &[&str]) -> World {
    let mut world = World::new();
    world.check(3_600, expected, |world| {
        let second = world.now.at.0 / 1_000_000_000 % 10;
        if second == 0 {
            world.count("ListenDrops", kernel);
        }
        if second == u64::from(late) {
            add(&mut world.listener().counters.drops, ours);
        }
    });
    world
}

#[test]
fn counters_that_differ_for_long_are_told() {
    const TOLD: &[&str] = &["CountersDisagree"];
    let told = check(100, 90, false, TOLD).run(1, |_| {});
    let evidence = &find(&told, "CountersDisagree").latest;
    assert!(evidence.seen.contains("listen drops at the listeners, "), "{evidence:?}");
    check(0, 1, false, TOLD);
    check(1, 0, true, TOLD);
    check(100, 100, false, &[]);
    check(100, 100, true, &[]);
    check(1_000, 995, false, &[]);
}

#[test]
fn listeners_that_come_and_go_with_their_counts_are_no_difference() {
    let mut world = World::new();
    world.check(2 * 3_600, &[], |world| {
        let second = world.now.at.0 / 1_000_000_000;
        world.now.listeners.retain(|it| it.key.port == 80);
        if second % 60 < 30 {
            let mut other = listener(8_080);
            other.counters.drops = Ok(5_000 + second);
            world.now.listeners.push(other);
            world.count("ListenDrops", 1);
        }
    });
}

#[test]
fn what_cannot_be_compared_is_unknown() {
    let mut world = World::new();
    let unknown = |world: &mut World, name: &str| {
        let verdicts = world.run(1, |_| {});
        verdicts.unknown.iter().find(|it| it.alert == name).map(|it| it.why)
    };
    world.now.namespaces[0].netstat = Err(Absent::NotPermitted);
    assert_eq!(Some(Absent::NotPermitted), unknown(&mut world, "TimeWaitOverflow"));
    assert_eq!(None, unknown(&mut world, "CountersDisagree"));
    world.run(1_800, |_| {});
    assert_eq!(Some(Absent::NotPermitted), unknown(&mut world, "CountersDisagree"));
}
