//! Detections of this kind, by what they tell.

use crate::{
    detect::fixture::{World, find, process},
    id::Pid,
    input::{Absent, FdKinds},
};

/// As many open, by the second, of `max`; what is told at the end.
#[track_caller]
fn check(max: u64, seconds: u64, open: impl Fn(u64) -> u64, expected: &[&str]) -> World {
    let mut world = World::new();
    let begun = world.now.at.0;
    world.check(seconds, expected, |world| {
        let second = (world.now.at.0 - begun) / 1_000_000_000;
        world.now.processes.insert(Pid(100), process("nginx", open(second).min(max), max));
    });
    world
}

#[test]
fn a_steady_leak_is_told_five_minutes_before_the_end() {
    const TOLD: &[&str] = &["ProcessFdsFillingUp"];
    // the limit is reached after 924 s, 848 s, 655 s and 6,900 s
    check(1_024, 924 - 300, |second| 100 + second, TOLD);
    check(1_024, 848 - 300, |second| 600 + second / 2, TOLD);
    check(1_048_576, 655 - 300, |second| 1_600 * second, TOLD);
    check(1_024, 6_900 - 1_800, |second| 334 + second / 10, TOLD);
    // with a wave on top
    let wave = |second: u64| if second % 20 < 10 { 60 } else { 0 };
    check(4_096, 1_000 - 300, |second| 4 * second + wave(second), TOLD);
}

#[test]
fn the_text_has_the_numbers() {
    let mut world = check(1_024, 620, |second| 100 + second, &["ProcessFdsFillingUp"]);
    let told = world.run(1, |world| {
        let mut nginx = process("nginx", 724, 1_024);
        nginx.now.fd_kinds = Some(FdKinds { sockets: 700, files: 24, ..FdKinds::default() });
        world.now.processes.insert(Pid(100), nginx);
        let connections = crate::input::Connections { close_wait: 600, ..Default::default() };
        world.listener().connections = Ok(connections);
    });
    let evidence = &find(&told, "ProcessFdsFillingUp").latest;
    assert_eq!(
        "pid 100: 724 of 1024 descriptors open, 71 %; 700 sockets, 24 files; listens on 0.0.0.0:80; 60 more each minute for 5 min: none left in 5 min",
        evidence.seen
    );
    assert_eq!(
        Some("600 connections are in CLOSE_WAIT: the peers have closed, it has not"),
        evidence.cause.as_deref()
    );
    assert_eq!(
        "ls -l /proc/100/fd; prlimit --pid 100 --nofile=65536: || prlimit --pid 100 --nofile=65536:65536",
        evidence.mend
    );
    // the program closes them
    world.check(20, &["ProcessFdsFillingUp"], |world| {
        world.now.processes.insert(Pid(100), process("nginx", 300, 1_024));
    });
    world.check(1, &[], |_| {});
}

#[test]
fn what_grows_and_stays_is_no_leak() {
    // a pool of a thousand, a deploy that warms up, a burst, a wave, a slow day, no limit
    check(1_280, 595, |second| 10 + (100 * second).min(1_000), &[]);
    check(16_384, 3_000, |second| (50 * second).min(10_000), &[]);
    check(16_384, 3_000, |second| 12_000 - 12_000_000 / (1_000 + 10 * second), &[]);
    check(1_024, 3_000, |second| if (600..700).contains(&second) { 1_000 } else { 100 }, &[]);
    check(1_024, 7_200, |second| 500 + second % 200, &[]);
    check(100_000, 14_400, |second| 45_000 + second, &[]);
    check(u64::MAX, 3_000, |second| 1_000 * second, &[]);
}

#[test]
fn a_process_near_its_limit_is_told_by_how_near_it_is() {
    const TOLD: &[&str] = &["ProcessFdsNearLimit"];
    check(1_000, 595, |_| 850, &[]);
    let mut world = check(1_000, 630, |_| 850, TOLD);
    let told = world.run(1, |_| {});
    assert_eq!("warning", find(&told, "ProcessFdsNearLimit").severity.name());
    world.check(600, TOLD, |world| {
        world.now.processes.insert(Pid(100), process("nginx", 780, 1_000));
    });
    world.check(22, &[], |world| {
        world.now.processes.insert(Pid(100), process("nginx", 740, 1_000));
    });
    check(1_000, 100, |_| 960, &[]);
    let mut world = check(1_000, 150, |_| 960, TOLD);
    let told = world.run(1, |_| {});
    assert_eq!("critical", find(&told, "ProcessFdsNearLimit").severity.name());
}

#[test]
fn without_any_descriptor_left_a_stall_is_told_at_once() {
    let mut world = check(1_024, 60, |_| 1_024, &[]);
    let told = world.run(1, |world| {
        world.listener().length = 7;
        world.listener().stalled = Ok(true);
    });
    let alert = find(&told, "ProcessFdsNearLimit");
    assert_eq!("critical", alert.severity.name());
    assert_eq!(
        Some("no descriptor is left, and nobody accepts the 7 connections that wait on port 80"),
        alert.latest.cause.as_deref()
    );
}

#[test]
fn the_worst_of_one_name_is_judged_and_what_cannot_be_read_is_unknown() {
    let mut world = World::new();
    world.now.processes.insert(Pid(101), process("nginx", 970, 1_000));
    world.now.processes.insert(Pid(102), process("nginx", 400, 1_000));
    let told = world.run(150, |_| {});
    assert_eq!([Pid(101)], *find(&told, "ProcessFdsNearLimit").subject.pids);
    let verdicts = world.run(1, |world| {
        let mut hidden = process("hidden", 0, 0);
        hidden.now.open_fds = Err(Absent::NotPermitted);
        world.now.processes.insert(Pid(103), hidden);
    });
    let unknown = verdicts.unknown.iter().find(|it| it.alert == "ProcessFdsNearLimit");
    assert_eq!(Some((Absent::NotPermitted, 1)), unknown.map(|it| (it.why, it.subjects)));
}
