//! When each namespace's table of sockets is read.
//!
//! In: `sockets.rs`. Out: the newest [`TableRead`] of each namespace. Cost: reads are on a thread of
//! their own, one after the other, and each round is followed by a rest as long as keeps them all below
//! the configured share of a core; a read that takes too long is cut off and says that it is partial.
//! A namespace without connections is not read at all, and one whose counters stand still more seldom:
//! a dump passes all sockets of the host. Ports that are bound and idle are looked for where a destination
//! comes to use a good part of the range.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    background::{Background, Done},
    netns::Way,
    process::absent,
    sock_diag::SockDiagError,
    sockets,
};
use crate::{
    id::NetnsId,
    input::{Absent, Connections, Known, NamespaceSample, Table, TableRead},
    sys::netns::visit,
    time::{Monotonic, Nanos},
};

/// The same namespace is not read again before.
const EVERY: Nanos = Nanos(10_000_000_000);

/// The same where the numbers of its sockets have hardly moved since.
const STEADY_EVERY: Nanos = Nanos(30_000_000_000);

/// They have moved when by more than this part of them.
const HARDLY: u64 = 32;

/// A read is cut off after so long.
const LONGEST: Duration = Duration::from_millis(500);

/// Destinations that are told apart in each namespace.
const DESTINATIONS: usize = 20;

/// Namespaces that are read one after the other.
const AT_ONCE: usize = 64;

/// Ports that are bound and idle matter once a destination uses this part of the range.
const MATTERS_FROM: u64 = 8;

/// They are not asked for where a listener has more connections: the kernel would hold the lock of its
/// port for 2 ms, while others wait who connect to it.
const MOST_CONNECTIONS: u64 = 16_384;

/// When a round of reads began, and what it found.
type Round = (Monotonic, Vec<(NetnsId, Option<Numbers>, Known<Table>)>);

/// Sockets in use, in TIME_WAIT, and without process.
type Numbers = [u64; 3];

/// What is read of one namespace.
#[derive(Debug)]
struct Due {
    netns: NetnsId,
    way: Option<Way>,
    listeners: BTreeSet<(IpAddr, u16)>,
    numbers: Option<Numbers>,
    local_ports: Option<RangeInclusive<u16>>,
}

/// The newest reads.
#[derive(Debug)]
pub(super) struct Tables {
    reads: BTreeMap<NetnsId, Known<Arc<TableRead>>>,
    /// When each was read, or found to be empty, and what its counters showed.
    tried: BTreeMap<NetnsId, (Monotonic, Option<Numbers>)>,
    reading: Background<Round>,
    rest_until: Monotonic,
    /// Rest after a read, as a multiple of what it took; `None`: no reads.
    rest: Option<u32>,
}

