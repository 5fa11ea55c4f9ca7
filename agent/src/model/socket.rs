//! One listening socket from sample to sample, by its cookie.

use crate::{
    id::{ListenerKey, NetnsId},
    input::{Absent, HookedDrops, ListenSocket, SlotRecord},
    model::{
        delta::{moved, moved_u32},
        drops::{Claim, Claims},
        stall::{AcceptLoop, Seen},
    },
    time::{Monotonic, Nanos},
};

/// What a socket's record showed so far. All of it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Handshakes, the queue that was found at adoption included.
    pub(super) established: u64,
    /// Of these, those that waited when the socket was adopted.
    pub(super) found_waiting: u64,
    /// And those that had been accepted and were open.
    pub(super) found_open: u64,
    pub(super) accepted: u64,
    /// Accepted connections that are destroyed.
    pub(super) closed: u64,
    pub(super) discarded: u64,
    pub(super) resets: u64,
    pub(super) syns: u64,
    pub(super) cookies: u64,
}

/// What one sample added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) counted: Counted,
    /// The longest queue since the sample before, as far as known.
    pub(super) highest: u64,
    /// What it shows of drops.
    pub(super) claims: Claims,
    /// Why that cannot be had.
    pub(super) drops_absent: Option<Absent>,
    /// Handshakes since the programs run, without the queue that was found.
    pub(super) handshakes: u64,
    /// Children that the kernel made and undid.
    pub(super) undone: u64,
}

/// Samples for which a socket that is gone keeps its claim on drops.
const LATE: u32 = 16;

/// Where a sample shows a socket: in its dump, and in its records.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) live: Option<u32>,
    pub(super) record: Option<u32>,
}

/// One listening socket.
#[derive(Clone, Debug, Default)]
pub(super) struct Socket {
    /// Of the sample that is just taken in.
    pub(super) place: Place,
    pub(super) key: Option<ListenerKey>,
    /// As the newest dump showed it; `None` when it was not in it.
    pub(super) live: Option<ListenSocket>,
    /// As the programs' newest record showed it.
    pub(super) record: Option<SlotRecord>,
    pub(super) counted: Counted,
    pub(super) accept_loop: AcceptLoop,
    /// Whether the newest sample that could show it had its record.
    has_record: bool,
    /// Samples in which it was alive and had no record.
    pub(super) without_record: u32,
    /// Samples in a row that had neither it nor its record.
    missing: u32,
    /// Samples in a row without it.
    away: u32,
    /// Whether the last dump showed it longer than its limit.
    pub(super) was_full: bool,
    drops: Option<u32>,
    hooked_drops: HookedDrops,
    /// What it showed of drops and did not get.
    unpaid: Claim,
    /// Whether its queue was full when it showed that.
    unpaid_was_full: bool,
    previous_length: u32,
}

/// What there is of a socket in one sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    pub(super) at: Monotonic,
    pub(super) netns: NetnsId,
    pub(super) live: Option<&'a ListenSocket>,
    pub(super) record: Option<&'a SlotRecord>,
    /// Whether this is the first sample of its namespace: what the socket counted before is not
    /// ours.
    pub(super) first: bool,
    pub(super) stalled_after: Nanos,
}

impl Socket {
    /// Takes in one more sample.
    pub(super) fn see(&mut self, sight: Sight<'_>) -> Step {
        self.learn_key(sight);
        let grown = |of: fn(&SlotRecord) -> u64| {
            sight.record.map_or(0, |now| moved(self.record.as_ref().map_or(0, of), of(now)))
        };
        let (handshakes, undone) = (grown(|it| it.established), grown(|it| it.undone));
        let mut step = Step { handshakes, undone, ..Step::default() };
        if let Some(record) = sight.record {
            step.counted = self.count(record, sight.live);
            self.record = Some(*record);
            self.without_record = 0;
        } else if sight.live.is_some() {
            self.without_record += 1;
        }
        self.has_record = sight.record.is_some();
        let is_missing = sight.live.is_none() && !self.has_record;
        self.missing = if is_missing { self.missing + 1 } else { 0 };
        self.away = if sight.live.is_none() { self.away.saturating_add(1) } else { 0 };
        step.claims = self.claims(sight);
        step.drops_absent = sight.live.and_then(|socket| socket.drops.err());
        let length = sight.live.map_or(0, |socket| socket.length);
        let high_water = sight.record.map_or(0, |record| record.high_water);
        step.highest = high_water.max(length).max(self.previous_length).into();
        self.accept_loop = match sight.live {
            Some(_) => self.accept_loop.next(
                Seen { at: sight.at, length, accepted: step.counted.accepted },
                sight.stalled_after,
            ),
            None => AcceptLoop::Running,
        };
        self.was_full = sight.live.is_some_and(|socket| socket.limit < socket.length);
        self.previous_length = length;
        self.live = sight.live.copied();
        step
    }

