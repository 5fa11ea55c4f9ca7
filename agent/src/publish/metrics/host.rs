//! Processes that own listeners, and host totals.

use std::{collections::BTreeMap, fmt};

use super::{Family, Scrape, Sink, Value};
use crate::{
    input::{Known, ProcessSample, TcpMemoryLimits},
    metric::{Descriptor, Kind},
    time::Nanos,
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_process_open_fds",
            kind: Kind::Gauge,
            labels: &["comm"],
            help: "Open descriptors of the process nearest to its limit, of all that own listeners and have this name",
            source: "size of /proc/PID/fd (proc_readfd_count, fs/proc/fd.c)",
        },
        folds: None,
        emit: |scrape, sink| worst(scrape, sink, |fds| Value::Unsigned(fds.open)),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_process_max_fds",
            kind: Kind::Gauge,
            labels: &["comm"],
            help: "Soft limit of open descriptors of the same process; 18446744073709551615 is unlimited",
            source: "Max open files of /proc/PID/limits",
        },
        folds: None,
        emit: |scrape, sink| worst(scrape, sink, |fds| Value::Unsigned(fds.max)),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_process_fd_ratio_max",
            kind: Kind::Gauge,
            labels: &["comm"],
            help: "open / limit of that process, the highest of all of this name",
            source: "the two above",
        },
        folds: None,
        emit: |scrape, sink| worst(scrape, sink, |fds| Value::Real(fds.ratio())),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_process_fds_exhausted_in_seconds",
            kind: Kind::Gauge,
            labels: &["comm"],
            help: "Time until a process that owns listeners has no descriptor left if they go on growing as they do, the soonest of this name; absent while they do not grow",
            source: "line through the last open descriptors, against the limit",
        },
        folds: None,
        emit: soonest,
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_host_open_fds",
            kind: Kind::Gauge,
            labels: &[],
            help: "Open files of the host",
            source: "first number of /proc/sys/fs/file-nr",
        },
        folds: None,
        emit: |scrape, sink| one(sink, scrape.snapshot.host.open_fds),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_host_max_fds",
            kind: Kind::Gauge,
            labels: &[],
            help: "Most open files that the host allows",
            source: "third number of /proc/sys/fs/file-nr",
        },
        folds: None,
        emit: |scrape, sink| one(sink, scrape.snapshot.host.max_fds),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_tcp_memory_bytes",
            kind: Kind::Gauge,
            labels: &[],
            help: "Memory that the buffers of all TCP sockets of the host hold, in whole pages",
            source: "mem of TCP in /proc/net/sockstat; since 6.0 without up to 1 MiB per processor (sk_memory_allocated_add, include/net/proto_memory.h)",
        },
        folds: None,
        emit: |scrape, sink| one(sink, scrape.snapshot.host.tcp_memory_bytes),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_tcp_memory_limit_bytes",
            kind: Kind::Gauge,
            labels: &["level"],
            help: "Limits of that memory: low, nothing is restrained below it; pressure, the kernel saves memory above it; high, nothing is allocated above it",
            source: "/proc/sys/net/ipv4/tcp_mem",
        },
        folds: None,
        emit: |scrape, sink| {
            let Ok(limits) = scrape.snapshot.host.tcp_memory_limits else { return Ok(()) };
            let TcpMemoryLimits { low_bytes, pressure_bytes, high_bytes } = limits;
            let levels = [("low", low_bytes), ("pressure", pressure_bytes), ("high", high_bytes)];
            levels
                .into_iter()
                .try_for_each(|(level, n)| sink(&[("level", level)], Value::Unsigned(n)))
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_tcp_orphans",
            kind: Kind::Gauge,
            labels: &[],
            help: "TCP sockets of the host that no descriptor refers to and that are not closed",
            source: "orphan of TCP in /proc/net/sockstat (sockstat_seq_show, net/ipv4/proc.c)",
        },
        folds: None,
        emit: |scrape, sink| one(sink, scrape.snapshot.host.tcp_orphans),
    },
];

fn one(sink: Sink<'_>, known: Known<u64>) -> fmt::Result {
    known.map_or(Ok(()), |n| sink(&[], Value::Unsigned(n)))
}

/// Descriptors of one process.
#[derive(Clone, Copy)]
struct Fds {
    open: u64,
    max: u64,
}

impl Fds {
    fn of(process: &ProcessSample) -> Option<Self> {
        Some(Self { open: process.open_fds.ok()?, max: process.max_fds.ok()? })
    }

    /// A limit of 0 counts as 1, as that of an accept queue does.
    fn ratio(self) -> f64 {
        match self.max {
            u64::MAX => 0.0,
            max => self.open as f64 / max.max(1) as f64,
        }
    }
}

/// One series per name: of the process of that name that is nearest to its limit.
fn worst(scrape: &Scrape, sink: Sink<'_>, value: fn(Fds) -> Value<'static>) -> fmt::Result {
    let mut worst: BTreeMap<&str, Fds> = BTreeMap::new();
    for process in scrape.snapshot.processes.values() {
        let Some(fds) = Fds::of(&process.now) else { continue };
        let seen = worst.entry(&process.now.comm).or_insert(fds);
        if seen.ratio() < fds.ratio() {
            *seen = fds;
        }
    }
    worst.into_iter().try_for_each(|(comm, fds)| sink(&[("comm", comm)], value(fds)))
}

/// One series per name whose descriptors grow: of the process that will have none first.
fn soonest(scrape: &Scrape, sink: Sink<'_>) -> fmt::Result {
    let mut soonest: BTreeMap<&str, Nanos> = BTreeMap::new();
    for process in scrape.snapshot.processes.values() {
        let Ok(left) = process.fds_exhausted_in else { continue };
        let seen = soonest.entry(&process.now.comm).or_insert(left);
        *seen = left.min(*seen);
    }
    let mut soonest = soonest.into_iter();
    soonest.try_for_each(|(comm, left)| sink(&[("comm", comm)], Value::Real(left.as_seconds())))
}
