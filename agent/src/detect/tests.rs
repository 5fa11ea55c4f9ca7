//! The engine as a whole, by what it tells.

use super::{
    alert::Untold,
    fixture::{World, add, find, listener},
    tuning::{Entry, Match},
    *,
};
use crate::{
    detect::rule::{minutes, seconds},
    input::Absent,
};

const NOTHING: &[(Change, &str)] = &[];

/// What changed, and for which alerts.
fn changes(verdicts: &Verdicts) -> Vec<(Change, &str)> {
    verdicts.changes.iter().map(|(change, alert)| (*change, alert.about.name)).collect()
}

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
    assert_eq!(vec![(Change::Raised, "ListenerStalled")], changes(&both));
    // and is told when that one is over
    world.run(5, |world| world.listener().stalled = Ok(false));
    let after = world.check(1, &["AcceptQueueOverflow"], |_| {});
    assert_eq!(None, find(&after, "AcceptQueueOverflow").inhibited_by);
    let expected = [(Change::Raised, "AcceptQueueOverflow"), (Change::Cleared, "ListenerStalled")];
    assert_eq!(expected, changes(&after)[..]);
}

#[test]
fn what_was_told_and_another_alert_says_better_is_not_cleared() {
    let mut world = World::new();
    world.check(1, &["AcceptQueueOverflow"], overflow);
    let both = world.check(1, &["ListenerStalled"], |world| world.listener().stalled = Ok(true));
    let inhibited = Change::Inhibited("ListenerStalled");
    let expected = [(Change::Raised, "ListenerStalled"), (inhibited, "AcceptQueueOverflow")];
    assert_eq!(expected, changes(&both)[..]);
    assert_eq!(Some("ListenerStalled"), both.changes[1].1.inhibited_by);
    assert_eq!(NOTHING, changes(&world.run(1, |_| {})));
    // what is over while another one says it better is over by itself
    world.listener().counters.drops_by.accept_queue_full_syn = Err(Absent::NoEbpf);
    let quiet = world.run(700, |_| {});
    assert_eq!(1, quiet.alerts.len(), "{:#?}", quiet.alerts);
    let after = world.run(6, |world| world.listener().stalled = Ok(false));
    assert_eq!(vec![(Change::Cleared, "ListenerStalled")], changes(&after));
}

#[test]
fn what_cannot_be_told_any_more_is_lost_and_not_cleared() {
    let mut world = World::new();
    let stalls = |world: &mut World| world.listener().stalled = Ok(true);
    let raised = world.check(1, &["ListenerStalled"], stalls);
    let seen = find(&raised, "ListenerStalled").latest.clone();
    let since = world.now.unix_time.0 + 1_000_000_000;
    let blind = |world: &mut World| world.listener().stalled = Err(Absent::NotPermitted);
    let held = world.check(60, &["ListenerStalled"], blind);
    let alert = find(&held, "ListenerStalled");
    let unknown = Untold { since: crate::time::UnixTime(since), why: Absent::NotPermitted };
    assert_eq!((Some(unknown), &seen), (alert.unknown, &alert.latest));
    assert_eq!(NOTHING, changes(&held));
    let lost = Change::Lost(Lost::Unknown(Absent::NotPermitted));
    let over = world.check(1, &[], blind);
    assert_eq!(vec![(lost, "ListenerStalled")], changes(&over));
    assert_eq!(Some(unknown), over.changes[0].1.unknown);
    // seen again in time, it goes on
    world.check(1, &["ListenerStalled"], stalls);
    world.check(50, &["ListenerStalled"], blind);
    let again = world.check(1, &["ListenerStalled"], stalls);
    assert_eq!(None, find(&again, "ListenerStalled").unknown);
    assert_eq!(NOTHING, changes(&again));
}

#[test]
fn what_is_silenced_is_not_cleared() {
    let mut world = World::new();
    world.check(1, &["AcceptQueueOverflow"], overflow);
    let silence = Entry { silence: Some(true), ..Entry::default() };
    let tuning = Tuning { entries: vec![silence], ..Tuning::default() };
    world.detector.tune(Arc::new(tuning));
    let silent = world.check(1, &[], overflow);
    assert_eq!(vec![(Change::Silenced, "AcceptQueueOverflow")], changes(&silent));
    assert_eq!(NOTHING, changes(&world.run(1, |_| {})));
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
    // a listener of the configuration that was never there
    let expected = tuning::Expected {
        addr: None,
        port: 82,
        namespace: None,
        within: seconds(60),
        look: None,
        place: "a:9".to_owned(),
    };
    let tuning = Tuning { expected: vec![expected], ..Tuning::default() };
    let mut other = World::tuned(tuning);
    assert_eq!(vec![Arc::from("a:9")], other.run(1, |_| {}).idle);
    other.now.listeners.push(listener(82));
    assert!(other.run(1, |_| {}).idle.is_empty());
    other.now.listeners.pop();
    assert!(other.run(1, |_| {}).idle.is_empty());
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
    assert_eq!(vec![(Change::Lost(Lost::Gap), "AcceptQueueOverflow")], changes(&verdicts));
}