    /// Connections accepted and not destroyed; `None` where part of them is from before the
    /// programs and was not looked for.
    pub(super) fn open(&self) -> Option<u64> {
        let record = self.record.as_ref()?;
        let is_whole = !record.adopted || record.found.is_some();
        is_whole.then(|| self.counted.accepted.saturating_sub(self.counted.closed))
    }

    /// Keeps what it showed of drops and did not get.
    pub(super) fn settle(&mut self, unpaid: Claim) {
        self.unpaid = unpaid;
    }

    /// Whether nothing more can come: it is destroyed and its record given back, or without a
    /// record it was missing from two samples in a row. A dump is not atomic and can pass one by.
    /// Its claim on drops stays for a while.
    pub(super) fn is_finished(&self) -> bool {
        let destroyed = self.record.as_ref().is_some_and(|record| record.final_drops.is_some());
        let claims = destroyed && 0 < self.unpaid.moved + self.unpaid.stale && self.away < LATE;
        !self.has_record && (destroyed || 1 < self.missing) && !claims
    }

    /// Name of the task that called listen(2), where the programs saw it.
    pub(super) fn listened_by(&self) -> Option<[u8; 16]> {
        self.record.as_ref().and_then(|record| record.listened_by)
    }

    fn learn_key(&mut self, sight: Sight<'_>) {
        let netns = sight.netns;
        let by_record = |record: &SlotRecord| {
            (record.port != 0).then_some(ListenerKey {
                netns,
                addr: record.addr,
                port: record.port,
            })
        };
        let by_dump =
            |socket: &ListenSocket| ListenerKey { netns, addr: socket.addr, port: socket.port };
        // what listens now is right: a socket that listens for a second time can have another port
        let now = sight.live.map(by_dump).or(self.key);
        self.key = now.or_else(|| sight.record.and_then(by_record));
    }

    /// What `record` adds. The record was read before `live`, so the difference of established and
    /// length is never ahead of what was accepted; at a quiet instant it is exact.
    fn count(&mut self, record: &SlotRecord, live: Option<&ListenSocket>) -> Counted {
        let before = self.counted;
        let found = record.found.unwrap_or(0);
        let queued = record.base + record.established;
        let left = queued.saturating_sub(record.discarded);
        let by_identity = match (record.final_drops, live) {
            (Some(_), _) => left,
            (None, Some(socket)) => {
                // (0, 0): no enqueue so far, and no pair
                let by_pair = match record.last {
                    (0, 0) => 0,
                    (then, length) => (record.base + then)
                        .saturating_sub(record.discarded)
                        .saturating_sub(length.into()),
                };
                left.saturating_sub(socket.length.into()).max(by_pair)
            }
            // shut down: in no dump, alive, and the record includes what was thrown away
            (None, None) if self.rests(record) => left,
            // on its way out: what is queued is neither accepted nor thrown away
            (None, None) => before.accepted.saturating_sub(found),
        };
        // those of the base are at the head of the queue: whoever is accepted, they were before
        let by_hook = match record.accepted {
            0 => 0,
            n => n + record.base.saturating_sub(record.discarded),
        };
        let accepted = (found + by_identity.max(by_hook)).max(before.accepted);
        let established = (found + queued).max(before.established);
        // connections that have no tag are not in `closed`: neither thrown away nor accepted
        let waiting = record.base.saturating_sub(accepted - found.min(accepted));
        let thrown_away = waiting.min(record.untagged).min(record.discarded);
        let reset = match record.found {
            Some(_) => record.untagged - waiting.min(record.untagged),
            None => 0,
        };
        let closed = record.closed.saturating_sub(record.discarded - thrown_away) + reset;
        let closed = closed.max(before.closed);
        self.counted = Counted {
            established,
            found_waiting: record.base.max(before.found_waiting),
            found_open: found.max(before.found_open),
            accepted,
            closed,
            syns: record.syns.max(before.syns),
            cookies: record.cookies.max(before.cookies),
            discarded: record.discarded.max(before.discarded),
            resets: record.resets.max(before.resets),
        };
        Counted {
            established: self.counted.established - before.established,
            found_waiting: self.counted.found_waiting - before.found_waiting,
            found_open: self.counted.found_open - before.found_open,
            accepted: self.counted.accepted - before.accepted,
            closed: self.counted.closed - before.closed,
            discarded: self.counted.discarded - before.discarded,
            resets: self.counted.resets - before.resets,
            syns: self.counted.syns - before.syns,
            cookies: self.counted.cookies - before.cookies,
        }
    }

