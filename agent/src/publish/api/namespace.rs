//! A network namespace, as JSON: counters, sockets, the newest read of its table, ports.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AbsentFields, known};
use crate::{
    input::{self, Known, TableRead},
    model::snapshot,
    time::{Monotonic, Nanos},
};

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Namespace {
    /// Its inode number.
    pub netns: u32,
    /// The kernel's own counters, by field.
    pub netstat: Option<BTreeMap<String, u64>>,
    /// Sysctls that explain a limit, by short name.
    pub sysctls: BTreeMap<String, i64>,
    /// Connections in ESTABLISHED or CLOSE_WAIT.
    pub connected: Option<u64>,
    /// TCP sockets by the kernel's own counters.
    pub sockets: Option<Sockets>,
    /// The newest read of its table of TCP sockets.
    pub table: Option<Table>,
    /// The destinations that use the most local ports, most first, by that read.
    pub ports: Option<Vec<PortUse>>,
    /// Handshakes that the kernel counted and no program saw.
    pub lost_in_kernel: Option<u64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// TCP sockets of a namespace by the kernel's own counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sockets {
    /// IPv4, connected or listening.
    pub tcp: u64,
    /// IPv6, likewise; null: the kernel has no IPv6.
    pub tcp6: Option<u64>,
    /// In TIME_WAIT, with those whose peer has not closed.
    pub time_wait: u64,
}

/// One read of a namespace's table of TCP sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Table {
    /// Time since it began.
    pub age_seconds: f64,
    /// How long it took.
    pub read_seconds: f64,
    /// Sockets that it saw.
    pub rows: u64,
    /// Whether it stopped at its budget, or destinations found no room: numbers are then lower bounds.
    pub is_partial: bool,
    /// Sockets by state, without LISTEN.
    pub states: BTreeMap<String, u64>,
    /// Sockets in TIME_WAIT whose local port is no listener's.
    pub time_wait_ephemeral: u64,
    /// Destinations in all.
    pub destinations: u64,
    /// Sockets of destinations that found no room.
    pub unplaced: u64,
}

/// Local ports in use towards one destination from one source address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortUse {
    /// Local address.
    pub source: IpAddr,
    /// Remote address.
    pub dst: IpAddr,
    /// Remote port.
    pub dst_port: u16,
    /// Local ports with a connection in any state but TIME_WAIT.
    pub open: u64,
    /// Local ports in TIME_WAIT.
    pub time_wait: u64,
    /// Of these, since more than a second.
    pub time_wait_reusable: u64,
    /// Local ports that cannot be taken for another connection there.
    pub used: u64,
    /// Local ports that connect can choose from.
    pub usable: u64,
    /// used / usable; 1 where nothing is usable.
    pub used_ratio: f64,
    /// Time until all are used, as they grow; null while they do not grow.
    pub exhausted_in_seconds: Option<f64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

impl Namespace {
    pub(super) fn new(namespace: &snapshot::Namespace, at: Monotonic) -> Self {
        let mut absent = AbsentFields::new();
        let owned = |fields: &Arc<BTreeMap<&'static str, u64>>| {
            fields.iter().map(|(&name, &n)| (name.to_owned(), n)).collect()
        };
        let netstat = known(&mut absent, "netstat", borrowed(&namespace.netstat)).map(owned);
        let table = known(&mut absent, "table", borrowed(&namespace.table));
        let ports = known(&mut absent, "ports", borrowed(&namespace.ports));
        let sockets = known(&mut absent, "sockets", namespace.sockstat);
        Self {
            netns: namespace.netns.0,
            netstat,
            sysctls: namespace.sysctls.iter().map(|(&name, &n)| (name.to_owned(), n)).collect(),
            connected: known(&mut absent, "connected", namespace.connected),
            sockets: sockets.map(|it| Sockets::new(it, &mut absent)),
            table: table.map(|read| Table::new(read, at)),
            ports: ports.map(|ports| ports.iter().map(PortUse::new).collect()),
            lost_in_kernel: known(&mut absent, "lost_in_kernel", namespace.lost_in_kernel),
            absent,
        }
    }
}

fn borrowed<T>(known: &Known<T>) -> Known<&T> {
    known.as_ref().map_err(|&why| why)
}

impl Sockets {
    fn new(sockets: input::Sockstat, absent: &mut AbsentFields) -> Self {
        Self {
            tcp: sockets.tcp_inuse,
            tcp6: known(absent, "sockets.tcp6", sockets.tcp6_inuse),
            time_wait: sockets.time_wait,
        }
    }
}

impl Table {
    fn new(read: &TableRead, at: Monotonic) -> Self {
        let table = &read.table;
        Self {
            age_seconds: (at - read.at).as_seconds(),
            read_seconds: table.took.as_seconds(),
            rows: table.rows,
            is_partial: table.is_partial,
            states: table.states.iter().map(|(&state, &n)| (state.to_owned(), n)).collect(),
            time_wait_ephemeral: table.time_wait_ephemeral,
            destinations: table.n_destinations,
            unplaced: table.unplaced,
        }
    }
}

impl PortUse {
    fn new(of: &snapshot::PortUse) -> Self {
        let mut absent = AbsentFields::new();
        let exhausted_in = of.exhausted_in.map(Nanos::as_seconds);
        Self {
            source: of.destination.source,
            dst: of.destination.addr,
            dst_port: of.destination.port,
            open: of.destination.open,
            time_wait: of.destination.time_wait,
            time_wait_reusable: of.destination.time_wait_reusable,
            used: of.used,
            usable: of.usable,
            used_ratio: of.ratio(),
            exhausted_in_seconds: known(&mut absent, "exhausted_in_seconds", exhausted_in),
            absent,
        }
    }
}
