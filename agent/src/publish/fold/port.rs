//! Ports, likewise: TIME_WAIT by local port, and local ports in use by destination.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use super::{OfGroup, Row, owned, rank_by_load, rows};
use crate::{
    id::NetnsId,
    model::snapshot::{PortUse, Snapshot},
    publish::cap::{Cap, Counts},
};

/// The listener's port; `None`: no listener's.
pub(super) type Key = (NetnsId, Option<u16>);

/// Where connections lead.
pub(super) type Towards = (NetnsId, IpAddr, u16);

/// Sockets in TIME_WAIT at one local port.
#[derive(Clone, Copy, Debug)]
pub(in crate::publish) struct TimeWait {
    key: Key,
    /// How many.
    pub(in crate::publish) n: u64,
}

const TIME_WAIT: OfGroup<Key, TimeWait> = OfGroup {
    key: |it| it.key,
    rank: |it| rank_by_load(0.0, it.n as f64),
    labels: |TimeWait { key: (netns, port), .. }| {
        let port = port.map_or_else(|| "ephemeral".to_owned(), |port| port.to_string());
        vec![("netns", netns.0.to_string()), ("port", port)]
    },
    other: "netns",
    counts: |_| Counts::default(),
    set: |_, _| {},
    none: || TimeWait { key: (NetnsId(0), None), n: 0 },
    fold: |rest, it| rest.n += it.n,
};

/// By local port of a listener, and the rest of each namespace.
pub(super) fn time_wait(cap: &mut Cap<Key>, snapshot: &Snapshot) -> Vec<Row<TimeWait>> {
    let mut ports: BTreeMap<Key, u64> = BTreeMap::new();
    for namespace in &snapshot.namespaces {
        let Ok(read) = &namespace.table else { continue };
        ports.insert((namespace.netns, None), read.table.time_wait_ephemeral);
        for ((_, port), connections) in &read.table.listeners {
            *ports.entry((namespace.netns, Some(*port))).or_default() += connections.time_wait;
        }
    }
    let members: Vec<_> = ports.into_iter().map(|(key, n)| TimeWait { key, n }).collect();
    owned(rows(cap, snapshot.at, &members, &TIME_WAIT), &members)
}

/// Where ports are used, and by the source address that uses the most of what it has.
#[derive(Clone, Copy, Debug)]
pub(in crate::publish) struct Worst {
    towards: Towards,
    /// `None`: the rest, while nobody is folded.
    pub(in crate::publish) of: Option<PortUse>,
}

const DESTINATION: OfGroup<Towards, Worst> = OfGroup {
    key: |it| it.towards,
    rank: |it| it.of.map_or(rank_by_load(0.0, 0.0), |of| rank_by_load(of.ratio(), of.used as f64)),
    labels: |Worst { towards: (netns, addr, port), .. }| {
        let labels = [("netns", netns.0.to_string()), ("dst", addr.to_string())];
        labels.into_iter().chain([("dst_port", port.to_string())]).collect()
    },
    other: "dst",
    counts: |_| Counts::default(),
    set: |_, _| {},
    none: || Worst { towards: (NetnsId(0), IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0), of: None },
    fold: |rest, it| rest.of = worse(rest.of, it.of),
};

/// Below this share a destination says nothing, and its remote port may be a client's: there would
/// be new series all the time.
const SCARCE: f64 = 0.01;

/// By destination, the worst source address of each, from [`SCARCE`] on.
pub(super) fn destinations(cap: &mut Cap<Towards>, snapshot: &Snapshot) -> Vec<Row<Worst>> {
    let mut worst: BTreeMap<Towards, Option<PortUse>> = BTreeMap::new();
    for namespace in &snapshot.namespaces {
        let ports = namespace.ports.iter().flat_map(|ports| ports.iter());
        for of in ports.filter(|of| SCARCE <= of.ratio()) {
            let towards = (namespace.netns, of.destination.addr, of.destination.port);
            let entry = worst.entry(towards).or_default();
            *entry = worse(*entry, Some(*of));
        }
    }
    let members: Vec<_> = worst.into_iter().map(|(towards, of)| Worst { towards, of }).collect();
    owned(rows(cap, snapshot.at, &members, &DESTINATION), &members)
}

/// The one with the higher ratio, the first of equals.
fn worse(a: Option<PortUse>, b: Option<PortUse>) -> Option<PortUse> {
    match (a, b) {
        (Some(a), Some(b)) if a.ratio() < b.ratio() => Some(b),
        (None, b) => b,
        (a, _) => a,
    }
}
