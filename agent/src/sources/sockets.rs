//! The TCP sockets of a namespace that do not listen, counted by state, listener and destination.
//!
//! In: one sock_diag dump of the calling thread's network namespace, IPv4 and IPv6, all states but
//! LISTEN; and another of sockets that are bound and idle. Out: [`Table`]. They are asked for by the
//! older of the two requests (`TCPDIAG_GETSOCK`, `inet_diag_rcv_msg_compat`, net/ipv4/inet_diag.c):
//! that one leaves the family open, so that the kernel walks its table once, not once for each family.
//! Cost: 0.13 ms in an empty namespace, for 262,144 hash buckets. The walk passes the sockets of all
//! namespaces: 2 ms where others have 20,000, 6 ms with 100,000 (`sockstat.rs` tells for 18 µs whether
//! there is anything to find). Each row is 0.7 µs more, all but 30 ns of it in the kernel: 0.57 ms for
//! 1,000 rows, 14 ms for 20,000, 74 ms for 100,000. Where each row is a destination of its own, 0.9 µs;
//! 50,000 of these take 6 MB for that while (Linux 6.18 on two virtual cores). What is bound and idle:
//! 0.17 ms in an empty namespace, and 0.25 µs for each connection, none of which is a row.
//! Not here: when to read. What is left open by a listener that is gone looks like a connection that
//! began here, a destination for each peer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{ControlFlow, RangeInclusive},
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_sock_diag::constants::{
    AF_INET, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2,
    TCP_LAST_ACK, TCP_LISTEN, TCP_TIME_WAIT,
};
use rustix::net::netlink::SOCK_DIAG;

use crate::{
    input::{Connections, Destination, Table},
    sources::sock_diag::{Row, SockDiagError},
    sys::netlink::{Netlink, Step},
};

/// `TCP_ESTABLISHED` and on (include/net/tcp_states.h), with the names of `ss`; a SYN queue's
/// entries are shown as SYN_RECV.
const STATES: [&str; 11] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait_1",
    "fin_wait_2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];
/// All but LISTEN.
const UNLISTENING: u32 = (2 << STATES.len()) - 2 - (1 << TCP_LISTEN);
/// `TCPF_BOUND_INACTIVE` (include/net/tcp_states.h), a state that sockets are asked for by, and never
/// shown with.
const BOUND_INACTIVE: u32 = 1 << 13;
/// `TCPDIAG_GETSOCK` (include/uapi/linux/inet_diag.h)
const GETSOCK: u16 = 18;
/// `struct nlmsghdr` and `struct inet_diag_req`
const REQUEST_LEN: u8 = 16 + 60;
/// Rows between two looks at the clock: some 50 µs.
const CLOCK_EVERY: u64 = 64;
/// What a hash table of 65,536 places holds.
const MAX_DESTINATIONS: usize = 65_536 / 8 * 7;
/// `TCP_TIMEWAIT_LEN` (include/net/tcp.h), in milliseconds.
const TIME_WAIT_MS: u32 = 60_000;
/// `tcp_tw_reuse_delay` unless somebody changed it.
const REUSE_DELAY_MS: u32 = 1_000;

/// Reads the table of the calling thread's network namespace until `budget` of wall time is used up,
/// looked at between rows: the kernel's walk to the next one is never cut short. The rows of
/// `listeners` are theirs, all others are taken for connections that began here; of these, the
/// `destinations` with the most local ports are told apart.
///
/// # Errors
/// See [`SockDiagError`].
pub fn read(
    listeners: &BTreeSet<(IpAddr, u16)>,
    budget: Duration,
    destinations: usize,
) -> Result<Table, SockDiagError> {
    let start = Instant::now();
    let mut tally = Tally::new(listeners, MAX_DESTINATIONS);
    dump(UNLISTENING, |row| match row {
        None => {
            tally = Tally::new(listeners, MAX_DESTINATIONS);
            ControlFlow::Continue(())
        }
        Some(_) if tally.rows.is_multiple_of(CLOCK_EVERY) && budget <= start.elapsed() => {
            tally.is_cut = true;
            ControlFlow::Break(())
        }
        Some(row) => {
            tally.add(&row);
            ControlFlow::Continue(())
        }
    })?;
    let mut table = tally.finish(destinations);
    table.took = start.elapsed().into();
    Ok(table)
}

