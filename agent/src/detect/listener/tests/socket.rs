//! What the coming and going of the sockets shows.

use super::*;
use crate::{detect::fixture::listener, id::Cookie};

fn leave(world: &mut World) {
    let listener = world.listener();
    listener.members.clear();
    listener.owners = Arc::new([]);
    listener.fill_ratio_max = None;
}

/// With another socket.
fn come_back(world: &mut World, cookie: u64) {
    let there = listener(80);
    let socket = Member { cookie: Cookie(cookie), ..there.members[0] };
    (world.listener().members, world.listener().owners) = (vec![socket], there.owners);
}

/// A listener that has served for eleven minutes.
fn served() -> World {
    let mut world = World::new();
    world.check(11 * 60, &[], |world| accept_after(world, 0.01, 1));
    world
}

#[test]
fn a_listener_that_served_and_is_gone_is_told() {
    let mut world = served();
    world.check(60, &[], leave);
    let told = world.check(1, &["ListenerGone"], leave);
    check_text(
        &told,
        "ListenerGone",
        "nobody listens for 60 s; last held by pid 100; 660 connections accepted in the hour before",
        None,
        "ss -tlnp sport = :80",
    );
    // also when it is shown no more
    let gone = world.now.listeners.clone();
    world.now.listeners.clear();
    world.check(50 * 60, &["ListenerGone"], |_| {});
    world.now.listeners = gone;
    world.check(1, &[], |world| come_back(world, 81));
}

#[test]
fn what_goes_for_good_reason_is_not_missed() {
    // a restart
    let mut world = served();
    world.check(50, &[], leave);
    world.check(60, &[], |world| come_back(world, 81));
    // never used
    let mut world = World::new();
    world.check(11 * 60, &[], |_| {});
    world.check(120, &[], leave);
    // known for a short time
    let mut world = World::new();
    world.check(60, &[], |world| accept_after(world, 0.01, 1));
    world.check(120, &[], leave);
    // with its namespace
    let mut world = served();
    world.now.namespaces.clear();
    world.check(120, &[], leave);
    // served at another address
    let mut world = served();
    let mut other = listener(80);
    other.key.addr = std::net::Ipv4Addr::LOCALHOST.into();
    world.now.listeners.push(other);
    world.check(120, &[], leave);
    // of a port that the kernel gave it
    let mut world = served();
    sysctl(&mut world, "ip_local_port_range_low", 80);
    world.check(120, &[], leave);
}

#[test]
fn a_port_that_old_connections_hold_is_told() {
    let mut world = served();
    let leave_behind = |world: &mut World| {
        leave(world);
        world.listener().open = Ok(3);
    };
    world.check(10, &[], leave_behind);
    let told = world.check(90, &["PortNotReleased"], leave_behind);
    check_text(
        &told,
        "PortNotReleased",
        "nobody listens for 99 s; 3 of its connections are still open; last held by pid 100",
        Some(
            "whoever holds them was not ended with the listener; bind without SO_REUSEADDR fails with \
             EADDRINUSE until they are closed, and for TIME_WAIT after that",
        ),
        "ss -tanp sport = :80",
    );
    world.check(1, &["ListenerGone"], |world| world.listener().open = Ok(0));
    world.check(11, &["PortNotReleased"], leave_behind);
    let unknown = world.run(1, |world| world.listener().open = Err(Absent::NoEbpf));
    check_unknown(&unknown, "PortNotReleased", Some(Absent::NoEbpf));
}

#[test]
fn a_port_that_is_held_as_it_is_meant_is_not_told() {
    #[track_caller]
    fn check(accepted: u64, low: i64, expected: &[&str]) {
        let mut world = World::new();
        sysctl(&mut world, "ip_local_port_range_low", low);
        for _ in 0..accepted {
            world.check(1, &[], |world| accept_after(world, 0.01, 1));
        }
        world.check(2, &[], |_| {});
        world.check(40, expected, |world| {
            leave(world);
            world.listener().open = Ok(1);
        });
    }
    // for one connection, as `nc -l`; of a port that the kernel gave it
    check(1, 32_768, &[]);
    check(2, 32_768, &[]);
    check(3, 32_768, &["PortNotReleased"]);
    check(20, 80, &[]);
    // again and again, each time for one
    let mut world = World::new();
    for cookie in [listener(80).members[0].cookie.0, 1_000, 1_001] {
        world.check(2, &[], |world| come_back(world, cookie));
        world.check(1, &[], |world| accept_after(world, 0.01, 1));
        world.check(20, &[], |world| {
            leave(world);
            world.listener().open = Ok(1);
        });
        world.check(1, &[], |world| world.listener().open = Ok(0));
        world.check(30, &[], |_| {});
    }
}

#[test]
fn a_listener_that_comes_and_goes_is_told() {
    let restart = |every: u64| {
        move |world: &mut World| match second(world) % every {
            1 => leave(world),
            4 => come_back(world, 1_000 + second(world)),
            _ => {}
        }
    };
    let mut world = World::new();
    world.check(9 * 60, &[], restart(250));
    let told = world.check(9 * 60, &["ListenerFlapping"], restart(120));
    let flapping = find(&told, "ListenerFlapping");
    let seen = &flapping.latest.seen;
    assert!(seen.starts_with("came back with another socket ") && seen.ends_with("it listens now"));
    world.check(16 * 60, &[], |_| {});
    // the same socket: a dump may pass it by
    world.check(9 * 60, &[], |world| {
        let known = listener(80);
        match second(world) % 30 {
            1 => leave(world),
            2 => come_back(world, known.members[0].cookie.0),
            _ => {}
        }
    });
    // workers of a group, one after the other
    let mut world = World::new();
    world.check(9 * 60, &[], |world| {
        let first = second(world) / 30;
        let one = listener(80).members[0];
        let members = (first..first + 4).map(|i| Member { cookie: Cookie(1_000 + i), ..one });
        world.listener().members = members.collect();
    });
}
