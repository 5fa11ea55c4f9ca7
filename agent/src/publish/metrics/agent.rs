//! The agent's account of itself: how it obtains its numbers, what it lost, what it takes.

use std::fmt;

use super::{FAMILIES as ALL, Family, Scrape, Sink, Value};
use crate::{
    input::Known,
    metric::{Descriptor, Kind},
};

/// The commit that this was built from, where the build says so.
pub(in crate::publish) const COMMIT: &str = match option_env!("BACKLOGD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_hook_info",
            kind: Kind::Info,
            labels: &["event", "tier", "program"],
            help: "How each event is obtained on this kernel: fentry, kprobe, tracepoint, sampled, none",
            source: "what attached at the start",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.snapshot.hooks.iter().try_for_each(|hook| {
                let (tier, program) = (hook.tier.name(), hook.program);
                sink(&[("event", hook.event), ("tier", tier), ("program", program)], Value::Info)
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_hook_missed_total",
            kind: Kind::Counter,
            labels: &["event", "program"],
            help: "Runs of a program that the kernel skipped, since it was running on that CPU already",
            source: "recursion_misses of bpf_prog_info (kernel/bpf/syscall.c)",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.snapshot.agent.missed.iter().try_for_each(|&(event, program, n)| {
                sink(&[("event", event), ("program", program)], Value::Unsigned(n))
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_ebpf_runs_total",
            kind: Kind::Counter,
            labels: &["program"],
            help: "Runs of a program; only while the kernel's BPF statistics are on",
            source: "run_cnt of bpf_prog_info",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape
                .snapshot
                .agent
                .runs
                .iter()
                .try_for_each(|&(program, n, _)| sink(&[("program", program)], Value::Unsigned(n)))
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_ebpf_run_seconds_total",
            kind: Kind::Counter,
            labels: &["program"],
            help: "Time spent in a program; only while the kernel's BPF statistics are on",
            source: "run_time_ns of bpf_prog_info",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.snapshot.agent.runs.iter().try_for_each(|&(program, _, time)| {
                sink(&[("program", program)], Value::Real(time.as_seconds()))
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_events_lost_total",
            kind: Kind::Counter,
            labels: &["stage"],
            help: "Events not counted for a listener: kernel, handshakes that no program saw; no_slot, times that a listening socket asked for a record in vain; stale, of a record given away; map_full, entries that a map of the programs had no room for",
            source: "PassiveOpens of /proc/net/snmp less established; counters of the programs",
        },
        folds: None,
        emit: events_lost,
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_second_copy_total",
            kind: Kind::Counter,
            labels: &[],
            help: "Handshakes that the kernel skipped the first copy of the program for, and that the second one counted",
            source: "counters of the programs",
        },
        folds: None,
        emit: |scrape, sink| match scrape.snapshot.agent.second_copy {
            Ok(n) => sink(&[], Value::Unsigned(n)),
            Err(_) => Ok(()),
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_open_corrections_total",
            kind: Kind::Counter,
            labels: &[],
            help: "Ends of connections that no program saw, and that a count of the connections that are there showed; closed and open_connections include them",
            source: "the tags of all connections, counted by an iterator every ten seconds (bpf_sk_storage_map_seq_ops, net/core/bpf_sk_storage.c)",
        },
        folds: None,
        emit: |scrape, sink| match scrape.snapshot.agent.corrections {
            Ok(n) => sink(&[], Value::Unsigned(n)),
            Err(_) => Ok(()),
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_closer_looks_total",
            kind: Kind::Counter,
            labels: &[],
            help: "Times that the tracepoints of system calls were switched on for five seconds, to see why a stalled listener does not accept; absent where other hooks see that",
            source: "what attached, at most once a minute",
        },
        folds: None,
        emit: |scrape, sink| match scrape.snapshot.agent.closer_looks {
            Ok(looks) => sink(&[], Value::Unsigned(looks.count)),
            Err(_) => Ok(()),
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_closer_look_active",
            kind: Kind::Gauge,
            labels: &[],
            help: "1 while they are on, else 0",
            source: "what is attached",
        },
        folds: None,
        emit: |scrape, sink| match scrape.snapshot.agent.closer_looks {
            Ok(looks) => sink(&[], Value::Unsigned(looks.is_on.into())),
            Err(_) => Ok(()),
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_series_folded_total",
            kind: Kind::Counter,
            labels: &["family"],
            help: "Times that a listener, UDP socket, namespace, local port or destination got no series of its own in this family, or lost it, since there are more than series_limit",
            source: "the scrapes",
        },
        folds: None,
        emit: |scrape, sink| {
            ALL.iter().copied().flatten().try_for_each(|family| match family.folds {
                Some((group, _)) => {
                    let n = Value::Unsigned(scrape.rows.n_folded(group));
                    sink(&[("family", family.descriptor.name)], n)
                }
                None => Ok(()),
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_map_entries",
            kind: Kind::Gauge,
            labels: &["map"],
            help: "Entries in use of a BPF map",
            source: "records in use",
        },
        folds: None,
        emit: |scrape, sink| slots(scrape, sink, |(used, _)| used),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_map_capacity",
            kind: Kind::Gauge,
            labels: &["map"],
            help: "Entries that a BPF map can hold",
            source: "max_entries of the map",
        },
        folds: None,
        emit: |scrape, sink| slots(scrape, sink, |(_, capacity)| capacity),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_sample_duration_seconds",
            kind: Kind::Histogram,
            labels: &["source"],
            help: "Time that a sample took, by source; total is the whole of it",
            source: "CLOCK_MONOTONIC around each source",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.snapshot.agent.durations.iter().try_for_each(|(source, durations)| {
                sink(&[("source", source.name())], Value::Durations(durations))
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_build_info",
            kind: Kind::Info,
            labels: &["version", "commit"],
            help: "Which backlogd this is",
            source: "the build",
        },
        folds: None,
        emit: |_, sink| {
            sink(&[("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)], Value::Info)
        },
    },
];

fn events_lost(scrape: &Scrape, sink: Sink<'_>) -> fmt::Result {
    let snapshot = &scrape.snapshot;
    let kernel = snapshot.namespaces.iter().filter_map(|namespace| namespace.lost_in_kernel.ok());
    let stages: [(&str, Option<u64>); 4] = [
        ("kernel", kernel.reduce(|sum, n| sum + n)),
        ("no_slot", snapshot.agent.no_slot.ok()),
        ("stale", snapshot.agent.stale.ok()),
        ("map_full", snapshot.agent.map_full.ok()),
    ];
    stages.into_iter().try_for_each(|(stage, n)| match n {
        Some(n) => sink(&[("stage", stage)], Value::Unsigned(n)),
        None => Ok(()),
    })
}

fn slots(scrape: &Scrape, sink: Sink<'_>, value: fn((u32, u32)) -> u32) -> fmt::Result {
    let slots: Known<(u32, u32)> = scrape.snapshot.agent.slots;
    slots.map_or(Ok(()), |slots| sink(&[("map", "slots")], Value::Unsigned(value(slots).into())))
}
