//! Ephemeral ports: how many are in use towards one destination, of those that there are.
//!
//! A connection that begins here needs a local port that no other connection from the same address to
//! the same destination has (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    input::{Destination, Known, NamespaceSample},
    model::{snapshot::PortUse, trend::Trend},
    time::Monotonic,
};

/// What names a destination.
type Key = (IpAddr, IpAddr, u16);

/// The destinations of one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports {
    /// The read that they are from.
    read: Option<Monotonic>,
    trends: BTreeMap<Key, Trend>,
    shown: Arc<[PortUse]>,
}

impl Ports {
    /// The destinations of the namespace's newest read, which use the most ports first.
    pub(super) fn show(&mut self, namespace: &NamespaceSample) -> Known<Arc<[PortUse]>> {
        let read = namespace.table.as_ref().map_err(|absent| *absent)?;
        if self.read == Some(read.at) {
            return Ok(self.shown.clone());
        }
        self.read = Some(read.at);
        let destinations = &read.table.destinations;
        let keys: BTreeSet<Key> = destinations.iter().map(key).collect();
        self.trends.retain(|key, _| keys.contains(key));
        let usable = usable(namespace, &read.table.bound);
        let sysctl = |name| namespace.sysctls.get(name).copied();
        let (reuse, timestamps) = (sysctl("tcp_tw_reuse"), sysctl("tcp_timestamps"));
        let show = |destination: &Destination| {
            let used = used(destination, reuse, timestamps);
            let trend = self.trends.entry(key(destination)).or_default();
            trend.push(read.at, used);
            let exhausted_in = trend.reaches(usable);
            PortUse { destination: *destination, used, usable, exhausted_in }
        };
        let mut shown: Vec<PortUse> = destinations.iter().map(show).collect();
        shown.sort_by_key(|it| std::cmp::Reverse(it.used));
        self.shown = shown.into();
        Ok(self.shown.clone())
    }
}

fn key(destination: &Destination) -> Key {
    (destination.source, destination.addr, destination.port)
}

/// Ports that connect(2) cannot take again: with `tcp_tw_reuse` 1 those in TIME_WAIT for more than a
/// second are free, with 2 only where one end is a loopback address, and without timestamps none
/// (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c).
fn used(destination: &Destination, reuse: Option<i64>, timestamps: Option<i64>) -> u64 {
    let is_local = destination.source.is_loopback() || destination.addr.is_loopback();
    let reusable = match (reuse, timestamps) {
        (_, Some(0) | None) => 0,
        (Some(1), Some(_)) => destination.time_wait_reusable,
        (Some(2), Some(_)) if is_local => destination.time_wait_reusable,
        (Some(_) | None, Some(_)) => 0,
    };
    destination.open + destination.time_wait - reusable
}

