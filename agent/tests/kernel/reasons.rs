//! Why connections are dropped: each reason provoked, over IPv4, IPv6 and an IPv4 client of a
//! dual-stack listener at a time. At every look the drops add up to the kernel's ListenDrops.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use backlogd::{
    input::{Absent, Known, Tier},
    model::snapshot::{DropsBy, Listener, Snapshot},
};

use crate::{
    agent::{Agent, Numbers, find, own},
    clients::Clients,
    namespace::{DEADLINE, in_own_netns, own_netns, packets_by_interrupt, set_sysctl, wait_for},
    offenders::{NeverAccepts, defer_accept},
    tier::scaled,
    truth::Seen,
};

/// An agent whose every look is held against the kernel's count of the same instant.
pub(crate) struct Watched(Agent);

/// Listen drops by what the kernel, not the agent, says of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reasons {
    pub(crate) full_syn: u64,
    pub(crate) full_ack: u64,
    pub(crate) syn_queue_full: u64,
    pub(crate) other: u64,
}

/// One listener for each way to reach one.
pub(crate) struct Servers(pub(crate) Vec<(NeverAccepts, SocketAddr)>);

impl Watched {
    pub(crate) fn start() -> Self {
        Self::of(Agent::start())
    }

    pub(crate) fn of(agent: Agent) -> Self {
        Self(agent)
    }

    pub(crate) fn agent(&mut self) -> &mut Agent {
        &mut self.0
    }

    /// How often the kernel counted `field`.
    pub(crate) fn count(&self, field: &str) -> u64 {
        self.0.truth().count(field)
    }

    /// A look; the drops over listeners and reasons are ListenDrops of the same sample. A
    /// namespace of the test's own begins at 0.
    #[track_caller]
    pub(crate) fn look(&mut self) -> Snapshot {
        let snapshot = self.0.look();
        agree(&snapshot);
        snapshot
    }

    /// Looks until `happened`.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut happened: impl FnMut(&Agent) -> bool) {
        let start = Instant::now();
        while !happened(&self.0) {
            self.look();
            assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        }
    }

    /// A look while nothing moves.
    #[track_caller]
    pub(crate) fn settled(&mut self) -> (Snapshot, Seen) {
        let (snapshot, seen) = self.0.settled();
        agree(&snapshot);
        (snapshot, seen)
    }

    /// What the agent tells of the reasons, as far as hooks are served, is what the kernel says.
    #[track_caller]
    pub(crate) fn check(&self, snapshot: &Snapshot, expected: Reasons) {
        let by: Vec<DropsBy> = own(snapshot).map(|listener| listener.counters.drops_by).collect();
        let sum = |reason: fn(&DropsBy) -> Known<u64>| by.iter().map(reason).sum::<Known<u64>>();
        let shown = DropsBy {
            accept_queue_full_syn: sum(|it| it.accept_queue_full_syn),
            accept_queue_full_ack: sum(|it| it.accept_queue_full_ack),
            syn_queue_full: sum(|it| it.syn_queue_full),
            other: sum(|it| it.other),
            unspecified: sum(|it| it.unspecified),
        };
        assert_eq!(shown, expected.shown(self.0.serves("syn_drop"), self.0.serves("ack_drop")));
    }

    /// The SYNs and cookies of all listeners together are the kernel's.
    #[track_caller]
    pub(crate) fn check_syns(&self, snapshot: &Snapshot, seen: &Seen) {
        let sum = |count: fn(&Listener) -> Known<u64>| own(snapshot).map(count).sum();
        let expected = |event, n| if self.0.serves(event) { Ok(n) } else { NOT_SERVED };
        let syns: Known<u64> = sum(|listener| listener.counters.syns);
        let sent = seen.count("ActiveOpens") + seen.count("TCPSynRetrans");
        assert_eq!(syns, expected("syn", sent), "SYNs");
        let cookies: Known<u64> = sum(|listener| listener.counters.syncookies);
        assert_eq!(cookies, expected("syn_cookie", seen.count("SyncookiesSent")), "cookies");
    }
}

const NOT_SERVED: Known<u64> = Err(Absent::NotOnThisKernel);

impl Reasons {
    fn shown(self, syn_drop: bool, ack_drop: bool) -> DropsBy {
        let Self { full_syn, full_ack, syn_queue_full, other } = self;
        let mut untold = other;
        let mut known = |is_served, n| {
            if is_served {
                return Ok(n);
            }
            untold += n;
            NOT_SERVED
        };
        let accept_queue_full_syn = known(syn_drop, full_syn);
        let accept_queue_full_ack = known(ack_drop, full_ack);
        let syn_queue_full = known(syn_drop, syn_queue_full);
        let (other, unspecified) =
            if syn_drop && ack_drop { (Ok(untold), NOT_SERVED) } else { (NOT_SERVED, Ok(untold)) };
        DropsBy { accept_queue_full_syn, accept_queue_full_ack, syn_queue_full, other, unspecified }
    }
}

