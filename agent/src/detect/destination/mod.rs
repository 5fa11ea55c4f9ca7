//! Detections about destinations of outbound connections, by the local ports in use towards them.

mod connection_per_request;
mod ports_near_limit;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    detect::{
        book::Kind,
        climb::Climb,
        command::{inside, set_sysctl, widen_ports},
        history::History,
        rule::{COUNTERS, Look, Rule},
        shell::quoted,
        subject::{Labels, Place, Subject, SubjectKind},
        tuning::{Target, Tuning},
    },
    id::NetnsId,
    input::{Absent, Known},
    model::snapshot::{Namespace, PortUse, Snapshot},
    time::Monotonic,
};

/// Destinations that use a part of the local ports.
pub(super) struct Destinations;

/// A look at one.
type At<'i, 'a> = Look<'i, 'a, Destinations>;

/// What is below both is not remembered.
const LEAST_RATIO: f64 = 0.05;
const LEAST_TIME_WAIT: u64 = 100;

/// A destination from the source address with the most ports in use; an absence stands for all
/// destinations of a namespace.
#[derive(Clone, Copy)]
pub(super) struct Towards<'a> {
    namespace: &'a Namespace,
    ports: Known<&'a PortUse>,
    /// When the table was read.
    read: Monotonic,
}

/// The last two reads.
#[derive(Default)]
pub(super) struct Memory {
    read: Option<Monotonic>,
    newest: Option<PortUse>,
    before: Option<PortUse>,
    climb: Climb,
}

impl Kind for Destinations {
    type Key = (NetnsId, Option<(IpAddr, u16)>);
    type Item<'a> = Towards<'a>;
    type Memory = Memory;

    const KIND: SubjectKind = SubjectKind::Destination;

    const RULES: &'static [Rule<Self>] = &[connection_per_request::RULE, ports_near_limit::RULE];

    fn each<'a>(now: &'a Snapshot, _: &'a Tuning, visit: &mut dyn FnMut(Self::Key, Towards<'a>)) {
        for namespace in &now.namespaces {
            let read = namespace.table.as_ref().map_or_else(|_| now.at, |read| read.at);
            let ports = match &namespace.ports {
                Ok(ports) => ports,
                // a namespace with nothing but listeners is never read
                Err(Absent::TooEarly) => continue,
                Err(absent) => {
                    let ports = Err(*absent);
                    visit((namespace.netns, None), Towards { namespace, ports, read });
                    continue;
                }
            };
            let key = |it: &PortUse| (it.destination.addr, it.destination.port);
            let mut busy: Vec<&PortUse> = ports.iter().filter(|it| is_busy(it)).collect();
            busy.sort_by_key(|it| (key(it), std::cmp::Reverse(it.used)));
            busy.dedup_by_key(|it| key(it));
            for ports in busy {
                let key = (namespace.netns, Some(key(ports)));
                visit(key, Towards { namespace, ports: Ok(ports), read });
            }
        }
    }

    fn counters(_: Towards<'_>, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        [None; COUNTERS]
    }

    fn remember(memory: &mut Memory, it: Towards<'_>, _: &History<COUNTERS>, _: &Snapshot) {
        let Ok(ports) = it.ports else { return };
        if memory.read != Some(it.read) {
            memory.read = Some(it.read);
            memory.before = memory.newest.replace(*ports);
            memory.climb.push(it.read, ports.used);
        }
    }

    fn target(it: Towards<'_>) -> Target {
        let to = it.ports.ok().map(|ports| ports.destination);
        Target {
            addr: to.map(|to| to.addr),
            port: to.map(|to| to.port),
            netns: Some(it.namespace.netns),
            ..Target::default()
        }
    }

    fn subject(it: Towards<'_>, _: &Snapshot) -> Subject {
        let to = it.ports.ok().map(|ports| ports.destination);
        Subject {
            kind: Self::KIND,
            name: to.map_or_else(String::new, |to| format!("to {}", Place(to.addr, to.port))),
            labels: Labels {
                netns: Some(it.namespace.netns),
                dst: to.map(|to| to.addr),
                dst_port: to.map(|to| to.port),
                ..Labels::default()
            },
            pids: Arc::default(),
        }
    }
}

fn is_busy(ports: &PortUse) -> bool {
    LEAST_TIME_WAIT <= ports.destination.time_wait
        || (0 < ports.usable && LEAST_RATIO <= ports.ratio())
}

/// How many ports are in use towards a destination, of how many, and by what.
pub(super) fn describe(ports: &PortUse) -> String {
    let to = ports.destination;
    format!(
        "{} of {} local ports of {} are in use towards {}: {} in TIME_WAIT, {} open",
        ports.used,
        ports.usable,
        to.source,
        Place(to.addr, to.port),
        to.time_wait,
        to.open
    )
}

/// Why they are in use, where the table tells.
pub(super) fn cause(ports: &PortUse, sysctls: &BTreeMap<&'static str, i64>) -> Option<String> {
    let (open, time_wait) = (ports.destination.open, ports.destination.time_wait);
    (10 * open < time_wait).then(|| {
        let reuse = sysctls.get("tcp_tw_reuse");
        let reuse = reuse.map_or_else(String::new, |reuse| format!("; net.ipv4.tcp_tw_reuse is {reuse}"));
        format!("a new connection for each request: each holds its port for 60 s after it has ended{reuse}")
    })
}

/// What makes room.
pub(super) fn mend(ports: &PortUse, namespace: &Namespace, now: &Snapshot) -> String {
    let (sysctls, netns) = (&namespace.sysctls, namespace.netns);
    let to = ports.destination;
    let mostly_waits = to.open < to.time_wait;
    if mostly_waits && sysctls.get("tcp_tw_reuse").is_some_and(|reuse| *reuse != 1) {
        return set_sysctl(now, netns, "net.ipv4.tcp_tw_reuse=1");
    }
    widen_ports(now, namespace).unwrap_or_else(|| {
        inside(
            now,
            netns,
            &format!("ss -tanp dst {}", quoted(&Place(to.addr, to.port).to_string())),
        )
    })
}

#[cfg(test)]
mod tests;
