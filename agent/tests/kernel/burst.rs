//! Bursts: what happens between two looks.

use std::time::Duration;

use backlogd::model::Settings;

use crate::{
    agent::{Agent, Numbers, SETTINGS, find, undone_in},
    clients::Clients,
    namespace::{in_own_netns, own_netns, set_sysctl, wait_for},
    offenders::{Accepts, NeverAccepts, StoppedServer},
};

#[test]
#[ignore = "kernel: needs root"]
fn five_hundred_at_once_are_counted_like_the_kernel_and_the_server_count_them() {
    in_own_netns(|| {
        // a late ACK of a connection that is over is the last ACK of another one where a cookie was sent
        set_sysctl("ipv4/tcp_syncookies", "0");
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 200);
        let addr = server.addr;
        let clients = Clients::start(500, addr);
        wait_for("the queue to be full", || agent.truth().count("ListenDrops") >= 299);
        let server = Accepts::after(Duration::from_millis(300), server);
        // where the last ACK was refused, the client alone believes in its connection until it speaks
        agent.until("all clients to be connected", |_| clients.connected() == 500);
        clients.send();
        agent.until("all to be accepted", |snapshot| {
            find(snapshot, addr).counters.accepted == Ok(500)
        });
        assert_eq!(server.accepted(), 500);
        let (snapshot, seen) = agent.settled();
        let drops = seen.count("ListenDrops");
        let listener = find(&snapshot, addr);
        let expected = Numbers { established: 500, accepted: 500, drops, ..Numbers::default() };
        assert_eq!(Numbers::of(listener), expected);
        // one more where two CPUs work on last ACKs at once
        assert!(matches!(listener.length_max, Ok(201..=202)), "{:?}", listener.length_max);
        assert_eq!(seen.count("PassiveOpens"), 500 + undone_in(&snapshot, own_netns()));
        agent.check_all_closed(addr, 500);
    });
}

/// A queue of `n` that is gone before the agent looks.
fn burst(server: &StoppedServer, agent: &Agent, n: usize) {
    let expected = server.accepted() + u64::try_from(n).expect("a burst is small");
    server.stop();
    let clients = Clients::connect(n, server.addr);
    let length = agent.truth().at(server.addr).length;
    assert_eq!(length, u64::try_from(n).expect("small"), "the stopped server accepts nothing");
    server.go_on();
    wait_for("all to be accepted", || server.accepted() == expected);
    drop(clients);
}

#[test]
#[ignore = "kernel: needs root"]
fn the_longest_queue_is_seen_though_no_look_falls_into_the_burst() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = StoppedServer::start(128);
        let mut accepted = 0;
        for n in 50..55 {
            burst(&server, &agent, n);
            accepted += u64::try_from(n).expect("small");
            let expected = Numbers { established: accepted, accepted, ..Numbers::default() };
            let listener = agent.check(server.addr, expected);
            assert_eq!(listener.length_max, Ok(n.try_into().expect("small")));
        }
        burst(&server, &agent, 50);
        let (snapshot, _) = agent.settled();
        assert_eq!(find(&snapshot, server.addr).length_max, Ok(54), "the highest of the minute");
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn the_longest_queue_is_forgotten_after_its_window() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = StoppedServer::start(128);
        agent.set(Settings { length_max_window: Duration::from_secs(1), ..SETTINGS });
        for n in [50, 20, 50] {
            burst(&server, &agent, n);
            let (snapshot, _) = agent.settled();
            let seen = find(&snapshot, server.addr).length_max;
            assert_eq!(seen, Ok(n.try_into().expect("small")));
            agent.until("the window to pass", |snapshot| {
                find(snapshot, server.addr).length_max == Ok(0)
            });
        }
    });
}
