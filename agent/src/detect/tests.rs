//! The engine as a whole, by what it tells.

use super::{
    fixture::{World, add, find, listener},
    tuning::{Entry, Match},
    *,
};
use crate::{detect::rule::seconds, input::Absent};

fn overflow(world: &mut World) {
    add(&mut world.listener().counters.drops_by.accept_queue_full_syn, 20);
    add(&mut world.listener().counters.syns, 20);
}

#[test]
fn an_alert_is_told_once_and_ends() {
    let mut world = World::new();
    world.check(60, &[], |_| {});
    let raised = world.check(1, &["AcceptQueueOverflow"], overflow);
    assert_eq!(1, raised.changes.len());
    assert_eq!(Change::Raised, raised.changes[0].0);
    let alert = find(&raised, "AcceptQueueOverflow");
    assert_eq!("nginx 0.0.0.0:80", alert.subject.name);
    assert!(alert.latest.seen.starts_with("20 overflows"), "{alert:?}");
    let quiet = world.check(1, &["AcceptQueueOverflow"], |_| {});
    assert!(quiet.changes.is_empty(), "{:?}", quiet.changes);
    // drops leave the window after five minutes, and ten more are quiet
    world.check(14 * 60, &["AcceptQueueOverflow"], |_| {});
    world.check(2 * 60, &[], |_| {});
}

#[test]
fn what_another_alert_says_better_is_not_told() {
    let mut world = World::new();
    let both = world.check(1, &["ListenerStalled"], |world| {
        overflow(world);
        world.listener().stalled = Ok(true);
    });
    assert_eq!(Some("ListenerStalled"), find(&both, "AcceptQueueOverflow").inhibited_by);
    // and is told when that one is over
    let after = world.check(10, &["AcceptQueueOverflow"], |world| {
        world.listener().stalled = Ok(false);
    });
    assert_eq!(None, find(&after, "AcceptQueueOverflow").inhibited_by);
}

#[test]
fn a_silence_takes_what_it_matches_and_what_matches_nothing_is_known() {
    let port = |port| Match { port: Some(port..=port), ..Match::default() };
    let silence = |only, place: &str| Entry {
        alert: Some("AcceptQueueOverflow"),
        only,
        silence: Some(true),
        place: place.to_owned(),
        ..Entry::default()
    };
    let entries = vec![silence(port(80), "a:1"), silence(port(81), "a:5")];
    let mut world = World::tuned(Tuning { entries, ..Tuning::default() });
    let verdicts = world.check(5, &[], overflow);
    assert_eq!(vec![Arc::from("a:5")], verdicts.idle);
    world.now.listeners.push(listener(81));
    assert!(world.run(1, |_| {}).idle.is_empty());
    // taken back, it is told
    world.detector.tune(Arc::default());
    world.check(1, &["AcceptQueueOverflow"], overflow);
    let raise_for = Some(seconds(9));
    let entries = vec![Entry { raise_for, ..Entry::default() }];
    let mut world = World::tuned(Tuning { entries, ..Tuning::default() });
    world.check(9, &[], overflow);
    world.check(1, &["AcceptQueueOverflow"], overflow);
}

#[test]
fn what_cannot_be_judged_is_unknown() {
    let mut world = World::new();
    let verdicts = world.run(1, |world| {
        world.listener().stalled = Err(Absent::NoEbpf);
    });
    let unknown =
        verdicts.unknown.iter().find(|it| it.alert == "ListenerStalled").expect("unknown");
    assert_eq!((Absent::NoEbpf, 1, 1), (unknown.why, unknown.subjects, unknown.of));
}

#[test]
fn a_clock_that_goes_back_begins_anew() {
    let mut world = World::new();
    world.check(1, &["AcceptQueueOverflow"], overflow);
    world.now.at = Monotonic(5);
    let verdicts = world.check(1, &[], |_| {});
    assert_eq!(Change::Cleared, verdicts.changes[0].0);
}

#[test]
fn a_listener_that_goes_away_takes_its_alerts_with_it() {
    let mut world = World::new();
    world.check(1, &["AcceptQueueOverflow"], overflow);
    world.now.listeners.clear();
    world.check(9 * 60, &["AcceptQueueOverflow"], |_| {});
    world.check(2 * 60, &[], |_| {});
}

#[test]
fn names_are_unique_and_inhibitors_exist() {
    let all = all();
    let names: std::collections::BTreeSet<&str> = all.iter().map(|about| about.name).collect();
    assert_eq!(all.len(), names.len());
    for about in all {
        for by in about.inhibited_by {
            assert!(names.contains(by), "{} {by}", about.name);
        }
    }
}
