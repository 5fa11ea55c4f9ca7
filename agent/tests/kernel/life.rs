//! Listeners and connections that end early, start late, or start again.

use std::net::{Shutdown, SocketAddr};

use crate::{
    agent::{Agent, Numbers, find},
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    offenders::NeverAccepts,
    truth::Truth,
};

/// Nothing that a connection leaves behind names the listener's port.
const ANY: &str = "127.0.0.1:0";

#[test]
#[ignore = "kernel: needs root"]
fn a_client_that_resets_while_queued_is_still_accepted() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 8);
        let stay = Clients::connect(2, server.addr);
        Clients::connect(1, server.addr).reset();
        let queued = Numbers { established: 3, length: 3, reset: 1, ..Numbers::default() };
        agent.check(server.addr, queued);
        let taken = server.accept(3);
        agent.check(server.addr, Numbers { accepted: 3, length: 0, ..queued });
        drop((taken, stay));
        agent.check(server.addr, Numbers { accepted: 3, length: 0, ..queued });
        agent.check_all_closed(server.addr, 3);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn an_accepted_connection_that_is_reset_is_open_until_it_is_closed() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 8);
        let clients = Clients::connect(5, server.addr);
        let taken = server.accept(5);
        clients.reset();
        let accepted = Numbers { established: 5, accepted: 5, ..Numbers::default() };
        let listener = agent.check(server.addr, accepted);
        assert_eq!((listener.counters.closed, listener.open), (Ok(0), Ok(5)));
        drop(taken);
        agent.check(server.addr, accepted);
        agent.check_all_closed(server.addr, 5);
    });
}

#[track_caller]
fn check_closed_when_full(look_before: bool) {
    let mut agent = Agent::start();
    let server = NeverAccepts::listen(ANY, 3);
    let addr = server.addr;
    let clients = Clients::start(10, addr);
    wait_for("the queue to be full", || agent.truth().count("ListenDrops") >= 6);
    if look_before {
        let (snapshot, seen) = agent.settled();
        let drops = seen.count("ListenDrops");
        let full = Numbers { established: 4, length: 4, drops, ..Numbers::default() };
        assert_eq!(Numbers::of(find(&snapshot, addr)), full);
    }
    drop(server);
    wait_for("the listener to be gone", || agent.truth().sockets.is_empty());
    // clients that were refused try again after a second: it takes until here to be final
    let drops = agent.truth().count("ListenDrops");
    let gone = Numbers { established: 4, listener_closed: 4, drops, ..Numbers::default() };
    for _ in 0..2 {
        let listener = agent.check(addr, gone);
        assert_eq!(listener.members, []);
        assert_eq!((listener.limit, listener.fill_ratio_max), (0, None));
        assert_eq!(listener.counters.closed, Ok(0), "never accepted, so never closed");
    }
    drop(clients);
}

#[test]
#[ignore = "kernel: needs root"]
fn what_a_closing_listener_held_is_aborted_and_its_counters_stay() {
    in_own_netns(|| check_closed_when_full(true));
    in_own_netns(|| check_closed_when_full(false));
}