    /// Whether the sample before showed the same: no socket in the dump, and this record.
    fn rests(&self, record: &SlotRecord) -> bool {
        let counted = |record: &SlotRecord| (record.established, record.discarded);
        self.live.is_none() && self.record.as_ref().map(counted) == Some(counted(record))
    }

    fn claims(&mut self, sight: Sight<'_>) -> Claims {
        let seen = sight.record.map_or(self.hooked_drops, |record| record.drops);
        let before = std::mem::replace(&mut self.hooked_drops, seen);
        let hooked = HookedDrops {
            full_syn: moved(before.full_syn, seen.full_syn),
            full_ack: moved(before.full_ack, seen.full_ack),
            syn_queue_full: moved(before.syn_queue_full, seen.syn_queue_full),
        };
        let growth = self.drops_growth(sight).unwrap_or(0);
        let full_now = sight.live.is_some_and(|socket| socket.limit < socket.length);
        let peaked = match (sight.record, sight.live.or(self.live.as_ref())) {
            (Some(record), Some(socket)) => socket.limit < record.high_water,
            // it came and went between two samples: nobody knows its limit
            (Some(record), None) => 0 < record.high_water,
            (None, _) => false,
        };
        let was_full = full_now || peaked || self.was_full;
        let unpaid_was_full = std::mem::replace(&mut self.unpaid_was_full, was_full);
        let mut old = std::mem::take(&mut self.unpaid);
        if self.record.is_none() {
            // where the last `sk_drops` of others stay unseen, there is always something left over
            old.stale = 0;
        }
        let new = Claim::new(hooked, growth, &mut old);
        Claims {
            old,
            new,
            was_full: was_full || unpaid_was_full,
            is_leaving: self.is_leaving(sight),
        }
    }

    /// Whether it is in no dump, and its last `sk_drops` is still to come: closing takes its time.
    /// What it refused since it was seen is in ListenDrops of this sample, or of the next at last;
    /// a socket that was shut down and is kept refuses nothing more.
    fn is_leaving(&self, sight: Sight<'_>) -> bool {
        let is_alive = sight.record.is_some_and(|record| record.final_drops.is_none());
        is_alive && (1..=2).contains(&self.away)
    }

    /// How far `sk_drops` moved.
    fn drops_growth(&mut self, sight: Sight<'_>) -> Option<u64> {
        let now = match (sight.record.and_then(|record| record.final_drops), sight.live) {
            (Some(drops), _) => Some(drops),
            (None, Some(socket)) => socket.drops.ok(),
            (None, None) => None,
        }?;
        let before = self.drops.replace(now).unwrap_or(if sight.first { now } else { 0 });
        Some(moved_u32(before, now))
    }

    /// `sk_drops` as last seen.
    pub(super) fn socket_drops(&self) -> Option<u32> {
        self.drops
    }
}