#[track_caller]
fn agree(snapshot: &Snapshot) {
    let counted = |drops: Known<u64>| drops.expect("counted for every listener");
    let mut sum = 0;
    for Listener { key, counters, .. } in own(snapshot) {
        let by = counters.drops_by;
        let told = [by.accept_queue_full_syn, by.accept_queue_full_ack, by.syn_queue_full];
        let rest = [by.other, by.unspecified];
        let told: u64 = told.into_iter().chain(rest).map(Known::unwrap_or_default).sum();
        assert_eq!(told, counted(counters.drops), "reasons of {key:?}: {by:?}");
        sum += told;
    }
    let by: Vec<_> = own(snapshot).map(|it| (it.key.port, it.counters.drops_by)).collect();
    assert_eq!(sum, count(snapshot, "ListenDrops"), "sum over listeners and reasons: {by:?}");
}

/// The kernel's count, as the sample has it.
fn count(snapshot: &Snapshot, field: &str) -> u64 {
    let own = snapshot.namespaces.iter().find(|namespace| namespace.netns == own_netns());
    own.expect("our namespace").netstat.as_ref().expect("readable")[field]
}

impl Servers {
    fn listen(backlog: i32, prepare: fn(&socket2::Socket)) -> Self {
        Self::made(|addr| NeverAccepts::prepared(addr, backlog, prepare))
    }

    /// Those that `listen` makes, on an address each.
    pub(crate) fn made(listen: impl Fn(&str) -> NeverAccepts) -> Self {
        let ways = [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1")];
        let listen = |(at, from)| {
            let server = listen(&format!("{at}:0"));
            let target = format!("{from}:{}", server.addr.port());
            (server, target.parse().expect("an address"))
        };
        Self(ways.map(listen).into())
    }

    /// `n` clients of each.
    pub(crate) fn start(&self, n: usize) -> Vec<Clients> {
        self.0.iter().map(|(_, target)| Clients::start(n, *target)).collect()
    }

    /// `n` clients of each, all connected as far as they know.
    #[track_caller]
    pub(crate) fn connect(&self, n: usize) -> Vec<Clients> {
        self.0.iter().map(|(_, target)| Clients::connect(n, *target)).collect()
    }

    fn listen_again(&self, backlog: i32) {
        self.0.iter().for_each(|(server, _)| server.listen_again(backlog));
    }

    pub(crate) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(server, _)| server.addr)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len().try_into().expect("few")
    }
}

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
    watched.look();
    let full = Instant::now();
    let refused = servers.start(25);
    // each that was refused tries again after a second, and later
    let drops = 3 * 25 * servers.len();
    watched.until("SYNs to be refused", |agent| drops <= agent.truth().count("ListenDrops"));
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
        let (wall, shown) = (full.elapsed(), Duration::from_nanos(listener.counters.full.0));
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
    for addr in servers.addrs() {
        let listener = find(&snapshot, addr);
        assert_eq!((listener.limit, listener.counters.socket_drops), (64, Ok(20)), "{addr}");
    }
    servers.listen_again(4);
    send(&clients);
    let refused = 15 * servers.len();
    watched.until("ACKs to be refused", |agent| refused <= agent.truth().count("ListenDrops"));
    let (snapshot, seen) = watched.settled();
    let drops = seen.count("ListenDrops");
    assert_eq!(seen.count("ListenOverflows"), drops);
    watched.check(&snapshot, Reasons { full_ack: drops, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    if abort_on_overflow {
        // nobody tries again
        assert_eq!((drops, seen.count("EmbryonicRsts")), (refused, refused));
    }
    for addr in servers.addrs() {
        let listener = find(&snapshot, addr);
        assert_eq!((listener.limit, listener.length), (4, 5), "{addr}");
        let counters = listener.counters;
        assert_eq!((counters.established, counters.accepted), (Ok(5), Ok(0)), "{addr}");
        // a last ACK that is refused counts twice there
        let twice = counters.drops.map(|drops| 20 + 2 * drops);
        let deferred = seen.count("TCPDeferAcceptDrop");
        assert!(20 * servers.len() <= deferred, "{deferred} deferred");
        assert_eq!(counters.socket_drops, twice, "{addr}");
    }
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
    watched.until("SYNs to be refused", |agent| drops <= agent.truth().count("ListenDrops"));
    let (snapshot, seen) = watched.settled();
    let drops = seen.count("ListenDrops");
    assert_eq!((seen.count("TCPReqQFullDrop"), seen.count("ListenOverflows")), (drops, 0));
    watched.check(&snapshot, Reasons { syn_queue_full: drops, ..Reasons::default() });
    watched.check_syns(&snapshot, &seen);
    for addr in servers.addrs() {
        assert_eq!(find(&snapshot, addr).counters.drops, Ok(seen.at(addr).drops - 5), "{addr}");
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
        watched.until("SYNs to be refused", |agent| drops <= agent.truth().count("ListenDrops"));
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
    watched.until("cookies to come back", |agent| sent <= agent.truth().count("SyncookiesRecv"));
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
        let late = |(_, target): &(_, SocketAddr)| Clients::prepared(4, *target, defer_accept);
        let clients: Vec<Clients> = servers.0.iter().map(late).collect();
        wait_for("cookies", || watched.count("SyncookiesSent") == 5 * servers.len());
        servers.listen_again(0);
        send(&clients);
        watched.until("last ACKs to be refused", |agent| {
            servers.len() <= agent.truth().count("ListenDrops")
        });
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
        drop(held);
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
    assert!(rounds * 3 * 17 <= drops, "{drops} drops in {rounds} rounds");
    assert_eq!(overflows, drops);
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
