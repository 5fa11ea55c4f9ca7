//! Detections about bound UDP sockets.

mod receive_drops;

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
    model::snapshot::{Snapshot, UdpListener},
};

/// Bound UDP sockets.
pub(super) struct UdpSockets;

/// A look at one.
type At<'i, 'a> = Look<'i, 'a, UdpSockets>;

/// What the counter is, by place.
const DROPS: usize = 0;

impl Kind for UdpSockets {
    type Key = ListenerKey;
    type Item<'a> = &'a UdpListener;
    type Memory = ();

    const KIND: SubjectKind = SubjectKind::Udp;

    const RULES: &'static [Rule<Self>] = &[receive_drops::RULE];

    fn each<'a>(
        now: &'a Snapshot,
        _: &'a Tuning,
        visit: &mut dyn FnMut(ListenerKey, &'a UdpListener),
    ) {
        now.udp.iter().for_each(|socket| visit(socket.key, socket));
    }

    fn counters(socket: &UdpListener, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        let mut counters = [None; COUNTERS];
        counters[DROPS] = socket.drops.ok();
        counters
    }

    fn remember((): &mut (), _: &UdpListener, _: &History<COUNTERS>, _: &Snapshot) {}

    fn target(socket: &UdpListener) -> Target {
        let ListenerKey { netns, addr, port } = socket.key;
        Target {
            addr: Some(addr),
            port: Some(port),
            netns: Some(netns),
            comm: socket.comm.clone(),
            workload: socket.workload.clone(),
        }
    }

    fn subject(socket: &UdpListener, _: &Snapshot) -> Subject {
        let ListenerKey { addr, port, .. } = socket.key;
        let comm = socket.comm.as_deref().unwrap_or("?");
        Subject {
            kind: Self::KIND,
            name: format!("{comm} udp {}", Place(addr, port)),
            labels: Labels::of(socket.key, socket.comm.as_ref(), &socket.workload),
            pids: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests;
