//! Why connections are dropped: each reason provoked, over IPv4, IPv6 and an IPv4 client of a
//! dual-stack listener at a time, with packets that interrupt and packets that do not.

use std::{net::SocketAddr, thread, time::Duration};

use backlogd::{input::Tier, time::Nanos};

use crate::{
    agent::{Numbers, find},
    clients::Clients,
    namespace::{in_own_netns, packets_by_interrupt, set_sysctl, wait_for},
    offenders::{NeverAccepts, defer_accept},
    tier::scaled,
    truth::Seen,
    watched::{Reasons, Servers, Watched, count},
};

fn send(clients: &[Clients]) {
    clients.iter().for_each(Clients::send);
}

/// Thirty clients of each listener with backlog 4 that never accepts.
fn check_full_at_the_syn() {
    let mut watched = Watched::start();
    let servers = Servers::listen(4, |_| {});
    // all at once, a slow kernel could answer more SYNs than the queue holds
    let held = servers.connect(5);
    watched.until("the queues to be full", |agent| {
        servers.addrs().all(|addr| agent.truth().at(addr).length == 5)
    });
    let full = watched.look().at;
    let refused = servers.start(25);
    // each that was refused tries again after a second, and later
    let drops = 3 * 25 * servers.len();
    watched.until("SYNs to be refused", |agent| drops <= agent.count("ListenDrops"));
    let (snapshot, seen) = watched.settled();
    let drops = seen.count("ListenDrops");
    assert_eq!(seen.count("ListenOverflows"), drops);
    watched.check(&snapshot, Reasons { full_syn: drops, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    let established = 5 * servers.len();
    let sent = seen.count("ActiveOpens") + seen.count("TCPSynRetrans");
    assert_eq!(established + drops, sent, "what became of the SYNs");
    for addr in servers.addrs() {
        let (listener, ss) = (find(&snapshot, addr), seen.at(addr));
        let expected = Numbers { established: 5, length: 5, drops: ss.drops, ..Numbers::default() };
        assert_eq!(Numbers::of(listener), expected, "{addr}");
        assert_eq!((listener.limit, listener.length_max), (4, Ok(5)), "{addr}");
        if watched.agent().serves("accept") {
            let waits = listener.accept_wait.as_ref().map(|waits| waits.count());
            assert_eq!(waits, Ok(0), "{addr}");
        }
        let (wall, shown) = (snapshot.at - full, listener.counters.full);
        let [wall, shown] = [wall, shown].map(|Nanos(n)| Duration::from_nanos(n));
        assert!(wall.abs_diff(shown) <= Duration::from_secs(1), "{shown:?} of {wall:?} full");
    }
    drop((held, refused));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_syn_at_a_full_accept_queue_is_a_drop_of_that_reason() {
    in_own_netns(check_full_at_the_syn);
    in_own_netns(|| {
        packets_by_interrupt();
        check_full_at_the_syn();
    });
}

/// Twenty clients of each listener are half through the handshake when its limit falls to 4.
fn check_full_at_the_last_ack(abort_on_overflow: bool) {
    set_sysctl("ipv4/tcp_abort_on_overflow", if abort_on_overflow { "1" } else { "0" });
    let mut watched = Watched::start();
    let servers = Servers::listen(64, defer_accept);
    let clients = servers.connect(20);
    let (snapshot, seen) = watched.settled();
    assert_eq!(seen.count("ListenDrops"), 0);
    watched.check(&snapshot, Reasons::default());
    let mut deferred = 0;
    for addr in servers.addrs() {
        let listener = find(&snapshot, addr);
        let socket_drops = listener.counters.socket_drops.expect("every kernel gives it");
        // more where an answer takes so long that the SYN-ACK is repeated
        assert!(listener.limit == 64 && 20 <= socket_drops, "{addr}: {socket_drops}");
        deferred += socket_drops;
    }
    assert_eq!(deferred, seen.count("TCPDeferAcceptDrop"));
    servers.listen_again(4);
    send(&clients);
    // 5 each; one more where two CPUs work on ACKs of the same listener
    let queued = |seen: &Seen| servers.addrs().map(|addr| seen.at(addr).length).sum::<u64>();
    watched.until("ACKs to be refused", |agent| {
        let seen = agent.truth();
        20 * servers.len() <= queued(&seen) + seen.count("ListenDrops")
    });
    let (snapshot, seen) = watched.settled();
    let refused = 20 * servers.len() - queued(&seen);
    assert!((14 * servers.len()..=15 * servers.len()).contains(&refused), "{refused} refused");
    let drops = seen.count("ListenDrops");
    assert_eq!(seen.count("ListenOverflows"), drops);
    watched.check(&snapshot, Reasons { full_ack: drops, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    if abort_on_overflow {
        // nobody tries again
        assert_eq!((drops, seen.count("EmbryonicRsts")), (refused, refused));
    }
    let mut socket_drops = 0;
    for addr in servers.addrs() {
        let listener = find(&snapshot, addr);
        assert_eq!((listener.limit, listener.length), (4, seen.at(addr).length), "{addr}");
        let counters = listener.counters;
        let expected = (Ok(listener.length), Ok(0));
        assert_eq!((counters.established, counters.accepted), expected, "{addr}");
        let of_socket = counters.socket_drops.expect("every kernel gives it");
        socket_drops += of_socket;
        // without that hook only the sum over listeners is exact
        if watched.agent().serves("ack_drop") {
            let twice = counters.drops.map(|drops| 2 * drops);
            let deferred = twice.map(|twice| of_socket.checked_sub(twice));
            assert!(matches!(deferred, Ok(Some(20..=40))), "{addr}: {counters:?}");
        }
    }
    // a last ACK that is refused counts twice there
    assert_eq!(socket_drops, 2 * drops + seen.count("TCPDeferAcceptDrop"));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_last_ack_at_a_full_accept_queue_is_a_drop_of_that_reason() {
    for abort_on_overflow in [false, true] {
        in_own_netns(|| check_full_at_the_last_ack(abort_on_overflow));
        in_own_netns(|| {
            packets_by_interrupt();
            check_full_at_the_last_ack(abort_on_overflow);
        });
    }
}

/// Request socks fill the SYN queues; what comes then finds them full, and no cookies.
fn check_full_syn_queue() {
    set_sysctl("ipv4/tcp_syncookies", "0");
    let mut watched = Watched::start();
    let servers = Servers::listen(4, defer_accept);
    let held = servers.connect(5);
    let refused = servers.start(6);
    let drops = 2 * 6 * servers.len();
    watched.until("SYNs to be refused", |agent| drops <= agent.count("ListenDrops"));
    let (snapshot, seen) = watched.settled();
    let drops = seen.count("ListenDrops");
    assert_eq!((seen.count("TCPReqQFullDrop"), seen.count("ListenOverflows")), (drops, 0));
    watched.check(&snapshot, Reasons { syn_queue_full: drops, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    // without that hook only the sum over listeners is exact: `sk_drops` counts deferred ACKs, too
    if watched.agent().serves("syn_drop") {
        for addr in servers.addrs() {
            assert_eq!(find(&snapshot, addr).counters.drops, Ok(seen.at(addr).drops - 5), "{addr}");
        }
    }
    drop((held, refused));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_syn_at_a_full_syn_queue_is_a_drop_of_that_reason_where_no_cookies_are_sent() {
    in_own_netns(check_full_syn_queue);
    in_own_netns(|| {
        packets_by_interrupt();
        check_full_syn_queue();
    });
}

/// Without cookies the kernel keeps the last quarter of `tcp_max_syn_backlog` for peers that it
/// knows (`tcp_conn_request`, net/ipv4/tcp_input.c).
#[test]
#[ignore = "kernel: needs root"]
fn a_syn_that_is_refused_for_another_reason_is_a_drop_of_none_of_these() {
    in_own_netns(|| {
        set_sysctl("ipv4/tcp_syncookies", "0");
        set_sysctl("ipv4/tcp_max_syn_backlog", "8");
        let mut watched = Watched::start();
        let servers = Servers::listen(64, defer_accept);
        let clients = servers.start(12);
        let drops = 2 * 5 * servers.len();
        watched.until("SYNs to be refused", |agent| drops <= agent.count("ListenDrops"));
        let (snapshot, seen) = watched.settled();
        let drops = seen.count("ListenDrops");
        assert_eq!((seen.count("TCPReqQFullDrop"), seen.count("ListenOverflows")), (0, 0));
        watched.check(&snapshot, Reasons { other: drops, ..Reasons::default() });
        watched.check_syns(&snapshot, &seen);
        drop(clients);
    });
}

/// Request socks fill the SYN queues; what comes then gets a cookie and a connection.
fn check_cookies() {
    let mut watched = Watched::start();
    let servers = Servers::listen(4, defer_accept);
    let held = servers.connect(5);
    let clients = servers.connect(4);
    let sent = 4 * servers.len();
    watched.until("cookies to come back", |agent| sent <= agent.count("SyncookiesRecv"));
    let (snapshot, seen) = watched.settled();
    assert_eq!((seen.count("ListenDrops"), seen.count("TCPReqQFullDrop")), (0, 0));
    assert_eq!(seen.count("SyncookiesSent"), seen.count("TCPReqQFullDoCookies"));
    assert!(sent <= seen.count("SyncookiesSent"));
    watched.check(&snapshot, Reasons::default());
    watched.check_syns(&snapshot, &seen);
    for addr in servers.addrs() {
        let expected = Numbers { established: 4, length: 4, ..Numbers::default() };
        assert_eq!(Numbers::of(find(&snapshot, addr)), expected, "{addr}");
    }
    drop((held, clients));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_syn_that_is_answered_with_a_cookie_is_no_drop() {
    in_own_netns(check_cookies);
    in_own_netns(|| {
        packets_by_interrupt();
        check_cookies();
    });
}

/// Four clients of each listener have a cookie and have not answered yet when the queue is full.
#[test]
#[ignore = "kernel: needs root"]
fn a_cookie_that_comes_back_to_a_full_accept_queue_is_a_refused_last_ack() {
    in_own_netns(|| {
        set_sysctl("ipv4/tcp_syncookies", "2");
        let mut watched = Watched::start();
        let servers = Servers::listen(64, |_| {});
        let held = servers.connect(1);
        watched.until("the first to be queued", |agent| {
            servers.addrs().all(|addr| agent.truth().at(addr).length == 1)
        });
        // clients that wait for data of their own to send with the last ACK: at most 200 ms
        // (`tcp_rcv_synsent_state_process`, net/ipv4/tcp_input.c)
        let late = |(server, target): &(NeverAccepts, SocketAddr)| {
            let clients = Clients::prepared(4, *target, defer_accept);
            wait_for("cookies", || clients.connected() == 4);
            server.listen_again(0);
            clients.send();
            clients
        };
        let clients: Vec<Clients> = servers.0.iter().map(late).collect();
        watched
            .until("last ACKs to be refused", |agent| servers.len() <= agent.count("ListenDrops"));
        let (snapshot, seen) = watched.settled();
        let drops = seen.count("ListenDrops");
        assert_eq!(seen.count("ListenOverflows"), drops);
        let hook = snapshot.hooks.iter().find(|hook| hook.event == "ack_drop");
        let expected = match hook.expect("in the table of hooks").tier {
            // its segment is freed for no reason of its own
            Tier::Tracepoint => Reasons { other: drops, ..Reasons::default() },
            _ => Reasons { full_ack: drops, ..Reasons::default() },
        };
        watched.check(&snapshot, expected);
        watched.check_syns(&snapshot, &seen);
        drop((held, clients));
    });
}

/// Listeners that never accept come and go, while clients send them SYNs and last ACKs.
fn check_closed_under_load() {
    let mut watched = Watched::start();
    let rounds = scaled(40);
    let ports: Vec<SocketAddr> = Servers::listen(0, |_| {}).0.into_iter().map(|it| it.1).collect();
    let listen = |target: &SocketAddr| {
        let at = if target.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        NeverAccepts::prepared(&format!("{at}:{}", target.port()), 64, defer_accept)
    };
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            for _ in 0..rounds {
                let servers: Vec<_> = ports.iter().map(listen).collect();
                let connect = |server: &NeverAccepts| Clients::start(20, server.addr);
                let waiting: Vec<_> = servers.iter().map(connect).collect();
                wait_for("the handshakes", || waiting.iter().all(|it| it.connected() == 20));
                servers.iter().for_each(|server| server.listen_again(2));
                send(&waiting);
                let refused: Vec<_> = servers.iter().map(connect).collect();
                drop(servers);
                drop((waiting, refused));
            }
        });
        while !load.is_finished() {
            watched.look();
        }
    });
    let snapshot = watched.look();
    let (drops, overflows) = (count(&snapshot, "ListenDrops"), count(&snapshot, "ListenOverflows"));
    // 18 of 20 for each of three, but for those that come when it has closed
    assert!(rounds * 3 * 10 <= overflows, "{overflows} overflows in {rounds} rounds");
    // a last ACK whose listener closes meanwhile finds no port to inherit, and is dropped though
    // the queue had room (`__inet_inherit_port`, net/ipv4/inet_hashtables.c)
    assert!(overflows <= drops, "{overflows} overflows, {drops} drops");
}

#[test]
#[ignore = "kernel: needs root"]
fn no_drop_is_lost_with_a_listener_that_closes_under_load() {
    in_own_netns(check_closed_under_load);
    in_own_netns(|| {
        packets_by_interrupt();
        check_closed_under_load();
    });
}
