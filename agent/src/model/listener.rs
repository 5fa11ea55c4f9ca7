//! One listener over its sockets: totals that outlive them, windows, owner.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use crate::{
    histogram::Histogram,
    id::{Cookie, ListenerKey, Pid},
    input::{Absent, Connections, HookedDrops, Known, Sample, Workload},
    model::{
        Features, Settings,
        delta::Total,
        drops::Share,
        snapshot::{Counters, DropsBy, Found, Listener, Member, Rates},
        socket::{Socket, Step},
        window::{Highest, Rate},
    },
    time::{Monotonic, Nanos},
};

/// What is kept of a listener from sample to sample, also after it is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracked {
    established: Total,
    found: Found,
    accepted: Total,
    closed: Total,
    discarded: Total,
    resets: Total,
    syns: Total,
    cookies: Total,
    drops: Total,
    hooked: HookedDrops,
    waits: Durations,
    durations: Durations,
    /// `sk_drops` of the sockets that are gone.
    departed_drops: u64,
    full: Nanos,
    highest: Highest,
    rate: Rate<3>,
    rates_absent: [Option<Absent>; 3],
    last_accept: Option<Monotonic>,
    comm: Option<Arc<str>>,
    workload: Arc<Workload>,
    owners: Arc<[Pid]>,
    /// The lowest of each socket's owners, in the order of the sockets.
    holders: Vec<Option<Pid>>,
    /// Sum of the inodes whose owners these are.
    inodes: u64,
    v6only: bool,
    gone_since: Option<Monotonic>,
    was_full: bool,
    /// Whether a part of what it did went uncounted, for want of a slot.
    unseen: bool,
    /// What this sample's sockets showed as their longest queue, summed.
    round_highest: u64,
}

/// A histogram, a kilobyte; those that count nothing are one.
#[derive(Clone, Debug)]
struct Durations(Arc<Histogram>);

impl Default for Durations {
    fn default() -> Self {
        // never written: whoever counts takes a copy
        static NONE: LazyLock<Arc<Histogram>> = LazyLock::new(Arc::default);
        Self(NONE.clone())
    }
}

impl Tracked {
    /// Adds what one of its sockets did.
    pub(super) fn add(&mut self, step: &Step, at: Monotonic) {
        self.established.add(step.counted.established);
        self.found.waiting += step.counted.found_waiting;
        self.found.open += step.counted.found_open;
        self.accepted.add(step.counted.accepted);
        self.closed.add(step.counted.closed);
        self.discarded.add(step.counted.discarded);
        self.resets.add(step.counted.resets);
        self.syns.add(step.counted.syns);
        self.cookies.add(step.counted.cookies);
        self.round_highest += step.highest;
        if 0 < step.counted.accepted {
            self.last_accept = Some(at);
        }
    }

    /// Adds listen drops, or says why they cannot be had this time.
    pub(super) fn add_drops(&mut self, drops: Known<Share>) {
        self.drops.set_absent(drops.err());
        let share = drops.unwrap_or_default();
        self.drops.add(share.total());
        self.hooked.full_syn += share.hooked.full_syn;
        self.hooked.full_ack += share.hooked.full_ack;
        self.hooked.syn_queue_full += share.hooked.syn_queue_full;
    }

    /// Adds durations.
    pub(super) fn add_durations(&mut self, more: &Histogram, span: Span) {
        let all = match span {
            Span::Wait => &mut self.waits,
            Span::Open => &mut self.durations,
        };
        Arc::make_mut(&mut all.0).add(more);
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
        // those that are gone come first
        let gone = round.sockets.partition_point(|(.., socket)| socket.live.is_none());
        let live = &round.sockets[gone..];
        self.note_presence(live, round);
        self.note_features(live, round);
        let highest =
            self.highest.push(round.sample.at, self.round_highest, round.settings.window());
        self.round_highest = 0;
        self.note_owners(live, round);
        let counters = self.counters(round);
        let seen = Seen { at: round.sample.at, accepted: counters.accepted.map(drop) };
        let members = live.iter().zip(&self.holders);
        let members: Vec<Member> =
            members.filter_map(|((.., socket), pid)| member(socket, *pid, seen)).collect();
        Listener {
            key,
            v6only: self.v6only,
            length: members.iter().map(|m| u64::from(m.length)).sum(),
            limit: members.iter().map(|m| u64::from(m.limit)).sum(),
            length_max: round.features.enqueue.and(counters.established).map(|_| highest),
            fill_ratio_max: members.iter().map(fill_ratio).reduce(f64::max),
            syn_queue: syn_queue(live, round.features),
            accept_wait: counters
                .accepted
                .and(round.features.accept)
                .map(|()| self.waits.0.clone()),
            connection_duration: counters
                .closed
                .and(round.features.accept)
                .map(|()| self.durations.0.clone()),
            rates: self.rates(round.sample.at, &counters),
            open: open(round, counters.accepted),
            connections: connections(&key, round),
            since_accept: counters.accepted.and_then(|_| {
                self.last_accept.map(|then| round.sample.at - then).ok_or(Absent::TooEarly)
            }),
            stalled: counters
                .accepted
                .map(|_| live.iter().any(|(.., socket)| socket.accept_loop.is_stalled())),
            comm: self.comm.clone(),
            workload: self.workload.clone(),
            owners: self.owners.clone(),
            members,
            counters,
        }
    }

