//! What open connections show.

use super::*;
use crate::{
    detect::{
        fixture::add,
        tuning::{Entry, Tuning},
    },
    id::Pid,
};

/// Each minute: accepts, closes.
fn traffic(each: impl Fn(u64) -> (u64, u64)) -> impl Fn(&mut World) {
    move |world| {
        // spread over the minute, so that floors are no matter of when one looks
        let now = second(world);
        let (accepted, closed) = each((now / 60).saturating_sub(1));
        let part = |n: u64| n * (now % 60 + 1) / 60 - n * (now % 60) / 60;
        let (accepted, closed) = (part(accepted), part(closed));
        let counters = &mut world.listener().counters;
        add(&mut counters.established, accepted);
        add(&mut counters.accepted, accepted);
        add(&mut counters.closed, closed);
        let open = world.listener().open.expect("known") + accepted - closed;
        world.listener().open = Ok(open);
        if now.is_multiple_of(30) {
            read_table(world, Connections { accepted: open, ..Connections::default() });
        }
    }
}

#[test]
fn connections_that_only_become_more_are_told_within_two_windows() {
    let mut world = World::new();
    world.check(45 * 60, &[], traffic(|_| (600, 600)));
    world.check(15 * 60, &[], traffic(|_| (600, 591)));
    let told = world.check(15 * 60, &["ConnectionLeak"], traffic(|_| (600, 591)));
    let leak = find(&told, "ConnectionLeak");
    let seen = &leak.latest.seen;
    assert!(
        seen.contains(": 9.0 more each minute, while 600.0 were accepted and 591.0 closed"),
        "{seen}"
    );
    assert_eq!("ss -tnpo state established sport = :80", leak.latest.mend);
    assert_eq!(Severity::Warning, leak.severity);
    let last = |world: &mut World, minutes: u64| {
        let process = world.now.processes.get_mut(&Pid(100)).expect("there");
        process.fds_exhausted_in = Ok(Nanos(minutes * 60_000_000_000));
    };
    for (minutes, severity, says) in [
        (190, Severity::Warning, "; descriptors run out in 3 h"),
        (42, Severity::Critical, "; descriptors run out in 42 min"),
    ] {
        last(&mut world, minutes);
        let told = world.check(60, &["ConnectionLeak"], traffic(|_| (600, 591)));
        let leak = find(&told, "ConnectionLeak");
        assert_eq!(severity, leak.severity);
        assert!(leak.latest.seen.ends_with(says), "{leak:?}");
    }
    // mended
    world.check(30 * 60, &[], traffic(|_| (600, 600)));
}

#[test]
fn a_window_can_be_set() {
    let entry = Entry { thresholds: vec![("window_seconds", 60.0)], ..Entry::default() };
    let mut world = World::tuned(Tuning { entries: vec![entry], ..Tuning::default() });
    world.check(60, &[], traffic(|_| (600, 600)));
    world.check(120, &["ConnectionLeak"], traffic(|_| (600, 540)));
}

#[test]
fn what_only_holds_connections_leaks_none() {
    #[track_caller]
    fn check(name: &str, minutes: u64, each: impl Fn(u64) -> (u64, u64)) {
        let mut world = World::new();
        // to where a minute begins
        world.run(24, |_| {});
        for _ in 0..minutes {
            let verdicts = world.run(60, traffic(&each));
            let told: Vec<_> = verdicts.told().map(|it| &it.latest.seen).collect();
            assert!(told.is_empty(), "{name}: {told:?}");
        }
    }
    check("websockets that come within half an hour and stay", 120, |minute| {
        (if minute < 30 { 20 } else { 0 }, 0)
    });
    check("a pool that opens 1,000 and keeps them", 60, |minute| {
        (if minute == 5 { 1_000 } else { 0 }, 0)
    });
    check("a pool in whose place another comes", 120, |minute| match minute {
        5 => (1_000, 0),
        60 => (1_000, 1_000),
        _ => (0, 0),
    });
    check("a steady number of streams strays by 75", 120, |minute| match minute {
        0 => (500, 0),
        40..65 => (100, 97),
        65..90 => (100, 103),
        _ => (100, 100),
    });
    // connections live for some minutes
    let lasting = |life: u64, at: fn(u64) -> u64| {
        move |minute: u64| (at(minute), minute.checked_sub(life).map_or(0, at))
    };
    check("traffic that grows steadily", 120, lasting(1, |minute| 600 + 20 * minute));
    check("traffic that grows slowly", 300, lasting(10, |minute| 600 + 4 * minute));
    check("night to day", 300, lasting(3, |minute| 200 + 200 * (minute / 60) + 3 * (minute % 60)));
    // random times each: their number comes near its end more and more slowly
    for mean in [20.0, 60.0, 120.0, 240.0, 600.0] {
        check("streams after a restart", 400, |minute| {
            let open = |minute: u64| 1_000.0 * mean * (1.0 - (-(minute as f64) / mean).exp());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let growth = (open(minute + 1).floor() - open(minute).floor()) as u64;
            (1_000, 1_000 - growth)
        });
    }
}

