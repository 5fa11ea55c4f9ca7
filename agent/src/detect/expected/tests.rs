//! Detections of this kind, by what they tell.

use std::{net::IpAddr, sync::Arc};

use super::is_up;
use crate::{
    detect::{
        alert::Verdicts,
        fixture::{World, find, listener},
        rule::seconds,
        tuning::{Expected, Pattern, Tuning},
    },
    input::{Absent, Known, Workload},
};

fn expected(addr: Option<&str>, port: u16, namespace: Option<&str>) -> Expected {
    Expected {
        addr: addr.map(|addr| addr.parse().expect("an address")),
        port,
        namespace: namespace.map(|pattern| Pattern(pattern.into())),
        within: seconds(10),
        look: None,
        place: String::new(),
    }
}

fn world(expected: Vec<Expected>) -> World {
    World::tuned(Tuning { expected, ..Tuning::default() })
}

#[test]
fn a_listener_is_up_where_connections_reach_it() {
    #[track_caller]
    fn check(bound: &str, v6only: bool, wanted: &Expected, is: bool) {
        let mut world = world(Vec::new());
        let workload = Workload { namespace: Some("web".into()), ..Workload::default() };
        let listener = world.listener();
        listener.key.addr = bound.parse::<IpAddr>().expect("an address");
        (listener.v6only, listener.workload) = (v6only, Arc::new(workload));
        assert_eq!(Ok(is), is_up(&world.now, wanted), "{bound} {v6only} {wanted:?}");
    }
    check("0.0.0.0", false, &expected(None, 80, None), true);
    check("0.0.0.0", false, &expected(None, 81, None), false);
    check("0.0.0.0", false, &expected(Some("192.0.2.1"), 80, None), true);
    check("::", false, &expected(Some("192.0.2.1"), 80, None), true);
    check("::", true, &expected(Some("192.0.2.1"), 80, None), false);
    check("::", true, &expected(Some("::1"), 80, None), true);
    check("0.0.0.0", false, &expected(Some("::"), 80, None), false);
    check("127.0.0.1", false, &expected(Some("192.0.2.1"), 80, None), false);
    check("127.0.0.1", false, &expected(Some("127.0.0.1"), 80, Some("we*")), true);
    check("127.0.0.1", false, &expected(None, 80, Some("db")), false);
}

#[test]
fn in_a_namespace_that_is_not_known_it_may_be_the_one_that_is_wanted() {
    #[track_caller]
    fn check(workload: Workload, wanted: &Expected, expected: Known<bool>) {
        let mut world = world(Vec::new());
        world.listener().workload = Arc::new(workload);
        let listener = &world.now.listeners[0];
        assert_eq!(expected, is_up(&world.now, wanted), "{:?}", listener.workload);
    }
    let wanted = expected(None, 80, Some("shop"));
    let text = |text: &str| Some(text.into());
    let unknown = Err(Absent::Unreadable);
    let workload = Workload::default;
    check(workload(), &wanted, unknown);
    check(Workload { container_id: text("c1"), ..workload() }, &wanted, unknown);
    let pod = Workload { unit: text("kubepods.slice"), pod_uid: text("u1"), ..workload() };
    check(pod, &wanted, unknown);
    check(Workload { unit: text("nginx.service"), ..workload() }, &wanted, Ok(false));
    check(Workload { namespace: text("db"), ..workload() }, &wanted, Ok(false));
    check(Workload { namespace: text("shop"), ..workload() }, &wanted, Ok(true));
    // where nobody listens at all, and where any namespace will do
    check(workload(), &expected(None, 81, Some("shop")), Ok(false));
    check(workload(), &expected(None, 80, None), Ok(true));
}

#[test]
fn one_whose_namespace_is_not_known_is_neither_fine_nor_down() {
    let mut world = world(vec![expected(None, 80, Some("shop"))]);
    let verdicts = world.run(60, |_| {});
    let unknown = |verdicts: &Verdicts| {
        let it = verdicts.unknown.iter().find(|it| it.alert == "ExpectedListenerDown");
        it.map(|it| it.why)
    };
    assert_eq!(Some(Absent::Unreadable), unknown(&verdicts));
    assert_eq!(
        (true, Err(Absent::Unreadable)),
        (verdicts.alerts.is_empty(), verdicts.expected[0].1)
    );
    let shop = Workload { namespace: Some("shop".into()), ..Workload::default() };
    let verdicts = world.run(1, |world| world.listener().workload = Arc::new(shop.clone()));
    assert_eq!(None, unknown(&verdicts));
    let db = Workload { namespace: Some("db".into()), ..Workload::default() };
    world.check(10, &[], |world| world.listener().workload = Arc::new(db.clone()));
    world.check(1, &["ExpectedListenerDown"], |_| {});
}

#[test]
fn one_that_is_missing_throughout_a_short_look_is_a_warning() {
    let look = |seconds_of_look| {
        vec![Expected { look: Some(seconds(seconds_of_look)), ..expected(None, 81, None) }]
    };
    let mut world = World::unseen(Tuning { expected: look(3), ..Tuning::default() });
    world.check(3, &[], |_| {});
    let told = world.check(1, &["ExpectedListenerDown"], |_| {});
    let alert = find(&told, "ExpectedListenerDown");
    let got = (alert.severity.name(), &*alert.latest.seen);
    assert_eq!(("warning", "no listener for 3 s"), got);
    // by then it is known to be missing for as long as it may
    let told = world.check(7, &["ExpectedListenerDown"], |_| {});
    assert_eq!("critical", find(&told, "ExpectedListenerDown").severity.name());
    // a longer look than it may be missing
    let mut world = World::unseen(Tuning { expected: look(30), ..Tuning::default() });
    world.check(10, &[], |_| {});
    let told = world.check(1, &["ExpectedListenerDown"], |_| {});
    assert_eq!("critical", find(&told, "ExpectedListenerDown").severity.name());
    // it comes meanwhile
    let mut world = World::unseen(Tuning { expected: look(3), ..Tuning::default() });
    world.check(2, &[], |_| {});
    world.check(2, &[], |world| world.now.listeners.push(listener(81)));
}

#[test]
fn a_listener_that_is_gone_for_longer_than_it_may_be_is_told() {
    // twice in the configuration is once
    let mut world = world(vec![expected(None, 80, None), expected(None, 80, None)]);
    let gone = |world: &mut World| world.listener().members.clear();
    // a restart
    world.check(60, &[], |_| {});
    let members = world.listener().members.clone();
    world.check(9, &[], gone);
    world.check(60, &[], |world| world.listener().members.clone_from(&members));
    world.check(10, &[], gone);
    let told = world.check(1, &["ExpectedListenerDown"], gone);
    let alert = find(&told, "ExpectedListenerDown");
    assert_eq!(
        ("port 80", "critical", "no listener for 10 s"),
        (&*alert.subject.name, alert.severity.name(), &*alert.latest.seen)
    );
    world.check(6, &[], |world| world.listener().members.clone_from(&members));
}

#[test]
fn one_that_never_came_is_told_too() {
    let wanted =
        Expected { within: seconds(40), ..expected(Some("192.0.2.7"), 8_443, Some("web")) };
    let mut world = world(vec![wanted]);
    // 35 looks, the first one when the agent started
    world.check(5, &[], |_| {});
    let told = world.check(1, &["ExpectedListenerDown"], |_| {});
    assert_eq!("192.0.2.7:8443 in web", told.alerts[0].subject.name);
}
