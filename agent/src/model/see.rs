//! What one sample tells of each namespace's sockets, and what that adds to their listeners.

use std::collections::{BTreeSet, HashMap};

use super::{
    ByCookie, Model,
    drops::{self, Claim, Claims, Share},
    listener::Span,
    namespace::NamespaceState,
    socket::{Sight, Socket, Step},
};
use crate::{
    id::{Cookie, ListenerKey, NetnsId},
    input::{Absent, ListenSocket, NamespaceSample, Sample, SlotRecord, SlotsSample, Tier},
    time::Monotonic,
};

/// The records of a sample, by namespace.
pub(super) type Records<'a> = HashMap<NetnsId, Vec<&'a SlotRecord>>;

pub(super) fn by_namespace(sample: &Sample) -> Records<'_> {
    let mut records = Records::new();
    for record in sample.slots.iter().flat_map(|slots| &slots.records) {
        records.entry(record.netns).or_default().push(record);
    }
    records
}

impl Model {
    /// Sockets of one namespace: what each did, and its part of the listen drops.
    pub(super) fn see_namespace(
        &mut self,
        namespace: &NamespaceSample,
        records: &[&SlotRecord],
        at: Monotonic,
    ) {
        let first = !self.namespaces.contains_key(&namespace.netns) && !namespace.is_new;
        let state = self.namespaces.entry(namespace.netns).or_insert_with_key(|netns| {
            NamespaceState::after(self.ended.remove(netns).unwrap_or_default())
        });
        let Ok(sockets) = &namespace.sockets else {
            // nobody knows who listens; but who is gone for good is in this sample for the last time
            let dead = records.iter().filter(|record| record.final_drops.is_some());
            let records: Vec<&SlotRecord> = dead.copied().collect();
            let of = Of::Records;
            let seen =
                Seen { of, sockets: &[], records: &records, first, moved: None, syn_queue_full: 0 };
            return self.see_sockets(namespace.netns, &seen, at);
        };
        let moved = state.listen_drops(namespace);
        let syn_queue_full = state.syn_queue_drops(namespace);
        let seen = Seen { of: Of::All, sockets, records, first, moved, syn_queue_full };
        self.see_sockets(namespace.netns, &seen, at);
    }

    /// Namespaces that are in the sample no more: nothing listens there.
    pub(super) fn see_gone(&mut self, sample: &Sample, records: &Records<'_>) {
        let present: BTreeSet<NetnsId> = sample.namespaces.iter().map(|it| it.netns).collect();
        let known = self.namespaces.keys().chain(records.keys()).copied();
        let gone: BTreeSet<NetnsId> = known.filter(|netns| !present.contains(netns)).collect();
        for netns in gone {
            self.namespaces.entry(netns).or_default();
            let records = records.get(&netns).map_or(&[][..], Vec::as_slice);
            let (of, sockets, first) = (Of::All, &[][..], false);
            let seen = Seen { of, sockets, records, first, moved: Some(0), syn_queue_full: 0 };
            self.see_sockets(netns, &seen, sample.at);
        }
    }

    fn see_sockets(&mut self, netns: NetnsId, seen: &Seen<'_>, at: Monotonic) {
        let Some(state) = self.namespaces.get_mut(&netns) else { return };
        for (i, socket) in (0..).zip(seen.sockets) {
            state.sockets.entry(socket.cookie).or_default().place.live = Some(i);
        }
        for (i, record) in (0..).zip(seen.records) {
            state.sockets.entry(record.cookie).or_default().place.record = Some(i);
        }
        let mut steps: Vec<(ListenerKey, Cookie, Step)> = Vec::with_capacity(state.sockets.len());
        let is_seen = |socket: &Socket| seen.of == Of::All || socket.place.record.is_some();
        for (cookie, socket) in state.sockets.iter_mut().filter(|(_, socket)| is_seen(socket)) {
            let place = std::mem::take(&mut socket.place);
            let step = socket.see(Sight {
                at,
                netns,
                live: place.live.and_then(|i| seen.sockets.get(i as usize)),
                record: place.record.and_then(|i| seen.records.get(i as usize).copied()),
                first: seen.first,
                stalled_after: self.settings.stalled_after.into(),
            });
            state.handshakes += step.handshakes;
            state.undone += step.undone;
            steps.extend(socket.key.map(|key| (key, *cookie, step)));
        }
        let claims: Vec<Claims> = steps.iter().map(|(.., step)| step.claims).collect();
        let mut shares = match seen.moved {
            Some(moved) => state.allowance.share(moved, &claims),
            // nobody knows so far whether what was seen is in ListenDrops
            None => claims.iter().map(|it| (Share::default(), it.whole())).collect(),
        };
        if self.hooks.iter().any(|hook| hook.event == "syn_drop" && hook.tier < Tier::Sampled) {
            drops::name_syn_queue_full(&mut shares, seen.syn_queue_full);
        }
        for ((key, cookie, step), (share, unpaid)) in steps.iter().zip(shares) {
            if unpaid != Claim::default()
                && let Some(socket) = state.sockets.get_mut(cookie)
            {
                socket.settle(unpaid);
            }
            let listener = self.listeners.entry(*key).or_default();
            listener.add(step, at);
            listener.add_drops(match step.drops_absent {
                Some(absent) => Err(absent),
                None => seen.moved.map(|_| share).ok_or(Absent::Unreadable),
            });
        }
    }

    /// How long connections waited and lived, for the listeners of the records.
    pub(super) fn add_durations(&mut self, slots: &SlotsSample) {
        let grown = slots.waits.iter().map(|(cookie, more)| (cookie, more, Span::Wait));
        let durations = slots.durations.iter();
        let grown = grown.chain(durations.map(|(cookie, more)| (cookie, more, Span::Open)));
        let netns: ByCookie<NetnsId> =
            slots.records.iter().map(|record| (record.cookie, record.netns)).collect();
        for (cookie, more, span) in grown {
            let state = netns.get(cookie).and_then(|netns| self.namespaces.get(netns));
            let key = state.and_then(|state| state.sockets.get(cookie)?.key);
            if let Some(listener) = key.and_then(|key| self.listeners.get_mut(&key)) {
                listener.add_durations(more, span);
            }
        }
    }
}

/// Of which sockets a sample tells something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Of all: what it does not show listens no more.
    All,
    /// Of those that have a record in it.
    Records,
}

/// What a sample shows of one namespace.
struct Seen<'a> {
    of: Of,
    sockets: &'a [ListenSocket],
    records: &'a [&'a SlotRecord],
    /// Whether the namespace was in no sample before.
    first: bool,
    /// How far ListenDrops moved; `None` when it cannot be told.
    moved: Option<u64>,
    /// How far TCPReqQFullDrop moved.
    syn_queue_full: u64,
}
