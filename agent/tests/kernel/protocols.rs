//! Listeners of TCP Fast Open and of Multipath TCP.

use std::net::{Ipv4Addr, SocketAddrV4};

use backlogd::model::snapshot::Snapshot;

use crate::{
    agent::{Numbers, find},
    clients::Clients,
    namespace::{in_own_netns, packets_by_interrupt, run, set_sysctl, wait_for},
    offenders::NeverAccepts,
    segment::{ELSEWHERE, lone_syn},
    truth::Seen,
    watched::{Reasons, Servers, Watched},
};

/// Each listener shows these numbers, with the drops that `ss` shows.
#[track_caller]
fn check_all(watched: &mut Watched, servers: &Servers, expected: Numbers) -> (Snapshot, Seen) {
    let (snapshot, seen) = watched.settled();
    for addr in servers.addrs() {
        let drops = seen.at(addr).drops;
        assert_eq!(Numbers::of(find(&snapshot, addr)), Numbers { drops, ..expected }, "{addr}");
    }
    (snapshot, seen)
}

/// Clients and servers that ask for no cookie; every listener takes part.
const FAST_OPEN: &str = "1543";

/// Ten clients of each listener send a byte with their SYN, and five more when the queue is full.
fn check_fast_open() {
    set_sysctl("ipv4/tcp_fastopen", FAST_OPEN);
    let mut watched = Watched::start();
    let servers = Servers::made(|addr| NeverAccepts::listen(addr, 9));
    let mut clients = Vec::new();
    for (_, target) in &servers.0 {
        for _ in 0..10 {
            clients.push(Clients::fast_open(*target));
            // while it is not over, a handshake counts for a limit of its own
            let n = u64::try_from(clients.len()).expect("few");
            wait_for("the handshake", || watched.count("TCPFastOpenPassive") == n);
        }
    }
    // queued with the SYN, established with the last ACK
    watched.agent().until("all to be established", |snapshot| {
        let is_over = |addr| find(snapshot, addr).counters.established == Ok(10);
        servers.addrs().all(is_over)
    });
    let queued = Numbers { established: 10, length: 10, ..Numbers::default() };
    check_all(&mut watched, &servers, queued);
    for (_, target) in &servers.0 {
        clients.extend((0..5).map(|_| Clients::fast_open(*target)));
    }
    let refused = 2 * 5 * servers.len();
    watched.until("SYNs to be refused", |agent| refused <= agent.count("ListenDrops"));
    let (snapshot, seen) = check_all(&mut watched, &servers, queued);
    let full_syn = seen.count("ListenDrops");
    watched.check(&snapshot, Reasons { full_syn, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    check_accepted(&mut watched, &servers, clients, 10, 10);
}

/// Accepts the first `n` of each; where a hook sees accept, `waited` of them are in the histogram.
fn check_accepted(
    watched: &mut Watched,
    servers: &Servers,
    clients: Vec<Clients>,
    n: u64,
    waited: u64,
) {
    // those that were refused do not come again
    drop(clients);
    let count = usize::try_from(n).expect("few");
    let accepted: Vec<_> = servers.0.iter().map(|(server, _)| server.accept(count)).collect();
    let expected = Numbers { established: n, accepted: n, ..Numbers::default() };
    let (snapshot, _) = check_all(watched, servers, expected);
    if watched.agent().serves("accept") {
        for addr in servers.addrs() {
            let waits = find(&snapshot, addr).accept_wait.as_ref().map(|waits| waits.count());
            assert_eq!(waits, Ok(waited), "{addr}");
        }
    }
    drop(accepted);
}

#[test]
#[ignore = "kernel: needs root"]
fn fast_open_counts_as_any_other_handshake() {
    in_own_netns(check_fast_open);
    in_own_netns(|| {
        packets_by_interrupt();
        check_fast_open();
    });
}

/// Two children are reset while they wait for the last ACK, of two more it never comes.
#[test]
#[ignore = "kernel: needs root"]
fn fast_open_counts_children_that_end_before_the_last_ack() {
    in_own_netns(|| {
        set_sysctl("ipv4/tcp_fastopen", FAST_OPEN);
        run("ip", &["route", "add", &ELSEWHERE.to_string(), "dev", "lo"]);
        let mut watched = Watched::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 9);
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, server.addr.port());
        for (from, port) in [Ipv4Addr::LOCALHOST, ELSEWHERE].into_iter().zip([1000, 2000]) {
            lone_syn(SocketAddrV4::new(from, port), to);
            lone_syn(SocketAddrV4::new(from, port + 1), to);
        }
        wait_for("children", || watched.count("TCPFastOpenPassive") == 4);
        drop(server.accept(4));
        let expected = Numbers { established: 4, accepted: 4, reset: 2, ..Numbers::default() };
        watched.agent().check(server.addr, expected);
        watched.agent().check_all_closed(server.addr, 4);
    });
}

/// Three clients by TCP and three by Multipath TCP fill the queue of each listener, four more are
/// refused.
fn check_multipath() {
    let mut watched = Watched::start();
    let servers = Servers::made(|addr| NeverAccepts::multipath(addr, 5));
    let mut clients = servers.connect(3);
    clients.extend(servers.0.iter().map(|(_, target)| Clients::multipath(3, *target)));
    watched.until("all to be queued", |agent| {
        servers.addrs().all(|addr| agent.truth().at(addr).length == 6)
    });
    let refused = servers.start(4);
    let drops = 2 * 4 * servers.len();
    watched.until("SYNs to be refused", |agent| drops <= agent.count("ListenDrops"));
    let queued = Numbers { established: 6, length: 6, ..Numbers::default() };
    let (snapshot, seen) = check_all(&mut watched, &servers, queued);
    let full_syn = seen.count("ListenDrops");
    watched.check(&snapshot, Reasons { full_syn, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    drop(refused);
    // accept(2) returns a socket of its own for the others, which no hook ties to the one that waited
    check_accepted(&mut watched, &servers, clients, 6, 3);
}

#[test]
#[ignore = "kernel: needs root"]
fn a_multipath_listener_counts_clients_of_both_protocols() {
    in_own_netns(check_multipath);
    in_own_netns(|| {
        packets_by_interrupt();
        check_multipath();
    });
}
