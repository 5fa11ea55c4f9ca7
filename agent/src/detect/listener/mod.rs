//! Detections about one listener.

mod overflow;
mod stalled;

use std::sync::Arc;

use crate::{
    detect::{
        book::Kind,
        history::History,
        rule::{COUNTERS, Look, Rule},
        subject::{Labels, Place, Subject, SubjectKind},
        tuning::{Target, Tuning},
    },
    id::ListenerKey,
    input::Known,
    model::snapshot::{Counters, Listener, Snapshot},
};

/// Listeners, those that are gone included.
pub(super) struct Listeners;

/// A look at a listener.
type At<'i, 'a> = Look<'i, 'a, Listeners>;

/// What the counters are, by place.
const ESTABLISHED: usize = 0;
const ACCEPTED: usize = 1;
const CLOSED: usize = 2;
/// Listen drops, but those of which a hook tells another reason than the accept queue.
const OVERFLOWS: usize = 3;
const SYN_QUEUE_FULL: usize = 4;
const SYNS: usize = 5;
const COOKIES: usize = 6;
/// Milliseconds in which a member was longer than its limit.
const FULL: usize = 7;

impl Kind for Listeners {
    type Key = ListenerKey;
    type Item<'a> = &'a Listener;
    type Memory = ();

    const RULES: &'static [Rule<Self>] = &[overflow::RULE, stalled::RULE];

    fn each<'a>(
        now: &'a Snapshot,
        _: &'a Tuning,
        visit: &mut dyn FnMut(ListenerKey, &'a Listener),
    ) {
        now.listeners.iter().for_each(|listener| visit(listener.key, listener));
    }

    fn counters(listener: &Listener, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        let Counters { established, accepted, closed, syns, syncookies, full, .. } =
            listener.counters;
        [
            established.ok(),
            accepted.ok(),
            closed.ok(),
            overflows(listener).ok(),
            listener.counters.drops_by.syn_queue_full.ok(),
            syns.ok(),
            syncookies.ok(),
            Some(full.0 / 1_000_000),
        ]
    }

    fn remember((): &mut (), _: &Listener, _: &History<COUNTERS>, _: &Snapshot) {}

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
            kind: SubjectKind::Listener,
            name: format!("{comm} {}", Place(addr, port)),
            labels: Labels::of(listener.key, listener.comm.as_ref(), &listener.workload),
            pids: Arc::clone(&listener.owners),
        }
    }
}

/// Listen drops since the accept queue was full: by the hooks that tell it, or else all of them.
fn overflows(listener: &Listener) -> Known<u64> {
    let by = &listener.counters.drops_by;
    match (by.accept_queue_full_syn, by.accept_queue_full_ack) {
        (Ok(syn), Ok(ack)) => Ok(syn + ack),
        (Err(_), _) | (_, Err(_)) => listener.counters.drops,
    }
}
