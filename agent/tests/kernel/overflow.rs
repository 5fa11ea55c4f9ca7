//! Listen drops: at the SYN, at the last ACK, and what only looks like one.

use crate::{
    agent::{Agent, Numbers, find},
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    offenders::{NeverAccepts, defer_accept},
    tier::scaled,
};

/// Twenty clients of a listener with backlog 5 that never accepts. Returns with the queue full and
/// the first SYNs refused; the agent's view agrees with the kernel's.
pub(crate) fn check_full_queue(agent: &mut Agent) -> (NeverAccepts, Clients) {
    let server = NeverAccepts::listen("127.0.0.1:0", 5);
    // all at once, a slow kernel could answer more SYNs than the queue holds, by cookies
    let mut clients = Clients::connect(6, server.addr);
    wait_for("the queue to be full", || agent.truth().at(server.addr).length == 6);
    clients.join(Clients::start(14, server.addr));
    for refused in [14, 28] {
        // each client that was refused tries again after a second
        wait_for("SYNs to be refused", || refused <= agent.truth().count("ListenDrops"));
        let (snapshot, seen) = agent.settled();
        let (listener, ss) = (find(&snapshot, server.addr), seen.at(server.addr));
        assert_eq!((listener.length, ss.length), (6, 6));
        assert_eq!((listener.limit, ss.limit), (5, 5));
        assert_eq!(listener.fill_ratio_max, Some(1.2));
        assert_eq!(listener.counters.drops, Ok(ss.drops));
        assert_eq!(listener.counters.socket_drops, Ok(ss.drops));
        assert_eq!(ss.drops, seen.count("ListenDrops"));
        assert_eq!(ss.drops, seen.count("ListenOverflows"));
        assert_eq!(clients.connected(), 6);
    }
    (server, clients)
}

#[test]
#[ignore = "kernel: needs root"]
fn a_full_queue_holds_limit_plus_one_and_each_refused_syn_is_a_drop() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let (server, clients) = check_full_queue(&mut agent);
        drop(clients);
        let (snapshot, seen) = agent.settled();
        let drops = seen.count("ListenDrops");
        let listener = find(&snapshot, server.addr);
        let expected = Numbers { established: 6, drops, length: 6, ..Numbers::default() };
        assert_eq!(Numbers::of(listener), expected);
        assert_eq!(listener.length_max, Ok(6));
        assert!(listener.counters.full.0 > 0, "{:?}", listener.counters);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn drops_that_come_while_the_agent_looks_are_all_counted() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let servers = [(); 3].map(|()| NeverAccepts::listen("127.0.0.1:0", 0));
        let held = servers.each_ref().map(|server| Clients::connect(1, server.addr));
        let [a, b, c] = servers.each_ref().map(|server| server.addr);
        let n = scaled(3_000);
        let refused = std::thread::spawn(move || {
            for _ in 0..n {
                [a, a, b].into_iter().for_each(|addr| drop(Clients::start(1, addr)));
            }
        });
        while !refused.is_finished() {
            agent.look();
        }
        refused.join().expect("clients");
        let (snapshot, seen) = agent.settled();
        let counted = |addr| find(&snapshot, addr).counters.drops.expect("counted");
        assert_eq!([a, b, c].into_iter().map(counted).sum::<u64>(), seen.count("ListenDrops"));
        // what a hook missed, as kernels from 7.0 on can let it, may go to the other listener
        let missed = agent.missed(|_| true);
        for (addr, syns) in [(a, 2 * n), (b, n), (c, 0)] {
            let drops = seen.at(addr).drops;
            assert!(
                counted(addr).abs_diff(drops) <= missed,
                "{addr}: {} {drops} {missed}",
                counted(addr)
            );
            // a client that is held up between connect and close sends a second SYN
            assert!((syns..=syns + syns / 100).contains(&drops), "{addr}: {drops} of {syns}");
        }
        drop(held);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn handshakes_that_wait_for_their_last_ack_are_the_syn_queue() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        // it takes the bare ACK for nothing, so that the request socks stay
        let server = NeverAccepts::prepared("127.0.0.1:0", 100, defer_accept);
        let clients = Clients::connect(20, server.addr);
        for _ in 0..3 {
            let (snapshot, _) = agent.settled();
            let listener = find(&snapshot, server.addr);
            assert_eq!((listener.syn_queue, listener.length), (Ok(20), 0));
        }
        clients.send();
        wait_for("the queue", || agent.truth().at(server.addr).length == 20);
        let (snapshot, _) = agent.settled();
        let listener = find(&snapshot, server.addr);
        assert_eq!((listener.syn_queue, listener.length), (Ok(0), 20));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn deferred_handshakes_are_no_drops() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::prepared("127.0.0.1:0", 100, defer_accept);
        let clients = Clients::connect(10, server.addr);
        agent.check(server.addr, Numbers::default());
        clients.send();
        wait_for("all to be queued", || agent.truth().at(server.addr).length == 10);
        let expected = Numbers { established: 10, length: 10, ..Numbers::default() };
        let listener = agent.check(server.addr, expected);
        assert_eq!(agent.truth().at(server.addr).drops, 10, "each bare ACK is one for ss");
        assert_eq!(listener.counters.socket_drops, Ok(10));
    });
}

/// The queue has room for one when five clients finish their handshake.
#[track_caller]
fn check_refused_acks(look_between: bool) {
    let mut agent = Agent::start();
    let server = NeverAccepts::prepared("127.0.0.1:0", 4, defer_accept);
    let clients = Clients::connect(5, server.addr);
    if look_between {
        agent.check(server.addr, Numbers::default());
    }
    server.listen_again(0);
    clients.send();
    wait_for("ACKs to be refused", || {
        let seen = agent.truth();
        5 <= seen.at(server.addr).length + seen.count("ListenDrops")
    });
    let (snapshot, seen) = agent.settled();
    let length = seen.at(server.addr).length;
    // one more where two CPUs work on last ACKs at once
    assert!((1..=2).contains(&length), "{length} queued");
    let (drops, deferred) = (seen.count("ListenDrops"), seen.count("TCPDeferAcceptDrop"));
    assert_eq!(seen.at(server.addr).drops, 2 * drops + deferred, "for ss a refused ACK is two");
    assert_eq!(seen.count("ListenOverflows"), drops);
    let listener = find(&snapshot, server.addr);
    let expected = Numbers { established: length, drops, length, ..Numbers::default() };
    assert_eq!(Numbers::of(listener), expected);
    assert!(5 - length <= drops, "{drops} drops, {length} queued");
    assert_eq!(listener.counters.socket_drops, Ok(2 * drops + deferred));
    let ratio = if length == 1 { 1.0 } else { 2.0 };
    assert_eq!((listener.limit, listener.fill_ratio_max), (0, Some(ratio)));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_refused_last_ack_is_one_drop() {
    in_own_netns(|| check_refused_acks(false));
    in_own_netns(|| check_refused_acks(true));
}
