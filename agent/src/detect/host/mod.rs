//! Detections about the host as a whole.

mod fds_near_limit;
mod tcp_memory_pressure;

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::Arc,
};

use crate::{
    detect::{
        book::Kind,
        climb::Climb,
        history::History,
        rule::{COUNTERS, Look, Rule},
        subject::{Labels, Subject, SubjectKind},
        sums::Sums,
        tuning::{Target, Tuning},
    },
    input::HostSample,
    model::snapshot::Snapshot,
};

/// The host: one subject.
pub(super) struct Host;

/// A look at it.
type At<'i, 'a> = Look<'i, 'a, Host>;

/// What is remembered of it.
#[derive(Default)]
pub(super) struct Memory {
    /// Connections ended for want of memory, over all namespaces.
    aborts: Sums<1>,
    /// Open files.
    files: Climb,
}

impl Kind for Host {
    type Key = ();
    type Item<'a> = &'a HostSample;
    type Memory = Memory;

    const KIND: SubjectKind = SubjectKind::Host;

    const RULES: &'static [Rule<Self>] = &[fds_near_limit::RULE, tcp_memory_pressure::RULE];

    fn each<'a>(now: &'a Snapshot, _: &'a Tuning, visit: &mut dyn FnMut((), &'a HostSample)) {
        visit((), &now.host);
    }

    fn counters(_: &HostSample, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        [None; COUNTERS]
    }

    fn remember(memory: &mut Memory, host: &HostSample, _: &History<COUNTERS>, now: &Snapshot) {
        if let Ok(open) = host.open_fds {
            memory.files.push(now.at, open);
        }
        let mut who = DefaultHasher::new();
        let mut sum = 0;
        for namespace in &now.namespaces {
            let count = namespace.netstat.as_ref().ok().and_then(|it| it.get("TCPAbortOnMemory"));
            if let Some(count) = count {
                namespace.netns.hash(&mut who);
                sum += count;
            }
        }
        memory.aborts.push(now.at, Some((who.finish(), [sum])));
    }

    fn target(_: &HostSample) -> Target {
        Target::default()
    }

    fn subject(_: &HostSample, _: &Snapshot) -> Subject {
        Subject {
            kind: Self::KIND,
            name: "this host".to_owned(),
            labels: Labels::default(),
            pids: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests;
