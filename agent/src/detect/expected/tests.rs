//! Detections of this kind, by what they tell.

use std::{net::IpAddr, sync::Arc};

use super::is_up;
use crate::{
    detect::{
        fixture::{World, find},
        rule::seconds,
        tuning::{Expected, Pattern, Tuning},
    },
    input::Workload,
};

fn expected(addr: Option<&str>, port: u16, namespace: Option<&str>) -> Expected {
    Expected {
        addr: addr.map(|addr| addr.parse().expect("an address")),
        port,
        namespace: namespace.map(|pattern| Pattern(pattern.into())),
        within: seconds(10),
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
        assert_eq!(is, is_up(&world.now, wanted), "{bound} {v6only} {wanted:?}");
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