/// A listener that lives for `connect` connections, of which it accepts `accept`.
fn live(addr: SocketAddr, connect: usize, accept: usize) -> SocketAddr {
    let server = NeverAccepts::again(addr, 16);
    let clients = Clients::connect(connect, server.addr);
    drop((server.accept(accept), clients));
    server.addr
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_reopened_between_two_looks_loses_no_count_and_gains_none() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 16);
        let addr = server.addr;
        let first = Clients::connect(5, addr);
        let taken = server.accept(2);
        drop(server);
        let mut sum =
            Numbers { established: 5, accepted: 2, listener_closed: 3, ..Numbers::default() };
        for lives in 0..4 {
            // none, one, two, three further lives that no look falls into
            for _ in 0..lives {
                live(addr, 3, 1);
            }
            let server = NeverAccepts::again(addr, 16);
            let clients = Clients::connect(4, addr);
            let taken = server.accept(1);
            sum.established += 3 * lives + 4;
            sum.accepted += lives + 1;
            sum.listener_closed += 2 * lives;
            sum.length = 3;
            agent.check(addr, sum);
            drop((server, clients, taken));
            sum.listener_closed += 3;
        }
        sum.length = 0;
        agent.check(addr, sum);
        drop((first, taken));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_that_lived_between_two_looks_is_seen() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let addr = live(ANY.parse().expect("an address"), 3, 2);
        let sum = Numbers { established: 3, accepted: 2, listener_closed: 1, ..Numbers::default() };
        let listener = agent.check(addr, sum);
        assert_eq!(listener.members, []);
        assert_eq!(listener.length_max, Ok(3));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn drops_of_a_listener_that_lived_between_two_looks_are_counted() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 0);
        let addr = server.addr;
        let clients = Clients::start(4, addr);
        wait_for("SYNs to be refused", || agent.truth().count("ListenDrops") == 3);
        drop((server, clients));
        let sum = Numbers { established: 1, listener_closed: 1, drops: 3, ..Numbers::default() };
        agent.check(addr, sum);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_second_listen_changes_the_limit_and_no_count() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 5);
        let clients = Clients::connect(3, server.addr);
        let sum = Numbers { established: 3, length: 3, ..Numbers::default() };
        assert_eq!(agent.check(server.addr, sum).limit, 5);
        for limit in [9, 1] {
            server.listen_again(limit.try_into().expect("small"));
            assert_eq!(agent.check(server.addr, sum).limit, limit);
        }
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_that_is_shut_down_and_listens_again_goes_on_counting() {
    in_own_netns(|| {
        // only a port that bind(2) was asked for stays with the socket
        let addr = NeverAccepts::listen(ANY, 5).addr;
        let mut agent = Agent::start();
        let server = NeverAccepts::again(addr, 5);
        let clients = Clients::connect(3, server.addr);
        drop(server.accept(1));
        server.socket().shutdown(Shutdown::Read).expect("shutdown");
        let mut sum =
            Numbers { established: 3, accepted: 1, listener_closed: 2, ..Numbers::default() };
        // in no dump, and not destroyed: one look cannot tell whether it is on its way out
        agent.look();
        agent.check(server.addr, sum);
        server.listen_again(5);
        let more = Clients::connect(2, server.addr);
        sum.established += 2;
        sum.length = 2;
        agent.check(server.addr, sum);
        drop((clients, more));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_socket_that_listens_again_on_another_port_is_another_listener() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        // a port that the kernel chose goes with shutdown(2)
        let server = NeverAccepts::listen(ANY, 5);
        let clients = Clients::connect(3, server.addr);
        drop(server.accept(1));
        agent.look();
        server.socket().shutdown(Shutdown::Read).expect("shutdown");
        agent.look();
        server.listen_again(5);
        let addr = server.socket().local_addr().expect("bound").as_socket().expect("IP");
        assert_ne!(server.addr, addr);
        let more = Clients::connect(2, addr);
        let before =
            Numbers { established: 3, accepted: 1, listener_closed: 2, ..Numbers::default() };
        let after = Numbers { established: 2, length: 2, ..Numbers::default() };
        agent.check(addr, after);
        assert_eq!(Numbers::of(find(&agent.look(), server.addr)), before);
        drop((clients, more));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn what_the_agent_finds_in_a_queue_counts_as_established() {
    in_own_netns(|| {
        let server = NeverAccepts::listen(ANY, 16);
        let before = Clients::connect(3, server.addr);
        let truth = Truth::start();
        wait_for("all to be queued", || truth.now().at(server.addr).length == 3);
        let mut agent = Agent::start();
        let found = Numbers { established: 3, length: 3, ..Numbers::default() };
        assert_eq!(Numbers::of(find(&agent.look(), server.addr)), found);
        let after = Clients::connect(4, server.addr);
        let taken = server.accept(5);
        let sum = Numbers { established: 7, accepted: 5, length: 2, ..Numbers::default() };
        agent.until("all others to be queued", |snapshot| {
            Numbers::of(find(snapshot, server.addr)) == sum
        });
        drop((before, after, taken, server));
    });
}
