//! One listener over its sockets: totals that outlive them, windows, owner.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    id::{ListenerKey, Pid},
    input::{Absent, Known, Sample},
    model::{
        Features, Settings,
        delta::Total,
        snapshot::{Counters, Listener, Member, Rates},
        socket::{Socket, Step},
        stall::AcceptLoop,
        window::{Highest, Rate},
    },
    time::{Monotonic, Nanos},
};

/// What is kept of a listener from sample to sample, also after it is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracked {
    established: Total,
    accepted: Total,
    closed: Total,
    discarded: Total,
    resets: Total,
    drops: Total,
    /// `sk_drops` of the sockets that are gone.
    departed_drops: u64,
    full: Nanos,
    highest: Highest,
    rates: [Rate; 3],
    last_accept: Option<Monotonic>,
    comm: Option<Arc<str>>,
    v6only: bool,
    gone_since: Option<Monotonic>,
    was_full: bool,
    /// What this sample's sockets showed as their longest queue, summed.
    round_highest: u64,
}

impl Tracked {
    /// Adds what one of its sockets did.
    pub(super) fn add(&mut self, step: &Step, at: Monotonic) {
        self.established.add(step.counted.established);
        self.accepted.add(step.counted.accepted);
        self.closed.add(step.counted.closed);
        self.discarded.add(step.counted.discarded);
        self.resets.add(step.counted.resets);
        self.round_highest += step.highest;
        if 0 < step.counted.accepted {
            self.last_accept = Some(at);
        }
    }

    /// Adds listen drops; `None`: they cannot be had this time.
    pub(super) fn add_drops(&mut self, drops: Known<u64>) {
        self.drops.set_absent(drops.err());
        self.drops.add(drops.unwrap_or(0));
    }

    /// Adds the final `sk_drops` of a socket that is gone.
    pub(super) fn bury(&mut self, socket_drops: u32) {
        self.departed_drops += u64::from(socket_drops);
    }

    /// When its last socket went, if none is left.
    pub(super) fn gone_since(&self) -> Option<Monotonic> {
        self.gone_since
    }

    /// Ends a sample and returns the listener as it is shown.
    pub(super) fn show(&mut self, key: ListenerKey, round: &Round<'_>) -> Listener {
        let live: Vec<&Socket> =
            round.sockets.iter().copied().filter(|s| s.live.is_some()).collect();
        self.note_presence(&live, round);
        self.note_features(&live, round.features);
        let highest =
            self.highest.push(round.sample.at, self.round_highest, round.settings.window());
        self.round_highest = 0;
        let owners = owners(&live, round.sample);
        self.note_comm(&live, &owners, round.sample);
        let members: Vec<Member> = live.iter().copied().filter_map(member).collect();
        let counters = self.counters(round.sockets);
        Listener {
            key,
            v6only: self.v6only,
            length: members.iter().map(|m| u64::from(m.length)).sum(),
            limit: members.iter().map(|m| u64::from(m.limit)).sum(),
            length_max: round.features.enqueue.and(counters.established).map(|_| highest),
            fill_ratio_max: members.iter().map(fill_ratio).reduce(f64::max),
            syn_queue: syn_queue(&live, round.features),
            rates: self.rates(round.sample.at, &counters),
            open: open(round, counters.accepted),
            since_accept: counters.accepted.and_then(|_| {
                self.last_accept.map(|then| round.sample.at - then).ok_or(Absent::TooEarly)
            }),
            stalled: counters
                .accepted
                .map(|_| live.iter().any(|s| matches!(s.accept_loop, AcceptLoop::Stalled { .. }))),
            comm: self.comm.clone(),
            owners,
            members,
            counters,
        }
    }

    fn note_presence(&mut self, live: &[&Socket], round: &Round<'_>) {
        if self.was_full {
            self.full = self.full + round.interval;
        }
        self.was_full = live.iter().any(|socket| socket.was_full);
        match live.first().and_then(|socket| socket.live) {
            Some(socket) => {
                self.gone_since = None;
                self.v6only = socket.v6only;
            }
            None => _ = self.gone_since.get_or_insert(round.sample.at),
        }
    }

