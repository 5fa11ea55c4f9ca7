//! Detections of this kind, by what they tell.

use crate::{
    detect::fixture::{World, add, find},
    input::{Absent, Source},
    time::Nanos,
};

#[test]
fn what_cannot_be_read_for_a_minute_is_told() {
    let mut world = World::new();
    let degraded = |world: &mut World| {
        world.now.degraded.insert("namespaces", "needs CAP_SYS_ADMIN".to_owned());
    };
    // so it was when the agent started
    world.check(300, &[], degraded);
    world.check(10, &[], |world| world.now.degraded.clear());
    world.check(120, &[], |world| {
        world.now.degraded.insert("closer look", "tracefs not found".to_owned());
    });
    world.now.degraded.clear();
    world.check(60, &[], degraded);
    let told = world.check(1, &["AgentDegraded"], degraded);
    assert_eq!(
        "not readable: namespaces (needs CAP_SYS_ADMIN)",
        find(&told, "AgentDegraded").latest.seen
    );
    world.check(61, &[], |world| world.now.degraded.clear());
}

#[test]
fn processes_that_own_no_listener_may_be_unreadable() {
    let mut world = World::new();
    let owners = world.now.listeners[0].owners.clone();
    assert!(!owners.is_empty());
    world.check(60, &[], |_| {});
    world.now.degraded.insert("owners", "needs CAP_SYS_PTRACE".to_owned());
    world.check(600, &[], |_| {});
    world.check(61, &["AgentDegraded"], |world| world.now.listeners[0].owners = [].into());
    world.check(61, &[], |world| world.now.listeners[0].owners = owners.clone());
}

#[test]
fn lost_events_are_told_unless_they_are_a_small_share() {
    #[track_caller]
    fn check(lost: u64, opens: u64, no_slot: u64, expected: &[&str]) {
        let mut world = World::new();
        world.check(240, expected, |world| {
            world.count("PassiveOpens", opens);
            add(&mut world.now.namespaces[0].lost_in_kernel, lost);
            add(&mut world.now.agent.no_slot, no_slot);
        });
        let told = world.run(1, |_| {});
        if let Some(&name) = expected.first() {
            assert!(find(&told, name).latest.seen.contains("handshakes not seen"));
        }
    }
    check(0, 5_000, 0, &[]);
    check(10, 5_000, 0, &[]);
    check(100, 5_000, 0, &["EventsLost"]);
    check(0, 5_000, 1, &["EventsLost"]);
}

#[test]
fn a_listener_without_a_slot_is_told_until_ten_minutes_have_passed() {
    let mut world = World::new();
    world.check(30, &[], |_| {});
    world.run(1, |world| {
        (world.now.agent.no_slot, world.now.agent.slots) = (Ok(1), Ok((4_096, 4_096)));
    });
    let told = world.check(61, &["EventsLost"], |_| {});
    let evidence = &find(&told, "EventsLost").latest;
    let cause = "all 4096 slots are taken: more sockets listen than the agent has room for";
    assert_eq!(Some(cause), evidence.cause.as_deref());
    world.check(1_000, &[], |_| {});
    let verdicts = world.run(1, |world| world.now.agent.stale = Err(Absent::NoEbpf));
    assert!(verdicts.unknown.iter().any(|it| it.alert == "EventsLost"));
}

#[test]
fn samples_that_take_long_are_told_after_ten_minutes() {
    #[track_caller]
    fn check(milliseconds: u64, seconds: u64, expected: &[&str]) {
        let mut world = World::new();
        world.check(seconds, expected, |world| {
            let durations = &mut world.now.agent.durations;
            for source in [Source::Process, Source::Total] {
                durations.entry(source).or_default().observe(Nanos(milliseconds * 1_000_000));
            }
        });
    }
    check(60, 580, &[]);
    check(60, 800, &["SampleSlow"]);
    check(40, 1_200, &[]);
}