impl Tables {
    /// Reads that take `share` of a core at most; 0: none.
    pub(super) fn new(share: f64) -> Self {
        let rest = (0.0 < share).then(|| {
            let times = (1.0 / share - 1.0).clamp(0.0, 1e6).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and a million"
            )]
            let times = times as u32;
            times
        });
        Self {
            reads: BTreeMap::new(),
            tried: BTreeMap::new(),
            reading: Background::new("table"),
            rest_until: Monotonic::default(),
            rest,
        }
    }

    /// Adds the newest reads to `namespaces`, and starts another where one is due. `way` leads into a
    /// namespace, but for the calling thread's `own`.
    pub(super) fn update(
        &mut self,
        at: Monotonic,
        own: NetnsId,
        namespaces: &mut [NamespaceSample],
        way: impl Fn(NetnsId) -> Option<Way>,
    ) {
        self.finish(at);
        let present: BTreeSet<NetnsId> = namespaces.iter().map(|it| it.netns).collect();
        self.reads.retain(|netns, _| present.contains(netns));
        self.tried.retain(|netns, _| present.contains(netns));
        if self.rest.is_some() {
            for namespace in namespaces.iter().filter(|namespace| is_empty(namespace)) {
                self.note_empty(namespace, at);
            }
            if !self.reading.is_busy() && self.rest_until <= at {
                self.start(at, own, namespaces, way);
            }
        }
        let otherwise = if self.rest.is_some() { Absent::TooEarly } else { Absent::SwitchedOff };
        for namespace in namespaces {
            let read = self.reads.get(&namespace.netns);
            namespace.table = read.cloned().unwrap_or(Err(otherwise));
        }
    }

    /// What is known of a namespace without connections, without a read.
    fn note_empty(&mut self, namespace: &NamespaceSample, at: Monotonic) {
        // connections that come are read soon
        self.tried.insert(namespace.netns, (at, None));
        let table = sockets::nothing(&listeners(namespace));
        let is_same = |read: &Known<Arc<TableRead>>| {
            read.as_ref().is_ok_and(|read| read.table == table && at - read.at < EVERY)
        };
        if !self.reads.get(&namespace.netns).is_some_and(is_same) {
            self.reads.insert(namespace.netns, Ok(Arc::new(TableRead { at, table })));
        }
    }

    fn start(
        &mut self,
        at: Monotonic,
        own: NetnsId,
        namespaces: &[NamespaceSample],
        way: impl Fn(NetnsId) -> Option<Way>,
    ) {
        let mut due: Vec<_> = namespaces
            .iter()
            .map(|namespace| (self.tried.get(&namespace.netns).copied(), namespace))
            .filter(|(tried, it)| {
                tried.is_none_or(|(then, before)| pause(before, numbers(it)) <= at - then)
            })
            .collect();
        if due.is_empty() {
            return;
        }
        // the longest ago first
        due.sort_by_key(|(tried, _)| tried.map(|(then, _)| then));
        let due: Vec<Due> = due
            .into_iter()
            .take(AT_ONCE)
            .map(|(_, it)| Due {
                netns: it.netns,
                way: if it.netns == own { None } else { way(it.netns) },
                listeners: listeners(it),
                numbers: numbers(it),
                local_ports: it.local_ports(),
            })
            .collect();
        // whatever comes of it
        self.rest_until = at + EVERY;
        self.reading.start(move || {
            let start = Instant::now();
            let mut found = Vec::new();
            for due in due {
                let table = match due.way {
                    None if due.netns != own => Err(Absent::Unreadable),
                    _ => read(&due),
                };
                found.push((due.netns, due.numbers, table));
                // the others have their turn in the next round
                if LONGEST <= start.elapsed() {
                    break;
                }
            }
            (at, found)
        });
    }

    fn finish(&mut self, at: Monotonic) {
        let Some(Done { value: (begun, found), cpu, .. }) = self.reading.finish(Duration::ZERO)
        else {
            return;
        };
        self.rest_until = at + Nanos(cpu.0.saturating_mul(self.rest.unwrap_or(0).into()));
        for (netns, numbers, table) in found {
            self.tried.insert(netns, (begun, numbers));
            let read = table.map(|table| Arc::new(TableRead { at: begun, table }));
            self.reads.insert(netns, read);
        }
    }
}

fn numbers(namespace: &NamespaceSample) -> Option<Numbers> {
    let stat = namespace.sockstat.ok()?;
    Some([stat.tcp_inuse + stat.tcp6_inuse.unwrap_or(0), stat.time_wait, stat.orphans])
}

/// Between two reads, by what the counters showed at the first and show now.
fn pause(before: Option<Numbers>, now: Option<Numbers>) -> Nanos {
    let (Some(before), Some(now)) = (before, now) else { return EVERY };
    let moved: u64 = before.iter().zip(now).map(|(before, now)| before.abs_diff(now)).sum();
    if moved.saturating_mul(HARDLY) <= before.iter().sum() { STEADY_EVERY } else { EVERY }
}

fn listeners(namespace: &NamespaceSample) -> BTreeSet<(IpAddr, u16)> {
    let sockets = namespace.sockets.iter().flatten();
    sockets.map(|socket| (socket.addr, socket.port)).collect()
}

