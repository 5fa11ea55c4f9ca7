//! Children that the kernel makes and undoes are no connections; those that it forgets since their
//! listener has just closed are.

use std::{
    hint,
    net::{Shutdown, SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    thread,
};

use socket2::Socket;

use crate::{
    agent::{Agent, Numbers, find, own_lost, undone_in},
    namespace::{in_own_netns, own_netns, run, set_sysctl},
    offenders::NeverAccepts,
    segment::{ELSEWHERE, half_a_handshake, listening_in, raw},
    tier::scaled,
};

/// Enough to be no accident; two CPUs get there within some hundred handshakes.
const WANTED: u64 = 20;

/// How many are tried; fewer where the processor is emulated, and its two CPUs may never meet.
const HANDSHAKES: u64 = 4_000;

/// Does both at the same instant, on two CPUs if there are.
fn at_once(one: impl FnOnce() + Send, other: impl FnOnce()) {
    let ready = AtomicU32::new(0);
    let meet = || {
        ready.fetch_add(1, SeqCst);
        while ready.load(SeqCst) < 2 {
            hint::spin_loop();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            meet();
            one();
        });
        meet();
        other();
    });
}

/// A way to [`ELSEWHERE`] on which nobody answers.
fn lead_elsewhere() {
    run("ip", &["route", "replace", &ELSEWHERE.to_string(), "dev", "lo"]);
}

fn v4(server: &NeverAccepts) -> SocketAddrV4 {
    match server.addr {
        SocketAddr::V4(addr) => addr,
        SocketAddr::V6(addr) => panic!("{addr}"),
    }
}

/// Source ports for `n` handshakes.
fn ports(n: u64) -> impl Iterator<Item = u16> {
    (1_024..).take(usize::try_from(scaled(n)).expect("few"))
}

/// Handshakes with last ACKs that come twice at a time. Loopback delivers a packet on the CPU that
/// sends it.
#[track_caller]
fn check_twice(syncookies: &str) {
    set_sysctl("ipv4/tcp_syncookies", syncookies);
    lead_elsewhere();
    let mut agent = Agent::start();
    let server = NeverAccepts::listen("127.0.0.1:0", 4_096);
    let (answers, sockets) = (listening_in(), [raw(), raw()]);
    let mut handshakes = 0;
    for port in ports(HANDSHAKES) {
        let ack = half_a_handshake(port, v4(&server), &answers);
        at_once(|| ack.send(&sockets[0]), || ack.send(&sockets[1]));
        handshakes += 1;
        if handshakes + WANTED <= agent.count("PassiveOpens") {
            break;
        }
    }
    let (snapshot, seen) = agent.settled();
    let undone = seen.count("PassiveOpens") - handshakes;
    assert!(scaled(HANDSHAKES) < HANDSHAKES || WANTED <= undone, "{undone} of {handshakes}");
    assert_eq!(seen.at(server.addr).length, handshakes);
    let queued = Numbers { established: handshakes, length: handshakes, ..Numbers::default() };
    let listener = find(&snapshot, server.addr);
    assert_eq!(Numbers::of(listener), queued, "{undone} undone");
    assert_eq!((listener.counters.closed, listener.open), (Ok(0), Ok(0)));
    assert_eq!((undone_in(&snapshot, own_netns()), own_lost(&snapshot)), (undone, Ok(0)));
    let addr = server.addr;
    drop(server);
    let listener_closed = handshakes;
    agent.check(addr, Numbers { listener_closed, length: 0, ..queued });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_last_ack_that_two_cpus_work_on_makes_one_connection() {
    in_own_netns(|| check_twice("1"));
    // every SYN is answered with a cookie
    in_own_netns(|| check_twice("2"));
}

/// When the last ACK comes, no route leads back (`inet_csk_route_child_sock`, in
/// `tcp_v4_syn_recv_sock`, net/ipv4/tcp_ipv4.c).
#[test]
#[ignore = "kernel: needs root"]
fn a_child_that_has_no_way_to_its_peer_is_a_drop_and_no_connection() {
    in_own_netns(|| {
        lead_elsewhere();
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 8);
        let (answers, socket) = (listening_in(), raw());
        let acks = [1_024, 1_025, 1_026].map(|port| half_a_handshake(port, v4(&server), &answers));
        run("ip", &["route", "replace", "unreachable", &ELSEWHERE.to_string()]);
        acks.iter().for_each(|ack| ack.send(&socket));
        let (snapshot, seen) = agent.settled();
        assert_eq!((seen.count("PassiveOpens"), seen.count("ListenDrops")), (3, 3));
        let expected = Numbers { drops: 3, ..Numbers::default() };
        assert_eq!(Numbers::of(find(&snapshot, server.addr)), expected);
        assert_eq!((undone_in(&snapshot, own_netns()), own_lost(&snapshot)), (3, Ok(0)));
    });
}

/// Last ACKs that come while their listener leaves LISTEN.
#[test]
#[ignore = "kernel: needs root"]
fn what_a_closing_listener_forgets_was_established() {
    in_own_netns(|| {
        lead_elsewhere();
        let mut agent = Agent::start();
        let addr = NeverAccepts::listen("127.0.0.1:0", 8).addr;
        let (answers, socket) = (listening_in(), raw());
        for port in ports(2_000) {
            let server = NeverAccepts::again(addr, 8);
            let ack = half_a_handshake(port, v4(&server), &answers);
            let listener: &Socket = server.socket();
            let close = || listener.shutdown(Shutdown::Read).expect("shutdown");
            at_once(|| ack.send(&socket), close);
        }
        let (snapshot, seen) = agent.settled();
        let established = find(&snapshot, addr).counters.established;
        assert_eq!(established, Ok(seen.count("PassiveOpens")));
        assert_eq!((undone_in(&snapshot, own_netns()), own_lost(&snapshot)), (0, Ok(0)));
    });
}