/// The ports of `range` that TCP sockets of the calling thread's network namespace are bound to which
/// neither listen nor are connected. Before Linux 6.8 none: that does not know [`BOUND_INACTIVE`],
/// which no socket is in.
///
/// The kernel walks its table of bound ports, and then all that [`read`] walks
/// (`inet_diag_dump_icsk`, net/ipv4/inet_diag.c). All connections of a listener are in one place of the
/// first; for 0.1 µs each there, none of them can come or go.
///
/// # Errors
/// See [`SockDiagError`].
pub fn bound(range: &RangeInclusive<u16>) -> Result<BTreeSet<u16>, SockDiagError> {
    let mut ports = BTreeSet::new();
    dump(BOUND_INACTIVE, |row| {
        match row {
            Some(row) => ports.extend(Some(row.local().1).filter(|port| range.contains(port))),
            None => ports.clear(),
        }
        ControlFlow::Continue(())
    })?;
    Ok(ports)
}

/// Shows `step` each socket in one of `states`, and `None` where the rows so far are to be forgotten.
fn dump(
    states: u32,
    mut step: impl FnMut(Option<Row<'_>>) -> ControlFlow<()>,
) -> Result<(), SockDiagError> {
    // Ours alone and not for long: an open netlink socket keeps its namespace alive.
    let mut netlink = Netlink::open(SOCK_DIAG).map_err(SockDiagError::Open)?;
    let mut outcome = Ok(());
    let dumped = netlink.dump_while(&mut request(states), |it| match it {
        Step::Begin => step(None),
        Step::Row { payload, .. } => match Row::parse(payload) {
            Ok(row) => step(Some(row)),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        },
    });
    dumped.map_err(|source| SockDiagError::dump("TCP sockets", "tcp_diag", source))?;
    outcome
}

/// What a read of a namespace without such sockets would give.
#[must_use]
pub fn nothing(listeners: &BTreeSet<(IpAddr, u16)>) -> Table {
    Tally::new(listeners, 0).finish(0)
}

/// For all TCP sockets in `states`, without attributes.
fn request(states: u32) -> [u8; REQUEST_LEN as usize] {
    let mut bytes = [0; REQUEST_LEN as usize];
    bytes[..4].copy_from_slice(&u32::from(REQUEST_LEN).to_ne_bytes());
    bytes[4..6].copy_from_slice(&GETSOCK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes[16] = AF_INET;
    bytes[68..72].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// Source, address and port of a destination.
type Towards = (IpAddr, IpAddr, u16);

/// Local ports in use towards one destination; there are 65,535.
#[derive(Clone, Copy, Default)]
struct Ports {
    open: u32,
    time_wait: u32,
    reusable: u32,
}

/// Rows, counted.
struct Tally {
    rows: u64,
    is_cut: bool,
    states: [u64; STATES.len()],
    listeners: BTreeMap<(IpAddr, u16), Connections>,
    /// Those of `listeners`, sorted: most rows of a client need no more than these.
    ports: Vec<u16>,
    time_wait_ephemeral: u64,
    destinations: HashMap<Towards, Ports>,
    room: usize,
    unplaced: u64,
}

impl Tally {
    fn new(listeners: &BTreeSet<(IpAddr, u16)>, room: usize) -> Self {
        let mut ports: Vec<u16> = listeners.iter().map(|&(_, port)| port).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            rows: 0,
            is_cut: false,
            states: [0; _],
            listeners: listeners.iter().map(|&key| (key, Connections::default())).collect(),
            ports,
            time_wait_ephemeral: 0,
            destinations: HashMap::new(),
            room,
            unplaced: 0,
        }
    }

    fn add(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let state = row.state();
        if let Some(n) = usize::from(state).checked_sub(1).and_then(|at| self.states.get_mut(at)) {
            *n += 1;
        }
        let (source, local_port) = row.local();
        if let Some(connections) = self.listener(source, local_port) {
            connections.add(row);
            return;
        }
        let (addr, port) = row.remote();
        let is_time_wait = state == TCP_TIME_WAIT;
        self.time_wait_ephemeral += u64::from(is_time_wait);
        let towards = (source.to_canonical(), addr.to_canonical(), port);
        let has_room = self.destinations.len() < self.room;
        let ports = if has_room {
            self.destinations.entry(towards).or_default()
        } else if let Some(ports) = self.destinations.get_mut(&towards) {
            ports
        } else {
            self.unplaced += 1;
            return;
        };
        // No two sockets have all of both addresses and both ports in common, so each row is a
        // local port.
        if is_time_wait {
            ports.time_wait += 1;
            ports.reusable += u32::from(is_reusable(row.expires()));
        } else {
            ports.open += 1;
        }
    }

    /// Whose rows have this local address and port.
    fn listener(&mut self, addr: IpAddr, port: u16) -> Option<&mut Connections> {
        self.ports.binary_search(&port).ok()?;
        let key = bindings(addr)
            .into_iter()
            .flatten()
            .map(|addr| (addr, port))
            .find(|key| self.listeners.contains_key(key))?;
        self.listeners.get_mut(&key)
    }

    fn finish(self, destinations: usize) -> Table {
        let states = STATES.into_iter().zip(self.states).filter(|&(name, _)| name != "listen");
        Table {
            rows: self.rows,
            is_partial: self.is_cut || 0 < self.unplaced,
            states: states.collect(),
            listeners: self.listeners,
            time_wait_ephemeral: self.time_wait_ephemeral,
            destinations: worst(&self.destinations, destinations),
            n_destinations: self.destinations.len() as u64,
            unplaced: self.unplaced,
            ..Table::default()
        }
    }
}

/// What a listener whose connections have the local address `addr` may be bound to, best first. An
/// IPv4 entry of a SYN queue may belong to an IPv6 listener (`tcp_v4_conn_request`,
/// net/ipv4/tcp_ipv4.c, gives it the family of its packet).
fn bindings(addr: IpAddr) -> [Option<IpAddr>; 5] {
    let any4 = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let any6 = Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let mapped = |addr: Ipv4Addr| Some(IpAddr::V6(addr.to_ipv6_mapped()));
    let any_mapped = mapped(Ipv4Addr::UNSPECIFIED);
    match addr {
        IpAddr::V4(ip) => [Some(addr), any4, mapped(ip), any_mapped, any6],
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            [Some(addr), any_mapped, any6, None, None]
        }
        IpAddr::V6(_) => [Some(addr), any6, None, None, None],
    }
}

/// Whether a TIME_WAIT socket whose timer has `expires` milliseconds left has been one for more than
/// a second. Its timer starts with [`TIME_WAIT_MS`], to the jiffy, when it becomes one (`tcp_time_wait`,
/// `tcp_timewait_state_process`, net/ipv4/tcp_minisocks.c); a repeated FIN of the peer starts it
/// again, which the kernel's own rule (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c: since 6.14
/// milliseconds since the beginning, before that a clock of whole seconds) does not mind.
fn is_reusable(expires: u32) -> bool {
    expires < TIME_WAIT_MS - REUSE_DELAY_MS
}

/// The `n` destinations with the most ports in use.
fn worst(all: &HashMap<Towards, Ports>, n: usize) -> Vec<Destination> {
    let order = |&(towards, ports): &(&Towards, &Ports)| {
        (std::cmp::Reverse(ports.open + ports.time_wait), *towards)
    };
    let mut all: Vec<(&Towards, &Ports)> = all.iter().collect();
    if n < all.len() {
        all.select_nth_unstable_by_key(n, order);
        all.truncate(n);
    }
    all.sort_unstable_by_key(order);
    let destination = |(&(source, addr, port), ports): (&Towards, &Ports)| Destination {
        source,
        addr,
        port,
        open: ports.open.into(),
        time_wait: ports.time_wait.into(),
        time_wait_reusable: ports.reusable.into(),
    };
    all.into_iter().map(destination).collect()
}

impl Connections {
    fn add(&mut self, row: &Row<'_>) {
        let has_descriptor = row.inode().0 != 0;
        if has_descriptor {
            let (unread, unsent) = (u64::from(row.rqueue()), u64::from(row.wqueue()));
            self.accepted += 1;
            self.close_wait += u64::from(row.state() == TCP_CLOSE_WAIT);
            self.unread_bytes += unread;
            self.unread_bytes_max = self.unread_bytes_max.max(unread);
            self.unsent_bytes += unsent;
            self.unsent_bytes_max = self.unsent_bytes_max.max(unsent);
            return;
        }
        match row.state() {
            TCP_TIME_WAIT => self.time_wait += 1,
            TCP_ESTABLISHED | TCP_CLOSE_WAIT => self.queued += 1,
            TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSING | TCP_LAST_ACK => self.fin_wait += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row as the kernel would write it: `LOCAL REMOTE state inode rqueue wqueue expires`.
    fn row(text: &str) -> Vec<u8> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut bytes = vec![0; 72];
        for (at, port_at, word) in [(8, 4, words[0]), (24, 6, words[1])] {
            let addr: std::net::SocketAddr = word.parse().unwrap();
            bytes[port_at..port_at + 2].copy_from_slice(&addr.port().to_be_bytes());
            match addr.ip() {
                IpAddr::V4(ip) => bytes[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => bytes[at..at + 16].copy_from_slice(&ip.octets()),
            }
            bytes[0] = if addr.is_ipv4() { 2 } else { 10 };
        }
        bytes[1] = words[2].parse().unwrap();
        for (at, word) in [68, 56, 60, 52].into_iter().zip(&words[3..]) {
            bytes[at..at + 4].copy_from_slice(&word.parse::<u32>().unwrap().to_ne_bytes());
        }
        bytes
    }

    fn tally(listeners: &[&str], room: usize, rows: &[&str]) -> Table {
        let key = |text: &&str| {
            let addr: std::net::SocketAddr = text.parse().unwrap();
            (addr.ip(), addr.port())
        };
        let mut tally = Tally::new(&listeners.iter().map(key).collect(), room);
        rows.iter().for_each(|text| tally.add(&Row::parse(&row(text)).unwrap()));
        tally.finish(10)
    }

    #[test]
    fn a_row_belongs_to_the_listener_that_is_bound_closest() {
        #[track_caller]
        fn check(listeners: &[&str], local: &str, expected: Option<&str>) {
            let table = tally(listeners, 9, &[&format!("{local} {local} 1 5")]);
            let of = table.listeners.iter().find(|(_, it)| it.accepted == 1).map(|(key, _)| *key);
            let expected = expected.map(|text| text.parse::<std::net::SocketAddr>().unwrap());
            assert_eq!(of, expected.map(|addr| (addr.ip(), addr.port())));
            assert_eq!(table.n_destinations, u64::from(expected.is_none()));
        }
        let all = ["10.0.0.1:80", "0.0.0.0:80", "[::]:80", "[2001:db8::1]:80"];
        check(&all, "10.0.0.1:80", Some("10.0.0.1:80"));
        check(&all, "10.0.0.2:80", Some("0.0.0.0:80"));
        check(&all, "[2001:db8::1]:80", Some("[2001:db8::1]:80"));
        check(&all, "[2001:db8::2]:80", Some("[::]:80"));
        check(&all, "[::ffff:10.0.0.1]:80", Some("[::]:80"));
        check(&["[::]:80"], "10.0.0.1:80", Some("[::]:80"));
        check(&["[::ffff:10.0.0.1]:80"], "[::ffff:10.0.0.1]:80", Some("[::ffff:10.0.0.1]:80"));
        check(&["[::ffff:10.0.0.1]:80"], "10.0.0.1:80", Some("[::ffff:10.0.0.1]:80"));
        check(&["[::ffff:0.0.0.0]:80"], "[::ffff:10.0.0.1]:80", Some("[::ffff:0.0.0.0]:80"));
        check(&["0.0.0.0:80"], "[2001:db8::1]:80", None);
        check(&["10.0.0.2:80"], "10.0.0.1:80", None);
        check(&["0.0.0.0:81"], "10.0.0.1:80", None);
        check(&[], "10.0.0.1:80", None);
    }

    #[test]
    fn connections_are_told_apart_by_state_and_descriptor() {
        let rows = [
            "10.0.0.1:80 10.0.0.2:1 1 7 30 1",
            "10.0.0.1:80 10.0.0.2:2 8 7 10 5",
            "10.0.0.1:80 10.0.0.2:3 4 7 0 1",
            "10.0.0.1:80 10.0.0.2:4 1 0 9 9",
            "10.0.0.1:80 10.0.0.2:5 8 0",
            "10.0.0.1:80 10.0.0.2:6 4 0",
            "10.0.0.1:80 10.0.0.2:7 5 0",
            "10.0.0.1:80 10.0.0.2:8 9 0",
            "10.0.0.1:80 10.0.0.2:9 11 0",
            "10.0.0.1:80 10.0.0.2:10 6 0",
            "10.0.0.1:80 10.0.0.2:11 3 0",
        ];
        let table = tally(&["10.0.0.1:80", "10.0.0.1:81"], 9, &rows);
        let expected = Connections {
            accepted: 3,
            close_wait: 1,
            fin_wait: 4,
            queued: 2,
            time_wait: 1,
            unread_bytes: 40,
            unread_bytes_max: 30,
            unsent_bytes: 7,
            unsent_bytes_max: 5,
        };
        let found: Vec<Connections> = table.listeners.values().copied().collect();
        assert_eq!(found, [expected, Connections::default()]);
        assert_eq!((table.rows, table.n_destinations, table.time_wait_ephemeral), (11, 0, 0));
        let one = ["closing", "fin_wait_2", "last_ack", "syn_recv", "time_wait"];
        let two = ["close_wait", "established", "fin_wait_1"];
        let none = ["close", "syn_sent"];
        for (names, n) in [(&one[..], 1), (&two, 2), (&none, 0)] {
            assert!(names.iter().all(|name| table.states[name] == n), "{:?}", table.states);
        }
        assert_eq!(table.states.len(), 10);
    }

    #[test]
    fn destinations_are_sorted_by_ports_in_use_and_cut() {
        let rows = [
            "10.0.0.1:1001 10.0.0.9:80 1 7",
            "10.0.0.1:1002 10.0.0.9:81 6 0 0 0 59001",
            "10.0.0.1:1003 10.0.0.9:81 6 0 0 0 59000",
            "[::ffff:10.0.0.1]:1004 [::ffff:10.0.0.9]:81 6 0 0 0 58999",
            "10.0.0.1:1005 10.0.0.9:81 5 0",
            "10.0.0.1:1006 10.0.0.9:82 2 7",
            "10.0.0.1:1007 10.0.0.9:80 1 7",
        ];
        let to = |port, open, time_wait, time_wait_reusable| {
            let (source, addr) = ("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap());
            Destination { source, addr, port, open, time_wait, time_wait_reusable }
        };
        let table = tally(&[], 9, &rows);
        assert_eq!(table.destinations, [to(81, 1, 3, 1), to(80, 2, 0, 0), to(82, 1, 0, 0)]);
        assert_eq!((table.n_destinations, table.time_wait_ephemeral), (3, 3));
        assert!(!table.is_partial);

        let table = tally(&[], 2, &rows);
        assert_eq!(table.destinations, [to(81, 1, 3, 1), to(80, 2, 0, 0)]);
        assert_eq!((table.n_destinations, table.unplaced, table.is_partial), (2, 1, true));
    }

    #[test]
    fn the_request_is_for_all_states_but_listen() {
        let request = request(UNLISTENING);
        assert_eq!(request[..8], [76, 0, 0, 0, 18, 0, 1, 3]);
        assert_eq!(request[68..72], 0xbfe_u32.to_ne_bytes());
    }

    #[test]
    fn a_budget_of_nothing_reads_nothing_and_says_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(addr).unwrap();
        let key = (addr.ip(), addr.port());
        let table = read(&[key].into(), Duration::ZERO, 10).unwrap();
        assert_eq!((table.rows, table.is_partial), (0, true));
        let table = read(&[key].into(), Duration::from_secs(60), 10).unwrap();
        assert!(2 <= table.rows && !table.is_partial, "{table:?}");
        assert_eq!(table.listeners[&key].queued, 1);
    }

    proptest! {
        #[test]
        fn random_rows_never_panic(rows in prop::collection::vec(prop::array::uniform32(any::<u8>()), 0..30)) {
            let any = "0.0.0.0".parse().unwrap();
            let mut tally = Tally::new(&[(any, 0)].into(), 8);
            for (n, part) in rows.iter().enumerate() {
                let mut bytes = [&part[..], part, part].concat();
                bytes[0] = if n % 2 == 0 { 2 } else { 10 };
                tally.add(&Row::parse(&bytes).unwrap());
            }
            let table = tally.finish(3);
            prop_assert_eq!(table.rows, rows.len() as u64);
            prop_assert!(table.destinations.len() <= 3 && table.n_destinations <= 8);
        }
    }
}
