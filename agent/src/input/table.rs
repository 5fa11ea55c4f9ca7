//! The TCP sockets of a namespace that do not listen, counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    intern::{self, Name},
    serial,
    time::{Monotonic, Nanos},
};

/// One read of a namespace's table of TCP sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableRead {
    /// When it began.
    pub at: Monotonic,
    /// What it found.
    pub table: Table,
}

/// The TCP sockets of a namespace that do not listen, counted: a read of the whole table.
///
/// The kernel walks its table while sockets move in it, so that one which changes meanwhile may be
/// missing or come twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// How long the read took.
    pub took: Nanos,
    /// Rows that were read.
    pub rows: u64,
    /// Whether it was stopped at its budget, or destinations found no room: every number is then a
    /// lower bound.
    pub is_partial: bool,
    /// Sockets by state, by the names that `ss` uses, with `_`: all states but LISTEN, also those
    /// without a socket. A TIME_WAIT socket whose peer has not closed is in `fin_wait_2`, as the
    /// kernel shows it.
    #[serde(deserialize_with = "intern::by_name")]
    pub states: BTreeMap<Name, u64>,
    /// By local address and port of a listener; each listener asked for, also without connections.
    #[serde(with = "serial::pairs")]
    pub listeners: BTreeMap<(IpAddr, u16), Connections>,
    /// TIME_WAIT sockets whose local port is no listener's.
    pub time_wait_ephemeral: u64,
    /// Where connections that began here lead, by local ports in use, most first.
    pub destinations: Vec<Destination>,
    /// Destinations in all, before that list was cut.
    pub n_destinations: u64,
    /// Rows of further destinations, which found no room.
    pub unplaced: u64,
    /// Ports of the local range that some socket is bound to which neither listens nor is connected.
    /// Empty where the kernel was not asked; before Linux 6.8 it does not tell.
    pub bound: BTreeSet<u16>,
}

/// Connections of one listener in a [`Table`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Accepted: a descriptor stands behind them. In any state.
    pub accepted: u64,
    /// Accepted, and the peer has closed: CLOSE_WAIT.
    pub close_wait: u64,
    /// Closed by the owner, and the peer has not closed, or not acknowledged: FIN_WAIT_1,
    /// FIN_WAIT_2, CLOSING or LAST_ACK without a descriptor.
    pub fin_wait: u64,
    /// Established, or already closed by the peer, without a descriptor: they wait for accept(2).
    pub queued: u64,
    /// In TIME_WAIT.
    pub time_wait: u64,
    /// Bytes that the owners of the accepted ones have not read. The end of a stream that nobody has
    /// seen counts as one (`tcp_diag_get_info`, net/ipv4/tcp_diag.c).
    pub unread_bytes: u64,
    /// The same of the connection with the most.
    pub unread_bytes_max: u64,
    /// Bytes that the peers of the accepted ones have not acknowledged, sent or not. The end of a
    /// stream counts as one.
    pub unsent_bytes: u64,
    /// The same of the connection with the most.
    pub unsent_bytes_max: u64,
}

/// Local ports in use towards one destination from one source address. IPv4 in either kind of
/// socket is IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// Local address.
    pub source: IpAddr,
    /// Remote address.
    pub addr: IpAddr,
    /// Remote port.
    pub port: u16,
    /// Local ports with a connection in any state but TIME_WAIT.
    pub open: u64,
    /// Local ports in TIME_WAIT.
    pub time_wait: u64,
    /// Of these, since more than a second: connect(2) may take them where `tcp_tw_reuse` allows it
    /// and the peer uses timestamps.
    pub time_wait_reusable: u64,
}