    fn note_presence(&mut self, live: &[Of<'_>], round: &Round<'_>) {
        if self.was_full {
            self.full = self.full + round.interval;
        }
        self.was_full = live.iter().any(|(.., socket)| socket.was_full);
        match live.first().and_then(|(.., socket)| socket.live) {
            Some(socket) => {
                self.gone_since = None;
                self.v6only = socket.v6only;
            }
            None => _ = self.gone_since.get_or_insert(round.sample.at),
        }
    }

    /// A counter of which a part goes unseen is absent, not too low.
    fn note_features(&mut self, live: &[Of<'_>], round: &Round<'_>) {
        let never_had_a_slot = |socket: &Socket| {
            let came_and_went = socket.live.is_none() && socket.record.is_none();
            came_and_went || 1 < socket.without_record
        };
        self.unseen |= round.sockets.iter().any(|(.., socket)| never_had_a_slot(socket));
        let no_slot = self.unseen;
        let nothing = !live.is_empty() && live.iter().all(|(.., socket)| socket.record.is_none());
        // it may just have been made: after the records were read, before the sockets were
        let too_early = nothing && self.established == Total::new();
        let absent = round
            .features
            .records
            .or(no_slot.then_some(Absent::NoSlot))
            .or(too_early.then_some(Absent::TooEarly));
        for total in [
            &mut self.established,
            &mut self.accepted,
            &mut self.closed,
            &mut self.discarded,
            &mut self.resets,
            &mut self.syns,
            &mut self.cookies,
        ] {
            total.set_absent(absent);
        }
    }

    fn note_owners(&mut self, live: &[Of<'_>], round: &Round<'_>) {
        let inodes = || live.iter().filter_map(|(.., socket)| Some(socket.live?.inode));
        let sum = inodes().fold(0_u64, |sum, inode| sum.wrapping_add(inode.0));
        if round.owners_changed || sum != self.inodes {
            let owners = inodes().filter_map(|inode| round.sample.owners.get(&inode));
            let pids: BTreeSet<Pid> = owners.flatten().copied().collect();
            self.owners = pids.into_iter().collect();
            let lowest = |inode| round.sample.owners.get(&inode)?.iter().copied().min();
            self.holders = inodes().map(lowest).collect();
            self.inodes = sum;
        }
        let owner = self.owners.first().and_then(|pid| round.sample.processes.get(pid));
        if let Some(process) = owner {
            self.comm = Some(process.comm.clone());
            self.workload = process.workload.clone();
        } else if self.comm.is_none() {
            self.comm = live.iter().find_map(|(.., socket)| socket.listened_by()).and_then(name);
        }
    }

    fn counters(&self, round: &Round<'_>) -> Counters {
        let socket_drops = round
            .sockets
            .iter()
            .map(|(.., socket)| match socket.live {
                Some(live) => live.drops.map(u64::from),
                None => Ok(socket.socket_drops().unwrap_or(0).into()),
            })
            .sum::<Known<u64>>();
        Counters {
            established: self.established.known(),
            found: self.established.known().map(|_| self.found),
            accepted: self.accepted.known(),
            closed: self.closed.known(),
            aborted_listener_closed: self.discarded.known(),
            aborted_reset: self.resets.known(),
            syns: round.features.syn.and(self.syns.known()),
            syncookies: round.features.syn_cookie.and(self.cookies.known()),
            drops: self.drops.known(),
            drops_by: self.drops_by(round.features),
            socket_drops: socket_drops.map(|drops| drops + self.departed_drops),
            full: self.full,
        }
    }

    fn drops_by(&self, features: &Features) -> DropsBy {
        let HookedDrops { full_syn, full_ack, syn_queue_full } = self.hooked;
        let rest = self.drops.known().map(|all| all - full_syn - full_ack - syn_queue_full);
        let told = features.syn_drop.and(features.ack_drop);
        DropsBy {
            accept_queue_full_syn: features.syn_drop.map(|()| full_syn),
            accept_queue_full_ack: features.ack_drop.map(|()| full_ack),
            syn_queue_full: features.syn_drop.map(|()| syn_queue_full),
            other: told.and(rest),
            unspecified: match told {
                Ok(()) => Err(Absent::NotOnThisKernel),
                Err(_) => rest,
            },
        }
    }

    fn rates(&mut self, at: Monotonic, counters: &Counters) -> Rates {
        let values = [counters.established, counters.accepted, counters.drops];
        let absent = values.map(Known::err);
        if std::mem::replace(&mut self.rates_absent, absent) != absent {
            self.rate.clear();
        }
        let rates = self.rate.push(at, values.map(Known::unwrap_or_default));
        let [established, accepted, drops] = [0, 1, 2].map(|i| match absent[i] {
            Some(absent) => Err(absent),
            None => rates.map(|rates| rates[i]).ok_or(Absent::TooEarly),
        });
        Rates { established, accepted, drops }
    }
}

/// What a duration is the duration of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// From the queue to accept.
    Wait,
    /// From accept to the end.
    Open,
}

/// A socket of the listener, and its cookie while it listens.
type Of<'a> = (ListenerKey, Option<Cookie>, &'a Socket);

/// What [`Tracked::show`] looks at.
pub(super) struct Round<'a> {
    pub(super) sample: &'a Sample,
    pub(super) settings: &'a Settings,
    pub(super) features: &'a Features,
    /// Its sockets. Those that are gone while connections live on come first.
    pub(super) sockets: &'a [Of<'a>],
    /// Whether any socket of the host has other owners than in the sample before.
    pub(super) owners_changed: bool,
    /// Time since the sample before.
    pub(super) interval: Nanos,
}

