//! Bound UDP sockets, likewise.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{OfGroup, Row, labels, rank_by_load};
use crate::{
    id::{ListenerKey, NetnsId},
    input::Absent,
    model::snapshot::UdpListener,
    publish::cap::{Cap, Counts},
    time::Monotonic,
};

/// The name of the one counter.
const DROPS: &str = "drops";

const GROUP: OfGroup<ListenerKey, UdpListener> = OfGroup {
    key: |socket| socket.key,
    // drops have no rate; those who drop are full first, and drop again
    rank: |socket| {
        let ratio = socket.queue_bytes as f64 / socket.limit_bytes.max(1) as f64;
        rank_by_load(ratio, socket.queue_bytes as f64 + socket.drops.unwrap_or(0) as f64)
    },
    labels: |socket| labels(socket.key, socket.comm.as_deref(), &socket.workload),
    other: "addr",
    counts: |socket| Counts {
        numbers: socket.drops.iter().map(|n| (DROPS, *n)).collect(),
        ..Counts::default()
    },
    set: |socket, counts| {
        if let Some(n) = counts.numbers.get(DROPS) {
            socket.drops = Ok(*n);
        }
    },
    none: || UdpListener {
        key: ListenerKey { netns: NetnsId(0), addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), port: 0 },
        comm: None,
        workload: Arc::default(),
        sockets: 0,
        queue_bytes: 0,
        limit_bytes: 0,
        drops: Err(Absent::TooEarly),
    },
    fold: |rest, socket| {
        rest.sockets += socket.sockets;
        rest.queue_bytes += socket.queue_bytes;
        rest.limit_bytes += socket.limit_bytes;
    },
};

pub(super) fn rows(
    cap: &mut Cap<ListenerKey>,
    at: Monotonic,
    sockets: &[UdpListener],
) -> Vec<Row<UdpListener>> {
    super::rows(cap, at, sockets, &GROUP)
}
