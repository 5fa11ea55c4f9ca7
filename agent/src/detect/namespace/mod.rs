//! Detections about one network namespace, by the kernel's own counters.

mod counters_disagree;
mod time_wait_overflow;

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::Arc,
};

use crate::{
    detect::{
        book::Kind,
        history::History,
        rule::{COUNTERS, Look, Rule},
        subject::{Labels, Subject, SubjectKind},
        sums::Sums,
        tuning::{Target, Tuning},
    },
    id::NetnsId,
    input::{Absent, Known},
    model::snapshot::{Listener, Namespace, Snapshot},
};

/// Network namespaces.
pub(super) struct Namespaces;

/// A look at one.
type At<'i, 'a> = Look<'i, 'a, Namespaces>;

/// What the counter is, by place.
const TIME_WAIT_OVERFLOW: usize = 0;

/// Sums over a namespace: the kernel's ListenDrops, and the listen drops of its listeners.
const KERNEL: usize = 0;
const OURS: usize = 1;

/// A namespace, and its listeners.
#[derive(Clone, Copy)]
pub(super) struct Space<'a> {
    namespace: &'a Namespace,
    listeners: &'a [Listener],
}

impl Kind for Namespaces {
    type Key = NetnsId;
    type Item<'a> = Space<'a>;
    type Memory = Sums<2>;

    const KIND: SubjectKind = SubjectKind::Namespace;

    const RULES: &'static [Rule<Self>] = &[counters_disagree::RULE, time_wait_overflow::RULE];

    fn each<'a>(now: &'a Snapshot, _: &'a Tuning, visit: &mut dyn FnMut(NetnsId, Space<'a>)) {
        for namespace in &now.namespaces {
            // listeners are in the order of their keys, and those begin with the namespace
            let netns = namespace.netns;
            let from = now.listeners.partition_point(|it| it.key.netns < netns);
            let rest = &now.listeners[from..];
            let listeners = &rest[..rest.partition_point(|it| it.key.netns == netns)];
            visit(netns, Space { namespace, listeners });
        }
    }

    fn counters(it: Space<'_>, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        let mut counters = [None; COUNTERS];
        counters[TIME_WAIT_OVERFLOW] = it.field("TCPTimeWaitOverflow").ok();
        counters
    }

    fn remember(sums: &mut Sums<2>, it: Space<'_>, _: &History<COUNTERS>, now: &Snapshot) {
        sums.push(now.at, drops(it));
    }

    fn target(it: Space<'_>) -> Target {
        Target { netns: Some(it.namespace.netns), ..Target::default() }
    }

    fn subject(it: Space<'_>, _: &Snapshot) -> Subject {
        let netns = it.namespace.netns;
        Subject {
            kind: Self::KIND,
            name: netns.to_string(),
            labels: Labels { netns: Some(netns), ..Labels::default() },
            pids: Arc::default(),
        }
    }
}

impl Space<'_> {
    /// One of the kernel's counters.
    fn field(&self, name: &str) -> Known<u64> {
        let netstat = self.namespace.netstat.as_ref().map_err(|absent| *absent)?;
        netstat.get(name).copied().ok_or(Absent::NotOnThisKernel)
    }
}

/// Which listeners there are, ListenDrops, and the sum over them; `None` unless all are known.
fn drops(it: Space<'_>) -> Option<(u64, [u64; 2])> {
    let kernel = it.field("ListenDrops").ok()?;
    let mut who = DefaultHasher::new();
    let mut ours = 0;
    for listener in it.listeners {
        listener.key.hash(&mut who);
        ours += listener.counters.drops.ok()?;
    }
    Some((who.finish(), [kernel, ours]))
}

#[cfg(test)]
mod tests;
