//! Local ports: TIME_WAIT by port, and how many are in use towards each destination.

use std::fmt;

use super::{Family, Scrape, Sink, Value, emit};
use crate::{
    metric::{Descriptor, Fold, Group, Kind},
    model::snapshot::PortUse,
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_time_wait_sockets",
            kind: Kind::Gauge,
            labels: &["netns", "port"],
            help: "Sockets in TIME_WAIT by local port of a listener, in the newest read of the namespace's table; ephemeral: at no listener's port. Without those whose peer has not closed",
            source: TABLE,
        },
        folds: Some((Group::TimeWait, Fold::Sum)),
        emit: |scrape, sink| {
            let rows = scrape.rows.time_wait.iter();
            rows.filter_map(|row| Some((row, row.of(&[])?)))
                .try_for_each(|(row, it)| emit(sink, &row.labels, None, Value::Unsigned(it.n)))
        },
    },
    Family {
        descriptor: gauge(
            "backlogd_ephemeral_ports_used_ratio",
            "Local ports in use of those usable towards a destination, from the local address that has the highest ratio; at 1 connect fails with EADDRNOTAVAIL. Of the destinations that use the most, and at least a hundredth; the API has the others",
            "the two below",
        ),
        folds: WORST,
        emit: |scrape, sink| worst(scrape, sink, |of| Some(Value::Real(of.ratio()))),
    },
    Family {
        descriptor: gauge(
            "backlogd_ephemeral_ports_used",
            "Local ports that cannot be taken for another connection from that address to the destination: open, or in TIME_WAIT and not reusable by tcp_tw_reuse",
            TABLE,
        ),
        folds: WORST,
        emit: |scrape, sink| worst(scrape, sink, |of| Some(Value::Unsigned(of.used))),
    },
    Family {
        descriptor: gauge(
            "backlogd_ephemeral_ports_usable",
            "Local ports that connect can choose from: ip_local_port_range without the reserved ones, those that a listener is bound to, and, once a destination uses an eighth of the range, on Linux 6.8 and later, those that a socket is bound to which neither listens nor is connected",
            "/proc/sys/net/ipv4/ip_local_port_range and ip_local_reserved_ports; sock_diag of TCPF_BOUND_INACTIVE (__inet_hash_connect, net/ipv4/inet_hashtables.c)",
        ),
        folds: WORST,
        emit: |scrape, sink| worst(scrape, sink, |of| Some(Value::Unsigned(of.usable))),
    },
    Family {
        descriptor: gauge(
            "backlogd_ephemeral_ports_exhausted_in_seconds",
            "Time until all are used if they go on growing as they do; absent while they do not grow",
            "line through the used ports of the last reads, against the usable ones",
        ),
        folds: WORST,
        emit: |scrape, sink| {
            worst(scrape, sink, |of| Some(Value::Real(of.exhausted_in.ok()?.as_seconds())))
        },
    },
];

/// The source of what the read of a table tells.
const TABLE: &str = "sock_diag of all states but LISTEN, within table_cpu_ratio";

const WORST: Option<(Group, Fold)> = Some((Group::Destination, Fold::Worst));

const fn gauge(name: &'static str, help: &'static str, source: &'static str) -> Descriptor {
    Descriptor { name, kind: Kind::Gauge, labels: &["netns", "dst", "dst_port"], help, source }
}

/// One series per destination that has a `value`.
fn worst(
    scrape: &Scrape,
    sink: Sink<'_>,
    value: fn(&PortUse) -> Option<Value<'static>>,
) -> fmt::Result {
    for row in &scrape.rows.destinations {
        let of = row.of(&[]).and_then(|it| it.of);
        let Some(value) = of.as_ref().and_then(value) else { continue };
        emit(sink, &row.labels, None, value)?;
    }
    Ok(())
}
