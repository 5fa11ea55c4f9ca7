//! Network namespaces: sockets by state, the kernel's own counters and limits, the reads of their tables.

use std::fmt;

use super::{Family, Scrape, Sink, Value, emit};
use crate::{
    metric::{Descriptor, Fold, Group, Kind},
    publish::fold::{Read, Space},
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_sockets",
            kind: Kind::Gauge,
            labels: &["netns", "state"],
            help: "TCP sockets of a namespace by state, in the newest read of its table, if that was not partial. listen is from each sample, time_wait likewise or, in other namespaces than the agent's, from the newest read of its counters; time_wait has those, too, whose peer has not closed, which are in fin_wait_2 as well",
            source: "sock_diag of all states but LISTEN, within table_cpu_ratio; sock_diag of LISTEN; tw of TCP in /proc/net/sockstat",
        },
        folds: SUM,
        emit: states,
    },
    Family {
        descriptor: gauge(
            "backlogd_connected_sockets",
            "Connections of a namespace in ESTABLISHED or CLOSE_WAIT",
            "CurrEstab of /proc/net/snmp",
        ),
        folds: SUM,
        emit: |scrape, sink| one(scrape, sink, |space| space.connected.ok().map(Value::Unsigned)),
    },
    Family {
        descriptor: gauge(
            "backlogd_table_age_seconds",
            "Time since the newest read of a namespace's table of sockets began",
            "CLOCK_MONOTONIC",
        ),
        folds: MAX,
        emit: |scrape, sink| read(scrape, sink, |it| Value::Real(it.age.as_seconds())),
    },
    Family {
        descriptor: gauge(
            "backlogd_table_read_seconds",
            "How long that read took",
            "CLOCK_MONOTONIC around it",
        ),
        folds: MAX,
        emit: |scrape, sink| read(scrape, sink, |it| Value::Real(it.took.as_seconds())),
    },
    Family {
        descriptor: gauge("backlogd_table_rows", "Sockets that it saw", "rows of the dump"),
        folds: SUM,
        emit: |scrape, sink| read(scrape, sink, |it| Value::Unsigned(it.rows)),
    },
    Family {
        descriptor: gauge(
            "backlogd_table_partial",
            "1 if it stopped at its budget, or saw more destinations than it has room for, so that its numbers are lower bounds; else 0",
            "the read",
        ),
        folds: MAX,
        emit: |scrape, sink| read(scrape, sink, |it| Value::Unsigned(it.is_partial.into())),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_sysctl_value",
            kind: Kind::Gauge,
            labels: &["netns", "name"],
            help: "The kernel settings that explain a limit; a pair has names with _low and _high. Read every ten seconds, in other namespaces more seldom where there are more than forty",
            source: "/proc/sys/net",
        },
        folds: Some((Group::Namespace, Fold::Omitted)),
        emit: |scrape, sink| {
            by(scrape, sink, "name", |space| {
                space.sysctls.iter().map(|(&name, &n)| (name, Value::Signed(n))).collect()
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_netstat_total",
            kind: Kind::Counter,
            labels: &["netns", "field"],
            help: "The kernel's own counters of a namespace: the ground truth to compare with",
            source: "/proc/net/netstat and snmp (netstat_seq_show and snmp_seq_show, net/ipv4/proc.c)",
        },
        folds: Some((Group::Namespace, Fold::Growth)),
        emit: |scrape, sink| {
            by(scrape, sink, "field", |space| {
                space.netstat.iter().map(|(&field, &n)| (field, Value::Unsigned(n))).collect()
            })
        },
    },
];

const SUM: Option<(Group, Fold)> = Some((Group::Namespace, Fold::Sum));
const MAX: Option<(Group, Fold)> = Some((Group::Namespace, Fold::Max));

const fn gauge(name: &'static str, help: &'static str, source: &'static str) -> Descriptor {
    Descriptor { name, kind: Kind::Gauge, labels: &["netns"], help, source }
}

/// By state: of the table what is not counted anew in each sample.
fn states(scrape: &Scrape, sink: Sink<'_>) -> fmt::Result {
    const FRESH: &str = "time_wait";
    by(scrape, sink, "state", |space| {
        let read = space.table.as_ref().ok().filter(|read| !read.is_partial);
        let states = read.iter().flat_map(|read| &read.states);
        let fresh = [("listen", space.listening), (FRESH, space.time_wait)];
        let fresh = fresh.into_iter().filter_map(|(state, n)| Some((state, n.ok()?)));
        let is_stale = |state: &str| state == FRESH && space.time_wait.is_ok();
        let states = states.map(|(&state, &n)| (state, n)).filter(|(state, _)| !is_stale(state));
        states.chain(fresh).map(|(state, n)| (state, Value::Unsigned(n))).collect()
    })
}

/// One series per namespace whose table was read.
fn read(scrape: &Scrape, sink: Sink<'_>, value: fn(&Read) -> Value<'static>) -> fmt::Result {
    one(scrape, sink, |space| space.table.as_ref().ok().map(value))
}

/// One series per namespace that has a `value`.
fn one(
    scrape: &Scrape,
    sink: Sink<'_>,
    value: impl Fn(&Space) -> Option<Value<'static>>,
) -> fmt::Result {
    for row in &scrape.rows.namespaces {
        let Some(value) = row.of(&[]).and_then(&value) else { continue };
        emit(sink, &row.labels, None, value)?;
    }
    Ok(())
}

/// One series per namespace and value, whose name goes to `label`.
fn by(
    scrape: &Scrape,
    sink: Sink<'_>,
    label: &str,
    values: fn(&Space) -> Vec<(&'static str, Value<'static>)>,
) -> fmt::Result {
    for row in &scrape.rows.namespaces {
        let Some(space) = row.of(&[]) else { continue };
        for (name, value) in values(space) {
            emit(sink, &row.labels, Some((label, name)), value)?;
        }
    }
    Ok(())
}