/// A task's name without its padding; `None` for no name.
fn name(comm: [u8; 16]) -> Option<Arc<str>> {
    let end = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
    let name = String::from_utf8_lossy(&comm[..end]);
    (!name.is_empty()).then(|| Arc::from(&*name))
}

/// When a member is looked at, and whether it is known who accepts.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Monotonic,
    accepted: Known<()>,
}

fn member(socket: &Socket, pid: Option<Pid>, seen: Seen) -> Option<Member> {
    let live = socket.live?;
    let since = socket.accept_loop.waiting_since().unwrap_or(seen.at);
    Some(Member {
        pid,
        cookie: live.cookie,
        inode: live.inode,
        length: live.length,
        limit: live.limit,
        socket_drops: live.drops,
        waiting: seen.accepted.map(|()| seen.at - since),
        stalled: seen.accepted.map(|()| socket.accept_loop.is_stalled()),
    })
}

fn fill_ratio(member: &Member) -> f64 {
    f64::from(member.length) / f64::from(member.limit.max(1))
}

fn syn_queue(live: &[Of<'_>], features: &Features) -> Known<u64> {
    features.syn_queue?;
    live.iter()
        .map(|(.., socket)| match socket.record.and_then(|record| record.syn_queue) {
            Some(length) => Ok(u64::from(length)),
            None if 1 < socket.without_record => Err(Absent::NoSlot),
            None => Err(Absent::Unreadable),
        })
        .sum()
}

/// Its connections in the newest read of its namespace's table. A listener that was not there at that
/// time is not in it.
fn connections(key: &ListenerKey, round: &Round<'_>) -> Known<Connections> {
    let namespaces = &round.sample.namespaces;
    let at = namespaces.binary_search_by_key(&key.netns, |namespace| namespace.netns);
    let table =
        at.map_or(Err(Absent::Unreadable), |at| namespaces[at].table.as_ref().map_err(|it| *it))?;
    table.table.listeners.get(&(key.addr, key.port)).copied().ok_or(Absent::TooEarly)
}

fn open(round: &Round<'_>, accepted: Known<u64>) -> Known<u64> {
    accepted?;
    let open = |(.., socket): &Of<'_>| match socket.record {
        Some(_) => socket.open().ok_or(Absent::BeforeStart),
        None => Ok(0),
    };
    round.sockets.iter().map(open).sum()
}
