//! Detections about one listener.

mod cause;
mod close_wait;
mod cookies;
mod flapping;
mod flood;
mod floors;
mod gone;
mod leak;
mod near_full;
mod nobody_accepts;
mod not_released;
mod overflow;
mod presence;
mod slow_accept;
mod small_backlog;
mod stalled;
mod syn_queue;

use std::{fmt::Write as _, sync::Arc};

use crate::{
    detect::{
        book::Kind,
        command::inside,
        history::History,
        rule::{COUNTERS, Look, Rule},
        subject::{Labels, Place, Subject, SubjectKind},
        tuning::{Target, Tuned, Tuning},
    },
    id::{ListenerKey, Pid},
    input::{Absent, Known},
    model::snapshot::{Counters, Listener, Namespace, Snapshot},
    time::Nanos,
};

/// Listeners, those that are gone included.
pub(super) struct Listeners;

/// A look at a listener.
type At<'i, 'a> = Look<'i, 'a, Listeners>;

/// What is remembered of a listener beside its counters.
#[derive(Default)]
pub(super) struct Remembered {
    leak: leak::Remembered,
    close_wait: close_wait::Remembered,
    waits: slow_accept::Waits,
    bursts: small_backlog::Bursts,
    presence: presence::Presence,
    /// Those that were there last: with its processes a listener loses its owners.
    owners: Arc<[Pid]>,
}

/// Rules whose memory depends on what is configured, by place.
const LEAK: usize = 0;
const CLOSE_WAIT: usize = 1;
const SLOW_ACCEPT: usize = 2;

/// What the counters are, by place.
const ESTABLISHED: usize = 0;
const ACCEPTED: usize = 1;
/// Thrown away unaccepted when the listener closed.
const DISCARDED: usize = 2;
/// Listen drops, but those of which a hook tells another reason than the accept queue.
const OVERFLOWS: usize = 3;
/// SYNs refused since the SYN queue was full, and listen drops for none of the reasons that a hook tells.
const SYN_QUEUE_DROPS: usize = 4;
const SYNS: usize = 5;
const COOKIES: usize = 6;
/// Milliseconds in which a member was longer than its limit.
const FULL: usize = 7;

/// See [`crate::detect::why_unserved`].
pub(super) fn why_unserved(listener: &Listener, now: &Snapshot) -> Option<(String, String)> {
    let cause = stalled::cause(listener, now).filter(|_| listener.stalled == Ok(true))?;
    Some((cause.says, cause.mend))
}

impl Kind for Listeners {
    type Key = ListenerKey;
    type Item<'a> = &'a Listener;
    type Memory = Remembered;

    const KIND: SubjectKind = SubjectKind::Listener;

    const RULES: &'static [Rule<Self>] = &[
        leak::RULE,
        close_wait::RULE,
        slow_accept::RULE,
        stalled::RULE,
        nobody_accepts::RULE,
        overflow::RULE,
        near_full::RULE,
        small_backlog::RULE,
        syn_queue::RULE,
        cookies::RULE,
        flood::RULE,
        gone::RULE,
        not_released::RULE,
        flapping::RULE,
    ];

    fn each<'a>(
        now: &'a Snapshot,
        _: &'a Tuning,
        visit: &mut dyn FnMut(ListenerKey, &'a Listener),
    ) {
        now.listeners.iter().for_each(|listener| visit(listener.key, listener));
    }

    fn counters(listener: &Listener, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        let Counters {
            established, accepted, aborted_listener_closed, syns, syncookies, full, ..
        } = listener.counters;
        [
            established.ok(),
            accepted.ok(),
            aborted_listener_closed.ok(),
            overflows(listener).ok(),
            syn_queue_drops(listener).ok(),
            syns.ok(),
            syncookies.ok(),
            Some(full.0 / 1_000_000),
        ]
    }

    fn remember(
        memory: &mut Remembered,
        it: &Listener,
        history: &History<COUNTERS>,
        now: &Snapshot,
    ) {
        memory.bursts.see(history);
        memory.presence.see(now.at, it, history);
        if !it.owners.is_empty() && !Arc::ptr_eq(&memory.owners, &it.owners) {
            memory.owners = Arc::clone(&it.owners);
        }
    }

    fn follow(memory: &mut Remembered, it: &Listener, now: &Snapshot, tuned: &[Tuned]) {
        let set = |rule: usize, threshold: usize| tuned[rule].thresholds[threshold];
        memory.leak.see(now.at, it, namespace(now, it), set(LEAK, leak::WINDOW));
        close_wait::see(&mut memory.close_wait, now.at, it, set(CLOSE_WAIT, close_wait::WINDOW));
        let waits = it.accept_wait.as_ref().map(|waits| &**waits).map_err(|absent| *absent);
        memory.waits.see(now.at, waits, set(SLOW_ACCEPT, slow_accept::SECONDS));
    }

    fn target(listener: &Listener) -> Target {
        let ListenerKey { netns, addr, port } = listener.key;
        Target {
            addr: Some(addr),
            port: Some(port),
            netns: Some(netns),
            comm: listener.comm.clone(),
            workload: listener.workload.clone(),
        }
    }

    fn subject(listener: &Listener, _: &Snapshot) -> Subject {
        let ListenerKey { addr, port, .. } = listener.key;
        let comm = listener.comm.as_deref().unwrap_or("?");
        Subject {
            kind: Self::KIND,
            name: format!("{comm} {}", Place(addr, port)),
            labels: Labels::of(listener.key, listener.comm.as_ref(), &listener.workload),
            pids: Arc::clone(&listener.owners),
        }
    }

    fn recall(memory: &Remembered, subject: &mut Subject) {
        if subject.pids.is_empty() {
            subject.pids = Arc::clone(&memory.owners);
        }
    }
}