#[test]
fn connections_that_no_table_has_are_a_leak() {
    // thirty are open; the table, each ten seconds, shows some of them
    let reset = |shown: u64| {
        move |world: &mut World| {
            world.listener().open = Ok(30);
            if second(world).is_multiple_of(10) {
                read_table(world, Connections { accepted: shown, ..Connections::default() });
            }
        }
    };
    let mut world = World::new();
    let told = world.check(35, &["ConnectionLeak"], reset(2));
    check_text(
        &told,
        "ConnectionLeak",
        "28 of 30 open connections are in no socket table, in two reads of it",
        Some("the peers have reset them, and the program still holds their descriptors"),
        "ls -l /proc/100/fd | grep -c socket: ; ss -tanp | grep -c pid=100,",
    );
    world.check(15 * 60, &[], |world| {
        world.listener().open = Ok(2);
        reset(2)(world);
        world.listener().open = Ok(2);
    });
    World::new().check(60, &[], reset(15));
    World::new().check(60, &[], reset(30));
    // never seen in a table, and as many are there that nobody here accepted
    let mut world = World::new();
    world.now.namespaces[0].connected = Ok(30);
    world.check(60, &[], reset(0));
    world.now.namespaces[0].connected = Ok(3);
    world.check(1, &["ConnectionLeak"], reset(0));
}

#[test]
fn what_the_table_or_the_hooks_do_not_tell_is_no_leak() {
    let mut world = World::new();
    let unknown = world.run(60, |world| {
        world.listener().open = Ok(30);
        if second(world).is_multiple_of(10) {
            read_table(world, Connections::default());
            let read = world.now.namespaces[0].table.clone().expect("read");
            let table = Table { is_partial: true, ..read.table.clone() };
            world.now.namespaces[0].table = Ok(Arc::new(TableRead { at: read.at, table }));
        }
    });
    check_unknown(&unknown, "ConnectionLeak", Some(Absent::TooEarly));
    assert!(unknown.alerts.is_empty(), "{:?}", unknown.alerts);
    let unknown = world.run(1, |world| world.listener().open = Err(Absent::BeforeStart));
    check_unknown(&unknown, "ConnectionLeak", Some(Absent::BeforeStart));
    // busy: the table was read when fewer were open
    World::new().check(600, &[], |world| {
        let now = second(world);
        world.listener().open = Ok(if now % 10 < 5 { 10 } else { 500 });
        if now.is_multiple_of(10) {
            read_table(world, Connections { accepted: 10, ..Connections::default() });
        }
    });
}

/// Each second of these: how many of 100 are in CLOSE_WAIT.
fn close_wait(n: impl Fn(u64) -> u64) -> impl Fn(&mut World) {
    move |world| {
        let close_wait = n(second(world));
        if second(world).is_multiple_of(10) {
            read_table(world, Connections { accepted: 100, close_wait, ..Connections::default() });
        }
    }
}

#[test]
fn connections_whose_peers_have_closed_are_told() {
    let mut world = World::new();
    world.check(12 * 60, &[], close_wait(|now| now % 60));
    let told = world.check(12 * 60, &["CloseWaitBuildup"], close_wait(|now| now / 20));
    let alert = find(&told, "CloseWaitBuildup");
    let says = " of 100 accepted connections are in CLOSE_WAIT, never fewer than ";
    assert!(alert.latest.seen.contains(says), "{alert:?}");
    assert_eq!("ss -tnpo state close-wait sport = :80", alert.latest.mend);
    assert_eq!(Severity::Warning, alert.severity);
    let open_fds = |world: &mut World, n| {
        let process = world.now.processes.get_mut(&Pid(100)).expect("there");
        process.now.open_fds = Ok(n);
    };
    let told = world.check(10, &["CloseWaitBuildup"], |world| {
        open_fds(world, 1_000);
        close_wait(|now| now / 20)(world);
    });
    assert_eq!(Severity::Critical, find(&told, "CloseWaitBuildup").severity);
    open_fds(&mut world, 10);
    world.check(6 * 60, &[], close_wait(|_| 5));
    // many that do not become more, and few of all
    world.check(30 * 60, &[], close_wait(|_| 40));
    world.check(15 * 60, &["CloseWaitBuildup"], close_wait(|_| 80));
    let unknown = world.run(1, |world| world.listener().connections = Err(Absent::SwitchedOff));
    check_unknown(&unknown, "CloseWaitBuildup", Some(Absent::SwitchedOff));
}
