//! Listeners of every shape: groups, families, addresses, limits, and very many.

use std::collections::BTreeMap;

use backlogd::input::Absent;

use crate::{
    agent::{Agent, Numbers, SETTINGS, find, own},
    clients::Clients,
    namespace::{in_own_netns, own_netns, set_sysctl, wait_for},
    offenders::{Accepts, NeverAccepts},
    tier::options,
};

#[test]
#[ignore = "kernel: needs root"]
fn one_stuck_member_of_a_reuseport_group_shows_in_the_fill_ratio() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let mut members = NeverAccepts::group(&[4, 60, 60, 60]);
        let healthy: Vec<Accepts> = members.drain(1..).map(Accepts::at_once).collect();
        let stuck = members.pop().expect("the first member");
        let clients = Clients::start(200, stuck.addr);
        wait_for("the stuck member to refuse", || agent.truth().count("ListenDrops") >= 5);
        agent.until("the others to be empty", |snapshot| find(snapshot, stuck.addr).length == 5);

        let (snapshot, seen) = agent.settled();
        let listener = find(&snapshot, stuck.addr);
        assert_eq!((listener.members.len(), listener.limit), (4, 184));
        assert_eq!(listener.fill_ratio_max, Some(1.25));
        let accepted = healthy.iter().map(Accepts::accepted).sum();
        let sum = Numbers {
            established: accepted + 5,
            accepted,
            length: 5,
            drops: seen.count("ListenDrops"),
            ..Numbers::default()
        };
        assert_eq!(Numbers::of(listener), sum);

        let drops = listener.counters.drops.expect("counted");
        drop(stuck);
        let (snapshot, _) = agent.settled();
        let listener = find(&snapshot, healthy[0].addr);
        assert_eq!((listener.members.len(), listener.limit, listener.length), (3, 180, 0));
        assert_eq!(listener.counters.aborted_listener_closed, Ok(5));
        assert!(drops <= listener.counters.drops.expect("counted"));
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_dual_stack_listener_counts_clients_of_both_families() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::prepared("[::]:0", 5, |s| s.set_only_v6(false).expect("V6ONLY"));
        let port = server.addr.port();
        let at = |host: &str| format!("{host}:{port}").parse().expect("an address");
        let clients = (Clients::connect(3, at("127.0.0.1")), Clients::start(7, at("[::1]")));
        wait_for("SYNs to be refused", || agent.truth().count("ListenDrops") >= 4);
        let (snapshot, seen) = agent.settled();
        let listener = find(&snapshot, server.addr);
        let drops = seen.count("ListenDrops");
        let sum = Numbers { established: 6, length: 6, drops, ..Numbers::default() };
        assert_eq!(Numbers::of(listener), sum);
        assert!(!listener.v6only);
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn listeners_on_one_port_are_kept_apart_by_address() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let first = NeverAccepts::listen("127.0.0.1:0", 5);
        let port = first.addr.port();
        let mut servers = vec![first];
        for (host, backlog) in [("127.0.0.2", 6), ("127.0.0.3", 7), ("[::1]", 8)] {
            servers.push(NeverAccepts::listen(&format!("{host}:{port}"), backlog));
        }
        let n_clients = || 1..;
        let clients: Vec<Clients> =
            servers.iter().zip(n_clients()).map(|(s, n)| Clients::connect(n, s.addr)).collect();
        for ((server, n), limit) in servers.iter().zip(n_clients()).zip(5..) {
            let n = u64::try_from(n).expect("small");
            let sum = Numbers { established: n, length: n, ..Numbers::default() };
            assert_eq!(agent.check(server.addr, sum).limit, limit, "{}", server.addr);
        }
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn the_wildcards_of_both_families_on_one_port_are_two_listeners() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let v4 = NeverAccepts::listen("0.0.0.0:0", 5);
        let port = v4.addr.port();
        let only = |s: &socket2::Socket| s.set_only_v6(true).expect("V6ONLY");
        let v6 = NeverAccepts::prepared(&format!("[::]:{port}"), 6, only);
        let at = |host: &str| format!("{host}:{port}").parse().expect("an address");
        let clients = (Clients::connect(2, at("127.0.0.1")), Clients::connect(3, at("[::1]")));
        let two = Numbers { established: 2, length: 2, ..Numbers::default() };
        let three = Numbers { established: 3, length: 3, ..Numbers::default() };
        assert_eq!(agent.check(v4.addr, two).limit, 5);
        let listener = agent.check(v6.addr, three);
        assert_eq!((listener.limit, listener.v6only), (6, true));
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn the_limit_is_the_one_that_somaxconn_left_when_the_program_listened() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        set_sysctl("core/somaxconn", "7");
        let server = NeverAccepts::listen("127.0.0.1:0", 100);
        set_sysctl("core/somaxconn", "9");
        let clients = Clients::start(10, server.addr);
        wait_for("SYNs to be refused", || agent.truth().count("ListenDrops") >= 2);
        let (snapshot, seen) = agent.settled();
        let listener = find(&snapshot, server.addr);
        assert_eq!((listener.limit, listener.length), (7, 8));
        assert_eq!(listener.counters.drops, Ok(seen.count("ListenDrops")));
        // sysctls are not read in each sample
        agent.until("the sysctl to be read", |snapshot| {
            let own = snapshot.namespaces.iter().find(|n| n.netns == own_netns());
            own.expect("our namespace").sysctls.get("somaxconn") == Some(&9)
        });
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn backlog_0_holds_one() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 0);
        let clients = Clients::start(2, server.addr);
        wait_for("a SYN to be refused", || agent.truth().count("ListenDrops") >= 1);
        let (snapshot, seen) = agent.settled();
        let listener = find(&snapshot, server.addr);
        let drops = seen.count("ListenDrops");
        let sum = Numbers { established: 1, length: 1, drops, ..Numbers::default() };
        assert_eq!(Numbers::of(listener), sum);
        assert_eq!((listener.limit, listener.fill_ratio_max), (0, Some(1.0)));
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_thousand_listeners_all_have_the_right_numbers() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let mut expected = BTreeMap::new();
        let mut held = Vec::new();
        for i in 0..1_000_u32 {
            let server =
                NeverAccepts::listen("127.0.0.1:0", (i % 7 + 3).try_into().expect("small"));
            let n = i % 4;
            let clients = Clients::connect(n.try_into().expect("small"), server.addr);
            let taken = server.accept(usize::from(n == 3));
            let numbers = Numbers {
                established: n.into(),
                accepted: u64::from(n == 3),
                length: (n - u32::from(n == 3)).into(),
                ..Numbers::default()
            };
            expected.insert(server.addr, (u64::from(i % 7 + 3), numbers));
            held.push((server, clients, taken));
        }
        let (snapshot, _) = agent.settled();
        assert_eq!(own(&snapshot).count(), 1_000);
        for (&addr, expected) in &expected {
            let listener = find(&snapshot, addr);
            assert_eq!((listener.limit, Numbers::of(listener)), *expected, "{addr}");
        }
        drop(held);
        let (snapshot, _) = agent.settled();
        for (&addr, (_, numbers)) in &expected {
            let gone = Numbers { listener_closed: numbers.length, length: 0, ..*numbers };
            assert_eq!(Numbers::of(find(&snapshot, addr)), gone, "{addr}");
        }
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn listeners_of_other_namespaces_take_no_slots() {
    in_own_netns(|| {
        let mut agent = Agent::with(&options(16), SETTINGS);
        in_own_netns(|| {
            let servers = [(); 20].map(|()| NeverAccepts::listen("127.0.0.1:0", 5));
            drop(servers.each_ref().map(|server| Clients::connect(1, server.addr)));
        });
        assert_eq!(agent.look().agent.no_slot, Ok(0));
        let ours = [(); 20].map(|()| NeverAccepts::listen("127.0.0.1:0", 5));
        assert_eq!(agent.look().agent.no_slot.map(|n| 4 <= n), Ok(true));
        drop(ours);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn slots_are_given_back_and_used_again() {
    in_own_netns(|| {
        let mut agent = Agent::with(&options(32), SETTINGS);
        for n in 1..=100 {
            let server = NeverAccepts::listen("127.0.0.1:4000", 5);
            let client = Clients::connect(1, server.addr);
            let addr = server.addr;
            assert_eq!(find(&agent.look(), addr).counters.established, Ok(n));
            drop((server, client));
            agent.until("the slot to be free", |snapshot| {
                find(snapshot, addr).counters.aborted_listener_closed == Ok(n)
            });
        }
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_without_a_slot_keeps_its_gauges_and_says_what_is_missing() {
    in_own_netns(|| {
        let mut agent = Agent::with(&options(4), SETTINGS);
        // other programs of this host may have taken slots, but never give us more than four
        let servers: Vec<_> = (0..6).map(|_| NeverAccepts::listen("127.0.0.1:0", 5)).collect();
        let clients: Vec<_> = servers.iter().map(|s| Clients::connect(2, s.addr)).collect();
        for missing in [Absent::TooEarly, Absent::NoSlot] {
            let snapshot = agent.look();
            let mut without = 0;
            for server in &servers {
                let listener = find(&snapshot, server.addr);
                assert_eq!((listener.length, listener.limit), (2, 5));
                if listener.counters.established != Ok(2) {
                    assert_eq!(listener.counters.established, Err(missing));
                    without += 1;
                }
            }
            assert!((2..=6).contains(&without), "{without} without a slot");
        }
        let snapshot = agent.look();
        assert!(2 <= snapshot.agent.no_slot.expect("eBPF runs"), "{:?}", snapshot.agent);
        drop(clients);
    });
}