#[test]
fn what_nobody_looked_at_for_a_while_is_not_cleared() {
    let mut world = World::new();
    world.check(1, &["AcceptQueueOverflow"], overflow);
    world.now.at = world.now.at + minutes(6);
    let verdicts = world.check(1, &[], |_| {});
    assert_eq!(vec![(Change::Lost(Lost::Gap), "AcceptQueueOverflow")], changes(&verdicts));
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
fn a_subject_that_is_gone_keeps_its_alerts_for_as_long_as_is_configured() {
    let entry =
        Entry { alert: Some("ListenerStalled"), clear_for: Some(seconds(20)), ..Entry::default() };
    let mut world = World::tuned(Tuning { entries: vec![entry], ..Tuning::default() });
    world.check(1, &["ListenerStalled"], |world| world.listener().stalled = Ok(true));
    let listeners = std::mem::take(&mut world.now.listeners);
    // another configuration does not change what is gone
    world.detector.tune(Arc::default());
    world.check(19, &["ListenerStalled"], |_| {});
    let over = world.check(1, &[], |_| {});
    assert_eq!(vec![(Change::Cleared, "ListenerStalled")], changes(&over));
    // it is there again, and all is well
    world.now.listeners = listeners;
    let back = world.check(1, &[], |world| world.listener().stalled = Ok(false));
    assert_eq!(NOTHING, changes(&back));
}

#[test]
fn what_could_not_be_told_before_its_subject_was_gone_is_lost() {
    let mut world = World::new();
    world.check(1, &["ListenerStalled"], |world| world.listener().stalled = Ok(true));
    world.check(9, &["ListenerStalled"], |world| world.listener().stalled = Err(Absent::NoSlot));
    world.now.listeners.clear();
    let over = world.check(5, &[], |_| {});
    let lost = Change::Lost(Lost::Unknown(Absent::NoSlot));
    assert_eq!(vec![(lost, "ListenerStalled")], changes(&over));
}

/// Listeners on ports that go away: those of `overflowing` with an alert that fires.
fn leave(world: &mut World, ports: std::ops::Range<u16>, overflowing: bool) -> Verdicts {
    world.now.listeners.extend(ports.clone().map(listener));
    world.run(1, |_| {});
    let grow = |world: &mut World| {
        let leaving = world.now.listeners.iter_mut().filter(|it| ports.contains(&it.key.port));
        for listener in leaving.filter(|_| overflowing) {
            add(&mut listener.counters.drops_by.accept_queue_full_syn, 20);
            add(&mut listener.counters.syns, 20);
        }
    };
    world.run(35, grow);
    world.now.listeners.retain(|it| !ports.contains(&it.key.port));
    world.run(1, |_| {})
}

#[test]
fn of_subjects_that_are_gone_those_that_alerts_fire_for_are_kept_and_then_the_last_ones() {
    let ports = |verdicts: &[Arc<Alert>]| -> Vec<u16> {
        let mut ports: Vec<_> = verdicts.iter().filter_map(|it| it.subject.labels.port).collect();
        ports.sort_unstable();
        ports
    };
    let mut world = World::new();
    // the higher ports go first
    let mut verdicts = leave(&mut world, 2_000..2_010, true);
    assert_eq!((2_000..2_010).collect::<Vec<_>>(), ports(&verdicts.alerts));
    // what has no alerts takes nobody's place
    verdicts = leave(&mut world, 3_000..4_100, false);
    assert_eq!((10, 0), (verdicts.alerts.len(), verdicts.no_room));
    verdicts = leave(&mut world, 1_000..2_000, true);
    assert_eq!((1_010, 0), (verdicts.alerts.len(), verdicts.no_room));
    verdicts = leave(&mut world, 900..920, true);
    assert_eq!((1_024, 6), (verdicts.alerts.len(), verdicts.no_room));
    let no_room = Change::Lost(Lost::NoRoom);
    assert_eq!(vec![(no_room, "AcceptQueueOverflow"); 6], changes(&verdicts));
    let lost: Vec<_> = verdicts.changes.iter().map(|(_, alert)| alert.clone()).collect();
    assert_eq!((2_000..2_006).collect::<Vec<_>>(), ports(&lost));
    assert_eq!(6, world.run(1, |_| {}).no_room);
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

#[test]
fn no_alert_says_itself_better_by_way_of_others() {
    let all = all();
    for about in &all {
        let mut better: Vec<&str> = about.inhibited_by.to_vec();
        for _ in &all {
            assert!(!better.contains(&about.name), "{}", about.name);
            let next = all.iter().filter(|it| better.contains(&it.name));
            better = next.flat_map(|it| it.inhibited_by).copied().collect();
        }
    }
}