/// Whether its counters show nothing but listeners.
fn is_empty(namespace: &NamespaceSample) -> bool {
    let Ok(stat) = namespace.sockstat else { return false };
    let n_listeners = namespace.sockets.as_ref().map_or(0, Vec::len) as u64;
    stat.time_wait == 0 && stat.tcp_inuse + stat.tcp6_inuse.unwrap_or(0) <= n_listeners
}

fn read(due: &Due) -> Known<Table> {
    let read = || {
        let mut table = sockets::read(&due.listeners, LONGEST, DESTINATIONS)?;
        if let Some(range) = due.local_ports.as_ref().filter(|range| is_bound_asked(&table, range))
        {
            let start = Instant::now();
            match sockets::bound(range) {
                Ok(bound) => table.bound = bound,
                Err(err) => tracing::debug!(error = %err, "bound ports not read"),
            }
            table.took = table.took + start.elapsed().into();
        }
        Ok(table)
    };
    let table: Result<Table, SockDiagError> = match &due.way {
        Some(way) => visit(&way.file(), |here| {
            // it may be another by now
            if here == due.netns { Some(read()) } else { None }
        })
        .map_err(|err| absent(&err))?
        .ok_or(Absent::Unreadable)?,
        None => read(),
    };
    table.map_err(|err| err.absent())
}

/// Whether to look for ports that are bound and idle.
fn is_bound_asked(table: &Table, range: &RangeInclusive<u16>) -> bool {
    let used = table.destinations.iter().map(|it| it.open + it.time_wait).max();
    let connections = |it: &Connections| it.accepted + it.queued + it.fin_wait + it.time_wait;
    let is_cheap = table.listeners.values().all(|it| connections(it) <= MOST_CONNECTIONS);
    !table.is_partial
        && is_cheap
        && used.is_some_and(|used| range.len() as u64 <= used * MATTERS_FROM)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::input::Destination;

    #[test]
    fn numbers_that_stand_still_are_read_more_seldom() {
        #[track_caller]
        fn check(before: Option<Numbers>, now: Option<Numbers>, expected: Nanos) {
            assert_eq!(expected, pause(before, now), "{before:?} {now:?}");
        }
        check(Some([100, 6000, 0]), Some([90, 6100, 1]), STEADY_EVERY);
        check(Some([100, 6000, 0]), Some([100, 6300, 0]), EVERY);
        // clients that become TIME_WAIT, as many as before
        check(Some([500, 0, 0]), Some([250, 250, 0]), EVERY);
        check(Some([3, 0, 0]), Some([4, 0, 0]), EVERY);
        check(None, Some([4, 0, 0]), EVERY);
        check(Some([4, 0, 0]), None, EVERY);
    }

    #[test]
    fn a_share_of_a_core_is_a_rest_after_each_read() {
        for (share, rest) in [(0.02, Some(49)), (0.5, Some(1)), (1.0, Some(0)), (0.0, None)] {
            assert_eq!(rest, Tables::new(share).rest, "{share}");
        }
    }

    const ADDR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn to(open: u64, time_wait: u64) -> Destination {
        let (source, addr, port) = (ADDR, ADDR, 80);
        Destination { source, addr, port, open, time_wait, time_wait_reusable: 0 }
    }

    #[test]
    fn ports_that_are_bound_and_idle_are_looked_for_where_that_matters_and_is_cheap() {
        #[track_caller]
        fn check((open, time_wait): (u64, u64), connections: u64, expected: bool) {
            let of_it = Connections { queued: 1, accepted: connections - 1, ..Default::default() };
            let table = Table {
                destinations: vec![to(1, 0), to(open, time_wait)],
                listeners: [((ADDR, 80), of_it)].into(),
                ..Table::default()
            };
            assert_eq!(expected, is_bound_asked(&table, &(1_001..=2_000)), "{table:?}");
        }
        check((125, 0), 1, true);
        check((100, 25), 16_384, true);
        check((100, 24), 1, false);
        check((1_000, 0), 16_385, false);
        assert!(!is_bound_asked(&Table::default(), &(1..=2)));
        let cut = Table { is_partial: true, destinations: vec![to(2, 0)], ..Table::default() };
        assert!(!is_bound_asked(&cut, &(1..=2)));
    }
}