    /// A counter of which a part goes unseen is absent, not too low.
    fn note_features(&mut self, live: &[&Socket], features: &Features) {
        let no_slot = live.iter().any(|socket| 1 < socket.without_record);
        let nothing = !live.is_empty() && live.iter().all(|socket| socket.record.is_none());
        // it may just have been made: after the records were read, before the sockets were
        let too_early = nothing && self.established == Total::new();
        let absent = features
            .records
            .or(no_slot.then_some(Absent::NoSlot))
            .or(too_early.then_some(Absent::TooEarly));
        for total in [
            &mut self.established,
            &mut self.accepted,
            &mut self.closed,
            &mut self.discarded,
            &mut self.resets,
        ] {
            total.set_absent(absent);
        }
    }

    fn note_comm(&mut self, live: &[&Socket], owners: &[Pid], sample: &Sample) {
        let owner = owners.first().and_then(|pid| sample.processes.get(pid));
        let caller = || {
            let comm = live.iter().find_map(|socket| socket.listened_by())?;
            let end = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
            let name = String::from_utf8_lossy(&comm[..end]);
            (!name.is_empty()).then(|| Arc::from(&*name))
        };
        if let Some(comm) = owner.map(|process| process.comm.clone()) {
            self.comm = Some(comm);
        } else if self.comm.is_none() {
            self.comm = caller();
        }
    }

    fn counters(&self, sockets: &[&Socket]) -> Counters {
        let socket_drops = sockets
            .iter()
            .map(|socket| match socket.live {
                Some(live) => live.drops.map(u64::from),
                None => Ok(socket.socket_drops().unwrap_or(0).into()),
            })
            .sum::<Known<u64>>();
        Counters {
            established: self.established.known(),
            accepted: self.accepted.known(),
            closed: self.closed.known(),
            aborted_listener_closed: self.discarded.known(),
            aborted_reset: self.resets.known(),
            drops: self.drops.known(),
            socket_drops: socket_drops.map(|drops| drops + self.departed_drops),
            full: self.full,
        }
    }

    fn rates(&mut self, at: Monotonic, counters: &Counters) -> Rates {
        let values = [counters.established, counters.accepted, counters.drops];
        let mut rates = self.rates.iter_mut().zip(values).map(|(rate, value)| match value {
            Ok(value) => rate.push(at, value).ok_or(Absent::TooEarly),
            Err(absent) => {
                rate.clear();
                Err(absent)
            }
        });
        let mut next = || rates.next().unwrap_or(Err(Absent::TooEarly));
        Rates { established: next(), accepted: next(), drops: next() }
    }
}

/// What [`Tracked::show`] looks at.
pub(super) struct Round<'a> {
    pub(super) sample: &'a Sample,
    pub(super) settings: &'a Settings,
    pub(super) features: &'a Features,
    /// Its sockets, those that are gone while connections live on included.
    pub(super) sockets: &'a [&'a Socket],
    /// Time since the sample before.
    pub(super) interval: Nanos,
}

fn owners(live: &[&Socket], sample: &Sample) -> Arc<[Pid]> {
    let inodes = live.iter().filter_map(|socket| socket.live).map(|socket| socket.inode);
    let pids: BTreeSet<Pid> =
        inodes.filter_map(|inode| sample.owners.get(&inode)).flatten().copied().collect();
    pids.into_iter().collect()
}

fn member(socket: &Socket) -> Option<Member> {
    let live = socket.live?;
    Some(Member {
        cookie: live.cookie,
        inode: live.inode,
        length: live.length,
        limit: live.limit,
        socket_drops: live.drops,
    })
}

fn fill_ratio(member: &Member) -> f64 {
    f64::from(member.length) / f64::from(member.limit.max(1))
}

fn syn_queue(live: &[&Socket], features: &Features) -> Known<u64> {
    features.syn_queue?;
    live.iter()
        .map(|socket| match socket.record.and_then(|record| record.syn_queue) {
            Some(length) => Ok(u64::from(length)),
            None if 1 < socket.without_record => Err(Absent::NoSlot),
            None => Err(Absent::TooEarly),
        })
        .sum()
}

fn open(round: &Round<'_>, accepted: Known<u64>) -> Known<u64> {
    accepted?;
    let open = |socket: &&Socket| match socket.record {
        Some(_) => socket.open().ok_or(Absent::BeforeStart),
        None => Ok(0),
    };
    round.sockets.iter().map(open).sum()
}
