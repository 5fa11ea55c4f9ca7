//! Network namespaces, likewise.

use std::{collections::BTreeMap, sync::Arc};

use super::{OfGroup, Row, add, listener, owned};
use crate::{
    id::NetnsId,
    input::{Absent, Known},
    model::snapshot::{Namespace, Snapshot},
    publish::cap::{Cap, Class, Counts, Rank},
    time::Nanos,
};

/// What is published of a namespace.
#[derive(Clone, Debug)]
pub(in crate::publish) struct Space {
    netns: NetnsId,
    rank: Rank,
    /// The kernel's own counters, by field.
    pub(in crate::publish) netstat: BTreeMap<&'static str, u64>,
    /// Not known of the rest: each namespace has its own.
    pub(in crate::publish) sysctls: Arc<BTreeMap<&'static str, i64>>,
    /// Sockets in LISTEN; not known where there are none.
    pub(in crate::publish) listening: Known<u64>,
    /// As in [`Namespace`].
    pub(in crate::publish) connected: Known<u64>,
    /// By the kernel's own counter.
    pub(in crate::publish) time_wait: Known<u64>,
    /// The newest read of its table.
    pub(in crate::publish) table: Known<Read>,
}

/// What is published of a read of a table.
#[derive(Clone, Debug)]
pub(in crate::publish) struct Read {
    pub(in crate::publish) age: Nanos,
    pub(in crate::publish) took: Nanos,
    pub(in crate::publish) rows: u64,
    pub(in crate::publish) is_partial: bool,
    pub(in crate::publish) states: BTreeMap<&'static str, u64>,
}

const GROUP: OfGroup<NetnsId, Space> = OfGroup {
    key: |space| space.netns,
    rank: |space| space.rank,
    labels: |space| vec![("netns", space.netns.0.to_string())],
    other: "netns",
    counts: |space| Counts { numbers: space.netstat.clone(), ..Counts::default() },
    set: |space, counts| space.netstat.clone_from(&counts.numbers),
    none: || Space {
        netns: NetnsId(0),
        rank: QUIET,
        netstat: BTreeMap::new(),
        sysctls: Arc::default(),
        listening: Err(Absent::TooEarly),
        connected: Err(Absent::TooEarly),
        time_wait: Err(Absent::TooEarly),
        table: Err(Absent::TooEarly),
    },
    fold: |rest, space| {
        add(&mut rest.listening, space.listening);
        add(&mut rest.connected, space.connected);
        add(&mut rest.time_wait, space.time_wait);
        rest.table = match (rest.table.clone(), space.table.clone()) {
            (Ok(a), Ok(b)) => Ok(a.with(b)),
            (a, b) => a.or(b),
        };
    },
};

const QUIET: Rank = Rank { class: Class::Quiet, traffic: 0.0 };

/// A namespace deserves what its listeners do together.
pub(super) fn rows(cap: &mut Cap<NetnsId>, snapshot: &Snapshot) -> Vec<Row<Space>> {
    let mut ranks: BTreeMap<NetnsId, (Rank, u64)> = BTreeMap::new();
    for it in &snapshot.listeners {
        let (sum, listening) = ranks.entry(it.key.netns).or_insert((QUIET, 0));
        let rank = listener::rank(it);
        sum.class = sum.class.max(rank.class);
        sum.traffic += rank.traffic;
        *listening += it.members.len() as u64;
    }
    let spaces = snapshot.namespaces.iter().map(|namespace| {
        let (rank, listening) = ranks.get(&namespace.netns).copied().unwrap_or((QUIET, 0));
        Space::new(namespace, snapshot, rank, listening)
    });
    let mut spaces: Vec<Space> = spaces.collect();
    spaces.sort_by_key(|space| space.netns);
    owned(super::rows(cap, snapshot.at, &spaces, &GROUP), &spaces)
}

impl Space {
    fn new(namespace: &Namespace, snapshot: &Snapshot, rank: Rank, listening: u64) -> Self {
        let Namespace { netns, netstat, sysctls, connected, sockstat, table, .. } = namespace;
        Self {
            netns: *netns,
            rank,
            netstat: netstat
                .iter()
                .flat_map(|it| it.iter().map(|(&field, &n)| (field, n)))
                .collect(),
            sysctls: sysctls.clone(),
            listening: if listening == 0 { Err(Absent::TooEarly) } else { Ok(listening) },
            connected: *connected,
            time_wait: sockstat.map(|it| it.time_wait),
            table: table.as_ref().map_err(|absent| *absent).map(|read| Read {
                age: snapshot.at - read.at,
                took: read.table.took,
                rows: read.table.rows,
                is_partial: read.table.is_partial,
                states: read.table.states.clone(),
            }),
        }
    }
}

impl Read {
    /// Both, by the older and the longer.
    fn with(mut self, other: Self) -> Self {
        for (state, n) in other.states {
            *self.states.entry(state).or_default() += n;
        }
        Self {
            age: self.age.max(other.age),
            took: self.took.max(other.took),
            rows: self.rows + other.rows,
            is_partial: self.is_partial || other.is_partial,
            states: self.states,
        }
    }
}
