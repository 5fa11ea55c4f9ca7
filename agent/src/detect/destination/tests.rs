//! Detections of this kind, by what they tell.

use crate::{
    detect::fixture::{World, find},
    input::Absent,
};

/// Open, in TIME_WAIT, by the second, of `usable`; what is told at the end.
#[track_caller]
fn check(usable: u64, seconds: u64, ports: impl Fn(u64) -> (u64, u64), expected: &[&str]) -> World {
    let mut world = World::new();
    let begun = world.now.at.0;
    world.check(seconds, expected, |world| {
        let (open, time_wait) = ports((world.now.at.0 - begun) / 1_000_000_000);
        world.read_table(open, time_wait, usable);
    });
    world
}

#[test]
fn ports_that_run_out_are_told_after_two_reads_and_clear() {
    const TOLD: &[&str] = &["EphemeralPortsNearLimit"];
    check(28_000, 9, |_| (24_000, 0), &[]);
    let mut world = check(28_000, 30, |_| (24_000, 0), TOLD);
    let told = world.run(1, |_| {});
    let alert = find(&told, "EphemeralPortsNearLimit");
    assert_eq!(("warning", "to 192.0.2.1:443"), (alert.severity.name(), &*alert.subject.name));
    assert_eq!(
        "24000 of 28000 local ports of 192.0.2.9 are in use towards 192.0.2.1:443: \
         0 in TIME_WAIT, 24000 open",
        alert.latest.seen
    );
    world.check(300, TOLD, |world| world.read_table(21_000, 0, 28_000));
    world.check(140, &[], |world| world.read_table(10_000, 0, 28_000));
    let mut world = check(28_000, 30, |_| (27_000, 0), TOLD);
    assert_eq!("critical", find(&world.run(1, |_| {}), "EphemeralPortsNearLimit").severity.name());
}

#[test]
fn few_usable_ports_are_fuller_before_they_are_told() {
    check(100, 60, |_| (85, 0), &[]);
    check(100, 60, |_| (95, 0), &["EphemeralPortsNearLimit"]);
    // a range that could not be read
    let verdicts = check(0, 60, |_| (900, 100), &[]).run(1, |_| {});
    assert!(verdicts.unknown.iter().any(|it| it.alert == "EphemeralPortsNearLimit"));
}

#[test]
fn steady_growth_is_told_five_minutes_before_the_end() {
    check(28_000, 1_000 - 300, |second| (28 * second, 0), &["EphemeralPortsNearLimit"]);
    // the limit is reached after 700 s
    check(28_000, 700 - 300, |second| (40 * second, 0), &["EphemeralPortsNearLimit"]);
    // a pool that fills, one read that is high, and what turns over
    check(28_000, 3_000, |second| ((100 * second).min(20_000), 0), &[]);
    check(28_000, 300, |second| if second < 11 { (27_000, 0) } else { (900, 0) }, &[]);
    check(28_000, 3_000, |second| (4_000 + 10 * (second % 100), 16_000), &[]);
}

#[test]
fn a_connection_for_each_request_is_told_once_it_lasts() {
    const TOLD: &[&str] = &["ConnectionPerRequest"];
    check(28_000, 60, |_| (20, 6_000), &[]);
    let told = check(28_000, 100, |_| (20, 6_000), TOLD).run(1, |_| {});
    let alert = find(&told, "ConnectionPerRequest");
    assert_eq!("6000 connections in TIME_WAIT and 20 open, from 192.0.2.9", alert.latest.seen);
    assert_eq!("info", alert.severity.name());
    check(28_000, 600, |_| (1_000, 6_000), &[]);
    check(28_000, 600, |_| (1, 3_000), &[]);
    check(28_000, 600, |second| (1, if second % 300 < 30 { 9_000 } else { 100 }), &[]);
    // the nearer limit has it in its own text
    let told = check(28_000, 100, |_| (20, 23_000), &["EphemeralPortsNearLimit"]).run(1, |_| {});
    assert_eq!(Some("EphemeralPortsNearLimit"), find(&told, "ConnectionPerRequest").inhibited_by);
    let cause = find(&told, "EphemeralPortsNearLimit").latest.cause.clone().unwrap_or_default();
    assert!(cause.starts_with("a new connection for each request"), "{cause}");
}

#[test]
fn a_table_that_cannot_be_read_is_unknown_and_one_that_need_not_be_is_not() {
    let mut world = World::new();
    let of = |verdicts: &crate::detect::alert::Verdicts| {
        verdicts.unknown.iter().filter(|it| it.alert == "EphemeralPortsNearLimit").count()
    };
    assert_eq!(0, of(&world.run(1, |_| {})));
    let verdicts = world.run(1, |world| world.now.namespaces[0].ports = Err(Absent::NotPermitted));
    assert_eq!(1, of(&verdicts));
}
