//! Detections of this kind, by what they tell.

use crate::{
    detect::fixture::{World, find},
    input::{Absent, TcpMemoryLimits},
};

#[test]
fn open_files_near_the_limit_are_told() {
    #[track_caller]
    fn check(open: u64, max: u64, expected: &[&str]) -> World {
        let mut world = World::new();
        world.check(120, expected, |world| {
            (world.now.host.open_fds, world.now.host.max_fds) = (Ok(open), Ok(max));
        });
        world
    }
    const TOLD: &[&str] = &["HostFdsNearLimit"];
    check(900, 1_000, &[]);
    // what systemd sets
    check(1_000_000, (1 << 63) - 1, &[]);
    let mut world = check(910, 1_000, TOLD);
    let told = world.run(1, |_| {});
    let alert = find(&told, "HostFdsNearLimit");
    assert_eq!(
        ("warning", "910 of 1000 files open, 91 %"),
        (alert.severity.name(), &*alert.latest.seen)
    );
    world.check(180, TOLD, |world| world.now.host.open_fds = Ok(870));
    world.check(121, &[], |world| world.now.host.open_fds = Ok(800));
}

#[test]
fn a_steady_growth_of_open_files_is_told_five_minutes_before_the_end() {
    /// As many open, by the second, of `max`; what is told at the end.
    #[track_caller]
    fn check(max: u64, seconds: u64, open: impl Fn(u64) -> u64, expected: &[&str]) -> World {
        let mut world = World::new();
        let begun = world.now.at.0;
        world.check(seconds, expected, |world| {
            let second = (world.now.at.0 - begun) / 1_000_000_000;
            (world.now.host.open_fds, world.now.host.max_fds) =
                (Ok(open(second).min(max)), Ok(max));
        });
        world
    }
    const TOLD: &[&str] = &["HostFdsNearLimit"];
    // the limit is reached after 980 s, 725 s and 1,800 s
    check(100_000, 980 - 300, |second| 2_000 + 100 * second, TOLD);
    let mut world = check(100_000, 725 - 300, |second| 27_500 + 100 * second, TOLD);
    check(100_000, 1_800 - 300, |second| 10_000 + 50 * second, TOLD);
    let told = world.run(1, |_| {});
    let alert = find(&told, "HostFdsNearLimit");
    let seen = "70000 of 100000 files open, 70 %; at this pace none left in 5 min";
    assert_eq!(("warning", seen), (alert.severity.name(), &*alert.latest.seen));
    // it grows no more
    world.check(130, TOLD, |_| {});
    world.check(400, &[], |_| {});
    // a deploy that warms up, a burst, a wave, growth for half a day
    check(100_000, 3_000, |second| 80_000 - 80_000_000 / (1_000 + 10 * second), &[]);
    check(100_000, 900, |second| if (600..660).contains(&second) { 89_000 } else { 100 }, &[]);
    check(100_000, 3_000, |second| 60_000 + 100 * (second % 250), &[]);
    check(100_000, 7_200, |second| 50_000 + second, &[]);
}

#[test]
fn tcp_memory_is_told_after_two_minutes_and_critical_when_connections_end() {
    let mut world = World::new();
    world.count("TCPAbortOnMemory", 0);
    world.now.host.tcp_memory_limits =
        Ok(TcpMemoryLimits { low_bytes: 700, pressure_bytes: 800, high_bytes: 1_000 });
    let holds = |bytes| move |world: &mut World| world.now.host.tcp_memory_bytes = Ok(bytes);
    world.check(120, &[], holds(810));
    world.check(60, &[], holds(790));
    let severity = |world: &mut World, bytes, seconds| {
        let told = world.check(seconds, &["TcpMemoryPressure"], holds(bytes));
        find(&told, "TcpMemoryPressure").severity.name()
    };
    assert_eq!("warning", severity(&mut world, 810, 121));
    assert_eq!("critical", severity(&mut world, 960, 1));
    assert_eq!("warning", severity(&mut world, 810, 1));
    world.count("TCPAbortOnMemory", 3);
    assert_eq!("critical", severity(&mut world, 810, 2));
    severity(&mut world, 750, 300);
    world.check(121, &[], holds(600));
}

#[test]
fn what_is_not_read_is_unknown() {
    let mut world = World::new();
    let verdicts = world.run(1, |world| world.now.host.open_fds = Err(Absent::Unreadable));
    for name in ["HostFdsNearLimit", "TcpMemoryPressure"] {
        assert!(verdicts.unknown.iter().any(|it| it.alert == name), "{name}");
    }
}
