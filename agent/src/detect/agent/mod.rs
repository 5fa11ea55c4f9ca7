//! Detections about the agent itself.

mod degraded;
mod events_lost;
mod sample_slow;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::Arc,
};

use crate::{
    detect::{
        book::Kind,
        history::History,
        rule::{COUNTERS, Look, Rule, minutes},
        subject::{Labels, Subject, SubjectKind},
        sums::Sums,
        tuning::{Target, Tuning},
    },
    input::Source,
    intern::Name,
    model::snapshot::{self, Snapshot},
    time::{Monotonic, Nanos},
};

/// The agent: one subject.
pub(super) struct Agent;

/// A look at it.
type At<'i, 'a> = Look<'i, 'a, Agent>;

/// What is remembered of it.
#[derive(Default)]
pub(super) struct Memory {
    sums: Sums<2>,
    /// Sources that could not be read when the agent started, and not since: that is how it was
    /// installed, or how the host is, and `doctor` and `check` say so.
    from_start: BTreeSet<Name>,
    first: Option<Monotonic>,
}

/// What belongs to the start.
const START: Nanos = minutes(1);

/// What the counters are, by place.
const NO_SLOT: usize = 0;
const STALE: usize = 1;
const MAP_FULL: usize = 2;
const SAMPLES: usize = 3;
/// What they took together.
const MICROSECONDS: usize = 4;

/// Sums over namespaces: handshakes that no program saw, and all by PassiveOpens.
const LOST: usize = 0;
const OPENS: usize = 1;

impl Kind for Agent {
    type Key = ();
    type Item<'a> = &'a snapshot::Agent;
    type Memory = Memory;

    const KIND: SubjectKind = SubjectKind::Agent;

    const RULES: &'static [Rule<Self>] = &[degraded::RULE, events_lost::RULE, sample_slow::RULE];

    fn each<'a>(now: &'a Snapshot, _: &'a Tuning, visit: &mut dyn FnMut((), &'a snapshot::Agent)) {
        visit((), &now.agent);
    }

    fn counters(agent: &snapshot::Agent, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        let total = agent.durations.get(&Source::Total);
        let mut counters = [None; COUNTERS];
        counters[NO_SLOT] = agent.no_slot.ok();
        counters[STALE] = agent.stale.ok();
        counters[MAP_FULL] = agent.map_full.ok();
        counters[SAMPLES] = total.map(|it| it.buckets.iter().sum());
        counters[MICROSECONDS] = total.map(|it| it.sum.0 / 1_000);
        counters
    }

    fn remember(
        Memory { sums, from_start, first }: &mut Memory,
        _: &snapshot::Agent,
        _: &History<COUNTERS>,
        now: &Snapshot,
    ) {
        if now.at - *first.get_or_insert(now.at) <= START {
            from_start.extend(now.degraded.keys().copied());
        }
        from_start.retain(|source| now.degraded.contains_key(source));
        let mut who = DefaultHasher::new();
        let (mut lost, mut opens) = (0, 0);
        for namespace in &now.namespaces {
            let netstat = namespace.netstat.as_ref().ok();
            let passive = netstat.and_then(|netstat| netstat.get("PassiveOpens"));
            if let (Ok(n), Some(passive)) = (namespace.lost_in_kernel, passive) {
                namespace.netns.hash(&mut who);
                lost += n;
                opens += passive;
            }
        }
        sums.push(now.at, Some((who.finish(), [lost, opens])));
    }

    fn target(_: &snapshot::Agent) -> Target {
        Target::default()
    }

    fn subject(_: &snapshot::Agent, _: &Snapshot) -> Subject {
        Subject {
            kind: Self::KIND,
            name: "backlogd".to_owned(),
            labels: Labels::default(),
            pids: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests;
