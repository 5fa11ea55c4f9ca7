//! `backlogd_udp_*`: bound UDP sockets.

use std::fmt;

use super::{Family, Scrape, Sink, Value, emit};
use crate::{
    metric::{Descriptor, Fold, Group, Kind, LISTENER_LABELS},
    model::snapshot::UdpListener,
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_udp_drops_total",
            kind: Kind::Counter,
            labels: LISTENER_LABELS,
            help: "Datagrams dropped by the bound, not connected UDP sockets at this address, since the receive queue was full or for another reason; those from before the agent included. Read every ten seconds, in other namespaces more seldom where there are more than forty",
            source: "sk_drops of SKMEMINFO (sk_get_meminfo, net/core/sock.c)",
        },
        folds: Some((Group::Udp, Fold::Growth)),
        emit: |scrape, sink| each(scrape, sink, |socket| socket.drops.ok()),
    },
    Family {
        descriptor: gauge(
            "backlogd_udp_receive_queue_bytes",
            "Memory of the datagrams that wait to be received, with the kernel's overhead, summed over the sockets",
            "SK_MEMINFO_RMEM_ALLOC",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |socket| socket.queue_bytes),
    },
    Family {
        descriptor: gauge(
            "backlogd_udp_receive_queue_limit_bytes",
            "How much of it there may be, summed; a datagram that comes above it is dropped",
            "SK_MEMINFO_RCVBUF: SO_RCVBUF as the kernel doubles it",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |socket| socket.limit_bytes),
    },
    Family {
        descriptor: gauge(
            "backlogd_udp_sockets",
            "Bound, not connected UDP sockets at this address",
            "sock_diag",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |socket| socket.sockets as u64),
    },
];

const SUM: Option<(Group, Fold)> = Some((Group::Udp, Fold::Sum));

const fn gauge(name: &'static str, help: &'static str, source: &'static str) -> Descriptor {
    Descriptor { name, kind: Kind::Gauge, labels: LISTENER_LABELS, help, source }
}

/// One series per address that has sockets.
fn level(scrape: &Scrape, sink: Sink<'_>, value: fn(&UdpListener) -> u64) -> fmt::Result {
    each(scrape, sink, |socket| (0 < socket.sockets).then(|| value(socket)))
}

/// One series per address that has a `value`.
fn each(
    scrape: &Scrape,
    sink: Sink<'_>,
    value: impl Fn(&UdpListener) -> Option<u64>,
) -> fmt::Result {
    for row in &scrape.rows.udp {
        let Some(n) = row.of(&scrape.snapshot.udp).and_then(&value) else { continue };
        emit(sink, &row.labels, None, Value::Unsigned(n))?;
    }
    Ok(())
}