/// Listen drops since the accept queue was full: by the hooks that tell it, or else all of them.
pub(super) fn overflows(listener: &Listener) -> Known<u64> {
    let by = &listener.counters.drops_by;
    match (by.accept_queue_full_syn, by.accept_queue_full_ack) {
        (Ok(syn), Ok(ack)) => Ok(syn.saturating_add(ack)),
        (Err(_), _) | (_, Err(_)) => listener.counters.drops,
    }
}

/// SYNs refused since the SYN queue was full, and listen drops for none of the reasons that a hook tells.
fn syn_queue_drops(listener: &Listener) -> Known<u64> {
    let by = &listener.counters.drops_by;
    Ok(by.syn_queue_full?.saturating_add(by.other.unwrap_or(0)))
}

/// The command that shows its sockets, by `what` of ss.
fn ss(look: &At<'_, '_>, what: &str) -> String {
    let ListenerKey { netns, port, .. } = look.it.key;
    inside(look.now, netns, &format!("ss {what} sport = :{port}"))
}

/// The namespace that it listens in.
fn namespace<'a>(now: &'a Snapshot, it: &Listener) -> Option<&'a Namespace> {
    let at =
        now.namespaces.binary_search_by_key(&it.key.netns, |namespace| namespace.netns).ok()?;
    now.namespaces.get(at)
}

/// A sysctl of the namespace that it listens in.
fn sysctl(look: &At<'_, '_>, name: &str) -> Known<i64> {
    let namespace = namespace(look.now, look.it).ok_or(Absent::Unreadable)?;
    namespace.sysctls.get(name).copied().ok_or(Absent::Unreadable)
}

/// Whether its port is served at another address, or its namespace is gone with it.
fn is_moved(look: &At<'_, '_>) -> bool {
    let ListenerKey { netns, port, .. } = look.it.key;
    let serves = |other: &Listener| {
        (other.key.netns, other.key.port) == (netns, port) && !other.members.is_empty()
    };
    namespace(look.now, look.it).is_none() || look.now.listeners.iter().any(serves)
}

/// Whether the kernel gives such ports out: what listens there comes and goes.
fn is_ephemeral(look: &At<'_, '_>) -> Known<bool> {
    let end = |name| sysctl(look, name).map(u16::try_from);
    match (end("ip_local_port_range_low")?, end("ip_local_port_range_high")?) {
        (Ok(low), Ok(high)) => Ok((low..=high).contains(&look.it.key.port)),
        (Err(_), _) | (_, Err(_)) => Err(Absent::Unreadable),
    }
}

/// When the first of its owners will have no descriptor left.
fn fds_last(look: &At<'_, '_>) -> Option<Nanos> {
    let left = |pid| look.now.processes.get(pid)?.fds_exhausted_in.ok();
    look.it.owners.iter().filter_map(left).min()
}

/// Adds when descriptors run out, where that is within a day.
fn say_fds(seen: &mut String, look: &At<'_, '_>) {
    const DAY_MINUTES: f64 = 24.0 * 60.0;
    let minutes = fds_last(look).map(|left| (left.as_seconds() / 60.0).round());
    match minutes {
        Some(minutes) if minutes < 120.0 => {
            _ = write!(seen, "; descriptors run out in {minutes:.0} min");
        }
        Some(minutes) if minutes <= DAY_MINUTES => {
            _ = write!(seen, "; descriptors run out in {:.0} h", minutes / 60.0);
        }
        // so far ahead nobody sees
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests;