/// Ports that connect(2) chooses from: those in the range, without the reserved ones and those that a
/// socket is bound to, to whichever address, which listens or is idle. A port that bind(2) gave to a
/// connection is out of reach for all destinations too (`fastreuse`, `__inet_hash_connect`); no table
/// tells how a connection came by its port, so that one is in use towards its own destination alone
/// here. Of an odd number of ports the search leaves out the first, unless it begins there, or else the
/// last.
fn usable(namespace: &NamespaceSample, bound: &BTreeSet<u16>) -> u64 {
    let Some(range) = namespace.local_ports() else { return 0 };
    let reserved = namespace.reserved_ports.iter().cloned().flatten();
    let listens = namespace.sockets.iter().flatten().map(|socket| socket.port);
    let taken: BTreeSet<u16> = reserved
        .chain(listens)
        .chain(bound.iter().copied())
        .filter(|port| range.contains(port))
        .collect();
    (range.len() as u64).saturating_sub(taken.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, ops::RangeInclusive};

    use super::*;
    use crate::{
        id::{Cookie, Inode, NetnsId},
        input::{Absent, ListenSocket, Table, TableRead},
    };

    const LISTENS: ListenSocket = ListenSocket {
        cookie: Cookie(1),
        inode: Inode(1),
        addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 1,
        v6only: false,
        length: 0,
        limit: 5,
        drops: Ok(0),
    };

    fn destination(addr: Ipv4Addr, open: u64, time_wait: u64, reusable: u64) -> Destination {
        Destination {
            source: addr.into(),
            addr: addr.into(),
            port: 80,
            open,
            time_wait,
            time_wait_reusable: reusable,
        }
    }

    #[test]
    fn what_may_be_reused_is_not_used() {
        #[track_caller]
        fn check(addr: Ipv4Addr, reuse: Option<i64>, expected: u64) {
            let destination = destination(addr, 10, 20, 15);
            assert_eq!(expected, used(&destination, reuse, Some(1)), "{addr} {reuse:?}");
            assert_eq!(30, used(&destination, reuse, Some(0)), "{addr} {reuse:?}");
        }
        let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
        check(elsewhere, Some(0), 30);
        check(elsewhere, Some(1), 15);
        check(elsewhere, Some(2), 30);
        check(elsewhere, None, 30);
        check(Ipv4Addr::LOCALHOST, Some(2), 15);
    }

    fn namespace(sysctls: &[(&'static str, i64)], table: Known<TableRead>) -> NamespaceSample {
        NamespaceSample {
            reserved_ports: Arc::default(),
            netns: NetnsId(1),
            is_new: false,
            sockets: Ok(Vec::new()),
            passive_opens: Ok(0),
            passive_opens_after: None,
            netstat: Err(Absent::Unreadable),
            sysctls: Arc::new(sysctls.iter().copied().collect()),
            connected: Err(Absent::Unreadable),
            sockstat: Err(Absent::Unreadable),
            table: table.map(Arc::new),
            udp: Err(Absent::Unreadable),
        }
    }

    #[test]
    fn the_usable_range_is_without_what_connect_passes_over() {
        #[track_caller]
        fn check(
            (low, high): (i64, i64),
            reserved: RangeInclusive<u16>,
            listens: &[u16],
            bound: &[u16],
            expected: u64,
        ) {
            let sysctls = [("ip_local_port_range_low", low), ("ip_local_port_range_high", high)];
            let mut namespace = namespace(&sysctls, Err(Absent::TooEarly));
            namespace.reserved_ports = [reserved.clone()].into();
            let socket = |&port| ListenSocket { port, ..LISTENS };
            namespace.sockets = Ok(listens.iter().map(socket).collect());
            let found = usable(&namespace, &bound.iter().copied().collect());
            assert_eq!(expected, found, "{low}-{high}, {reserved:?}, {listens:?}, {bound:?}");
        }
        check((32_768, 60_999), 1..=80, &[80, 65_000], &[], 28_232);
        check((1_000, 1_999), 1_100..=1_109, &[], &[], 990);
        check((1_000, 1_999), 1_100..=1_109, &[1_105, 1_200, 1_200], &[], 989);
        check((1_000, 1_999), 1..=1, &[], &[1_000, 1_999, 999, 2_000], 998);
        // each once, whatever takes it
        check((1_000, 1_999), 1_100..=1_109, &[1_105, 1_200], &[1_105, 1_200, 1_300], 988);
        check((1_000, 1_002), 1..=1, &[], &[], 3);
        check((1_000, 1_000), 1..=1, &[], &[], 1);
        check((0, 65_535), 1..=1, &[], &[], 65_535);
        check((1_000, 1_009), 1..=65_535, &[], &[1_001], 0);
        check((2_000, 1_000), 1..=1, &[], &[], 0);
        check((-1, 70_000), 1..=1, &[], &[], 0);
        let nothing = BTreeSet::new();
        assert_eq!(0, usable(&namespace(&[], Err(Absent::TooEarly)), &nothing));
    }

    #[test]
    fn exhaustion_is_foreseen_from_read_to_read() {
        let sysctls = [("ip_local_port_range_low", 1), ("ip_local_port_range_high", 1_000)];
        let mut ports = Ports::default();
        let mut last = None;
        for n in 0..10 {
            let at = Monotonic(n * 10_000_000_000);
            let destinations = vec![destination(Ipv4Addr::LOCALHOST, n * 50, 0, 0)];
            let table = Table { destinations, bound: [7].into(), ..Table::default() };
            let shown = ports.show(&namespace(&sysctls, Ok(TableRead { at, table }))).unwrap();
            last = Some(shown[0]);
        }
        let last = last.expect("ten reads");
        assert_eq!((450, 999), (last.used, last.usable));
        let left = last.exhausted_in.unwrap().as_seconds();
        assert!((109.7..109.9).contains(&left), "{left}");
    }
}
