//! Processes that own listeners, host totals, and the kernel's own counters and limits.

use std::{collections::BTreeMap, fmt};

use super::{Family, Scrape, Sink, Value};
use crate::{
    input::{Known, ProcessSample},
    metric::{Descriptor, Kind},
    model::snapshot::Namespace,
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
        emit: |scrape, sink| worst(scrape, sink, |fds| Value::Real(fds.ratio())),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_host_open_fds",
            kind: Kind::Gauge,
            labels: &[],
            help: "Open files of the host",
            source: "first number of /proc/sys/fs/file-nr",
        },
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
        emit: |scrape, sink| one(sink, scrape.snapshot.host.max_fds),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_sysctl_value",
            kind: Kind::Gauge,
            labels: &["netns", "name"],
            help: "The kernel settings that explain a limit; a pair has names with _low and _high",
            source: "/proc/sys/net",
        },
        emit: |scrape, sink| {
            by_netns(scrape, sink, "name", |namespace| {
                namespace.sysctls.iter().map(|(&name, &n)| (name, Value::Signed(n))).collect()
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
        emit: |scrape, sink| {
            by_netns(scrape, sink, "field", |namespace| {
                let fields = namespace.netstat.iter().flat_map(|fields| fields.iter());
                fields.map(|(&field, &n)| (field, Value::Unsigned(n))).collect()
            })
        },
    },
];

fn one(sink: Sink<'_>, known: Known<u64>) -> fmt::Result {
    known.map_or(Ok(()), |n| sink(&[], Value::Unsigned(n)))
}

fn by_netns(
    scrape: &Scrape,
    sink: Sink<'_>,
    label: &str,
    values: fn(&Namespace) -> Vec<(&'static str, Value<'static>)>,
) -> fmt::Result {
    for namespace in &scrape.snapshot.namespaces {
        let netns = namespace.netns.0.to_string();
        for (name, value) in values(namespace) {
            sink(&[("netns", &netns), (label, name)], value)?;
        }
    }
    Ok(())
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
