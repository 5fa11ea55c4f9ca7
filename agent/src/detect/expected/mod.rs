//! Detections about listeners that the configuration wants to be there.

mod down;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    detect::{
        book::Kind,
        history::History,
        rule::{COUNTERS, Look, Rule},
        subject::{Labels, Place, Subject, SubjectKind},
        tuning::{Expected, Match, Target, Tuning},
    },
    input::{Absent, Known, Workload},
    model::snapshot::{Listener, Snapshot},
    time::Monotonic,
};

/// Listeners of the configuration.
pub(super) struct ExpectedListeners;

/// A look at one.
type At<'i, 'a> = Look<'i, 'a, ExpectedListeners>;

/// How the listener stands.
#[derive(Default)]
pub(super) enum Memory {
    /// Somebody listens there.
    #[default]
    Up,
    /// Nobody listens there.
    Missing {
        /// Since this sample.
        since: Monotonic,
    },
    /// Somebody listens there, and whether it is the one that is wanted is not known.
    Unknown(Absent),
}

impl Kind for ExpectedListeners {
    type Key = (Option<IpAddr>, u16, Option<Arc<str>>);
    type Item<'a> = &'a Expected;
    type Memory = Memory;

    const KIND: SubjectKind = SubjectKind::Expected;

    const RULES: &'static [Rule<Self>] = &[down::RULE];

    fn each<'a>(
        _: &'a Snapshot,
        tuning: &'a Tuning,
        visit: &mut dyn FnMut(Self::Key, &'a Expected),
    ) {
        let key = |it: &Expected| (it.addr, it.port, it.namespace.as_ref().map(|it| it.0.clone()));
        for (i, expected) in tuning.expected.iter().enumerate() {
            let key = key(expected);
            let same = |it: &Expected| {
                (it.addr, it.port, &it.namespace)
                    == (expected.addr, expected.port, &expected.namespace)
            };
            if !tuning.expected[..i].iter().any(same) {
                visit(key, expected);
            }
        }
    }

    fn counters(_: &Expected, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        [None; COUNTERS]
    }

    fn remember(memory: &mut Memory, expected: &Expected, _: &History<COUNTERS>, now: &Snapshot) {
        *memory = match (is_up(now, expected), &*memory) {
            (Ok(true), _) => Memory::Up,
            (Ok(false), &Memory::Missing { since }) => Memory::Missing { since },
            (Ok(false), Memory::Up | Memory::Unknown(_)) => Memory::Missing { since: now.at },
            (Err(why), _) => Memory::Unknown(why),
        };
    }

    fn target(expected: &Expected) -> Target {
        let namespace = expected.namespace.as_ref().map(|pattern| pattern.0.clone());
        Target {
            addr: expected.addr,
            port: Some(expected.port),
            workload: Arc::new(Workload { namespace, ..Workload::default() }),
            ..Target::default()
        }
    }

    fn subject(expected: &Expected, _: &Snapshot) -> Subject {
        let place = match expected.addr {
            Some(addr) => Place(addr, expected.port).to_string(),
            None => format!("port {}", expected.port),
        };
        let namespace = expected.namespace.as_ref().map(|pattern| pattern.0.clone());
        Subject {
            kind: Self::KIND,
            name: match &namespace {
                Some(namespace) => format!("{place} in {namespace}"),
                None => place,
            },
            labels: labels(expected),
            pids: Arc::default(),
        }
    }
}

/// By what it is named: no two that are judged have the same.
fn labels(expected: &Expected) -> Labels {
    Labels {
        addr: expected.addr,
        port: Some(expected.port),
        namespace: expected.namespace.as_ref().map(|pattern| pattern.0.clone()),
        ..Labels::default()
    }
}

/// All of them, each once, and whether they are there.
pub(super) fn all(now: &Snapshot, tuning: &Tuning) -> Vec<(Labels, Known<bool>)> {
    let mut all = Vec::new();
    ExpectedListeners::each(now, tuning, &mut |_, it| all.push((labels(it), is_up(now, it))));
    all
}

/// Whether an entry of the configuration is for it.
#[must_use]
pub fn is_matched(only: &Match, expected: &Expected) -> bool {
    only.takes(&ExpectedListeners::target(expected))
}

/// Whether somebody listens there.
///
/// # Errors
/// Somebody does, and the Kubernetes namespace that is wanted cannot be told of them.
pub fn is_up(now: &Snapshot, expected: &Expected) -> Known<bool> {
    let listeners = now.listeners.iter().filter(|listener| {
        !listener.members.is_empty()
            && listener.key.port == expected.port
            && expected.addr.is_none_or(|addr| takes(listener, addr))
    });
    let Some(wanted) = &expected.namespace else { return Ok(0 < listeners.count()) };
    let mut up = Ok(false);
    for listener in listeners {
        match namespace(&listener.workload) {
            Ok(Some(found)) if wanted.takes(found) => return Ok(true),
            Ok(_) => {}
            Err(why) => up = Err(why),
        }
    }
    up
}

/// The Kubernetes namespace of a listener's owner; `None`: it is in none, as a service of systemd that is
/// no container.
fn namespace(workload: &Workload) -> Known<Option<&str>> {
    let Workload { unit, container_id, pod_uid, namespace, .. } = workload;
    match namespace {
        Some(namespace) => Ok(Some(namespace)),
        None if unit.is_some() && container_id.is_none() && pod_uid.is_none() => Ok(None),
        None => Err(Absent::Unreadable),
    }
}

/// Whether connections to `addr` reach it: it is bound to that address or to all.
fn takes(listener: &Listener, addr: IpAddr) -> bool {
    let bound = listener.key.addr;
    bound == addr
        || match addr {
            IpAddr::V4(_) => {
                bound == Ipv4Addr::UNSPECIFIED
                    || (bound == Ipv6Addr::UNSPECIFIED && !listener.v6only)
            }
            IpAddr::V6(_) => bound == Ipv6Addr::UNSPECIFIED,
        }
}

#[cfg(test)]
mod tests;
