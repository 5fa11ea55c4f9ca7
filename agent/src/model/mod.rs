//! From samples to the snapshot; pure: no clock, file, socket, lock or log.
//!
//! [`Model::apply`] joins what sock_diag, the eBPF records and /proc said of the same sockets,
//! keeps the counters that outlive them, and returns the [`Snapshot`] that everything outward
//! reads.

mod delta;
mod drops;
mod escalation;
mod listener;
mod namespace;
mod ports;
pub mod snapshot;
mod socket;
mod stall;
mod trend;
mod udp;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::Duration,
};

use crate::{
    id::{Cookie, Inode, ListenerKey, NetnsId, Pid},
    input::{
        Absent, Hook, Known, ListenSocket, NamespaceSample, ProcessSample, Sample, SlotRecord,
        SlotsSample, Source, Tier,
    },
    model::{
        drops::Claims,
        escalation::Escalation,
        listener::{Round, Span, Tracked},
        namespace::{NamespaceState, NetstatTotals, loss_absent},
        snapshot::{Agent, Durations, Listener, Namespace, Process, Snapshot},
        socket::{Sight, Socket, Step},
        trend::Trend,
        udp::Udp,
    },
    time::{Monotonic, Nanos},
};

/// Listeners that are gone and no longer shown, of which the counters are kept in case they
/// return: the oldest go first.
const MAX_GONE: usize = 16_384;

/// Namespaces that are gone, of which the counters are kept in case their number is given again.
const MAX_ENDED: usize = 1_024;

/// By a socket's cookie. Cookies are the kernel's own count: nobody can make them collide.
type ByCookie<T> = HashMap<Cookie, T, BuildHasherDefault<CookieHasher>>;

/// Spreads a cookie by one multiplication (Knuth, The Art of Computer Programming, 6.4).
#[derive(Clone, Copy, Debug, Default)]
struct CookieHasher(u64);

impl Hasher for CookieHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// What of the model can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a listener that is gone stays in the snapshot.
    pub retention: Duration,
    /// Over which time `length_max` is the highest length.
    pub length_max_window: Duration,
    /// How long a queue must go unserved to be called stalled.
    pub stalled_after: Duration,
}

impl Settings {
    fn window(&self) -> Nanos {
        self.length_max_window.into()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(300),
            length_max_window: Duration::from_secs(60),
            stalled_after: Duration::from_secs(10),
        }
    }
}

/// What cannot be had for any listener, and why.
#[derive(Clone, Copy, Debug)]
struct Features {
    /// The records of the programs.
    records: Option<Absent>,
    /// Length at each enqueue.
    enqueue: Known<()>,
    /// SYN-queue length.
    syn_queue: Known<()>,
    /// SYNs that reach a listener.
    syn: Known<()>,
    /// SYNs answered with a cookie.
    syn_cookie: Known<()>,
    /// SYNs refused since a queue was full.
    syn_drop: Known<()>,
    /// Last ACKs refused since the accept queue was full.
    ack_drop: Known<()>,
    /// Each accept, and so how long a connection waited and lived.
    accept: Known<()>,
}

/// Everything that is kept from sample to sample.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    hooks: Arc<[Hook]>,
    listeners: BTreeMap<ListenerKey, Tracked>,
    namespaces: BTreeMap<NetnsId, NamespaceState>,
    /// What those that are gone counted: the next ones of their numbers go on from there.
    ended: BTreeMap<NetnsId, NetstatTotals>,
    durations: BTreeMap<Source, Durations>,
    /// As the sample before showed them.
    owners: Arc<BTreeMap<Inode, Vec<Pid>>>,
    samples: u64,
    previous: Option<Monotonic>,
    escalation: Escalation,
    udp: Udp,
    /// Open descriptors of each owner, over time.
    fds: BTreeMap<Pid, Trend>,
}

impl Model {
    /// A model without history. `hooks` says how each event is obtained.
    #[must_use]
    pub fn new(settings: Settings, hooks: Arc<[Hook]>) -> Self {
        Self {
            settings,
            hooks,
            listeners: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            ended: BTreeMap::new(),
            durations: BTreeMap::new(),
            owners: Arc::default(),
            samples: 0,
            previous: None,
            escalation: Escalation::default(),
            udp: Udp::default(),
            fds: BTreeMap::new(),
        }
    }

    /// Whether something that was just seen deserves a closer look until the next sample.
    #[must_use]
    pub fn wants_closer_look(&self) -> bool {
        self.escalation.is_active()
    }

    /// Changes the settings from the next sample on.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Takes in one sample and shows the host as it is then.
    pub fn apply(&mut self, sample: &Sample) -> Snapshot {
        let records = by_namespace(sample);
        for namespace in &sample.namespaces {
            let records = records.get(&namespace.netns).map_or(&[][..], Vec::as_slice);
            self.see_namespace(namespace, records, sample.at);
        }
        self.see_gone(sample, &records);
        if let Ok(slots) = &sample.slots {
            self.add_durations(slots);
        }
        let interval = self.previous.replace(sample.at).map(|before| sample.at - before);
        self.samples += 1;
        let listeners = self.show_listeners(sample, interval.unwrap_or_default());
        self.forget(sample, &records);
        let stalled = listeners.iter().filter(|listener| listener.stalled == Ok(true));
        self.escalation.next(sample.at, stalled.map(|listener| listener.key).collect());
        Snapshot {
            at: sample.at,
            unix_time: sample.unix_time,
            samples: self.samples,
            interval: interval.ok_or(Absent::TooEarly),
            listeners,
            namespaces: self.show_namespaces(sample),
            udp: self.udp.show(sample),
            processes: self.show_processes(sample),
            host: sample.host,
            errors: sample.slots.as_ref().map(|s| s.errors.clone()).map_err(|absent| *absent),
            hooks: self.hooks.clone(),
            degraded: sample.degraded.clone(),
            agent: self.show_agent(sample),
        }
    }

    /// Sockets of one namespace: what each did, and its part of the listen drops.
    fn see_namespace(
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
    fn see_gone(&mut self, sample: &Sample, records: &Records<'_>) {
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
        let live: ByCookie<ListenSocket> =
            seen.sockets.iter().map(|socket| (socket.cookie, *socket)).collect();
        let records: ByCookie<SlotRecord> =
            seen.records.iter().map(|record| (record.cookie, **record)).collect();
        for cookie in live.keys().chain(records.keys()) {
            state.sockets.entry(*cookie).or_insert_with(Socket::default);
        }
        let mut steps: Vec<(ListenerKey, Cookie, Step)> = Vec::with_capacity(state.sockets.len());
        let is_seen = |cookie: &Cookie| matches!(seen.of, Of::All) || records.contains_key(cookie);
        for (cookie, socket) in state.sockets.iter_mut().filter(|(cookie, _)| is_seen(cookie)) {
            let step = socket.see(Sight {
                at,
                netns,
                live: live.get(cookie).copied(),
                record: records.get(cookie).copied(),
                first: seen.first,
                stalled_after: self.settings.stalled_after.into(),
            });
            state.handshakes += step.handshakes;
            steps.extend(socket.key.map(|key| (key, *cookie, step)));
        }
        let claims: Vec<Claims> = steps.iter().map(|(.., step)| step.claims).collect();
        let mut shares = state.allowance.share(seen.moved.unwrap_or(0), &claims);
        if self.hooks.iter().any(|hook| hook.event == "syn_drop" && hook.tier < Tier::Sampled) {
            drops::name_syn_queue_full(&mut shares, seen.syn_queue_full);
        }
        for ((key, cookie, step), (share, unpaid)) in steps.iter().zip(shares) {
            if let Some(socket) = state.sockets.get_mut(cookie) {
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
    fn add_durations(&mut self, slots: &SlotsSample) {
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

    fn show_listeners(&mut self, sample: &Sample, interval: Nanos) -> Vec<Listener> {
        let features = self.features(sample);
        let owners_changed = !Arc::ptr_eq(&self.owners, &sample.owners);
        self.owners = sample.owners.clone();
        let sockets = self.namespaces.values().flat_map(|state| state.sockets.values());
        let mut sockets: Vec<(ListenerKey, &Socket)> =
            sockets.filter_map(|socket| Some((socket.key?, socket))).collect();
        sockets.sort_unstable_by_key(|(key, socket)| (*key, socket.live.map(|live| live.cookie)));
        let retention = Nanos::from(self.settings.retention);
        let unread = unread(sample);
        let mut rest = sockets.as_slice();
        let mut shown = Vec::with_capacity(self.listeners.len());
        for (key, tracked) in &mut self.listeners {
            // both are in the order of keys
            let n = rest.iter().take_while(|(other, _)| other == key).count();
            let (ours, others) = rest.split_at(n);
            rest = others;
            let is_over = |since| retention < sample.at - since;
            let is_gone = tracked.gone_since().is_some_and(is_over)
                && ours.iter().all(|(_, socket)| socket.live.is_none());
            // what could not be read is not known, neither as it was nor as gone
            if is_gone || unread.contains(&key.netns) {
                continue;
            }
            let round = Round {
                sample,
                settings: &self.settings,
                features: &features,
                sockets: ours,
                owners_changed,
                interval,
            };
            shown.push(tracked.show(*key, &round));
        }
        shown
    }

    fn features(&self, sample: &Sample) -> Features {
        let records = sample.slots.as_ref().err().copied();
        let hook = |event| {
            let served =
                self.hooks.iter().any(|hook| hook.event == event && hook.tier < Tier::Sampled);
            match records {
                Some(absent) => Err(absent),
                None if served => Ok(()),
                None => Err(Absent::NotOnThisKernel),
            }
        };
        Features {
            records,
            enqueue: hook("enqueue"),
            syn_queue: hook("syn_queue"),
            syn: hook("syn"),
            syn_cookie: hook("syn_cookie"),
            syn_drop: hook("syn_drop"),
            ack_drop: hook("ack_drop"),
            accept: hook("accept"),
        }
    }

    /// Drops what can never matter again, and keeps the rest bounded.
    fn forget(&mut self, sample: &Sample, records: &Records<'_>) {
        let unread = unread(sample);
        let listeners = &mut self.listeners;
        for (netns, state) in &mut self.namespaces {
            if unread.contains(netns) {
                continue;
            }
            let records = records.get(netns).map_or(&[][..], Vec::as_slice);
            let records: BTreeSet<Cookie> = records.iter().map(|record| record.cookie).collect();
            state.sockets.retain(|cookie, socket| {
                let finished = socket.is_finished(records.contains(cookie));
                if finished
                    && let (Some(key), Some(drops)) = (socket.key, socket.socket_drops())
                    && let Some(listener) = listeners.get_mut(&key)
                {
                    listener.bury(drops);
                }
                !finished
            });
        }
        let present: BTreeSet<NetnsId> = sample.namespaces.iter().map(|it| it.netns).collect();
        let has_ended = |netns: &NetnsId, state: &mut NamespaceState| {
            !present.contains(netns) && state.sockets.is_empty()
        };
        for (netns, state) in self.namespaces.extract_if(.., has_ended) {
            self.ended.insert(netns, state.end());
            if MAX_ENDED < self.ended.len() {
                self.ended.pop_first();
            }
        }
        let mut gone: Vec<(Monotonic, ListenerKey)> = listeners
            .iter()
            .filter_map(|(key, listener)| Some((listener.gone_since()?, *key)))
            .collect();
        if MAX_GONE < gone.len() {
            gone.sort_unstable();
            for (_, key) in &gone[..gone.len() - MAX_GONE] {
                listeners.remove(key);
            }
        }
    }

    fn show_namespaces(&mut self, sample: &Sample) -> Vec<Namespace> {
        let no_slot = sample.slots.as_ref().map(|slots| slots.no_slot).map_err(|absent| *absent);
        let show = |namespace: &NamespaceSample| {
            let state = self.namespaces.entry(namespace.netns).or_default();
            Namespace {
                netns: namespace.netns,
                netstat: state.netstat(namespace),
                sysctls: namespace.sysctls.clone(),
                connected: namespace.connected,
                sockstat: namespace.sockstat,
                table: namespace.table.clone(),
                ports: state.ports.show(namespace),
                lost_in_kernel: match loss_absent(no_slot) {
                    Some(absent) => Err(absent),
                    None => state.lost(namespace, sample.at),
                },
            }
        };
        sample.namespaces.iter().map(show).collect()
    }

    fn show_processes(&mut self, sample: &Sample) -> BTreeMap<Pid, Process> {
        self.fds.retain(|pid, _| sample.processes.contains_key(pid));
        let show = |(&pid, now): (&Pid, &ProcessSample)| {
            let trend = self.fds.entry(pid).or_default();
            let (open, max) = (now.open_fds, now.max_fds);
            if let Ok(open) = open {
                trend.push(sample.at, open);
            }
            let fds_exhausted_in = max.and_then(|max| trend.reaches(max));
            (pid, Process { now: now.clone(), fds_exhausted_in })
        };
        sample.processes.iter().map(show).collect()
    }

    fn show_agent(&mut self, sample: &Sample) -> Agent {
        for &(source, duration) in &sample.durations {
            self.durations.entry(source).or_default().observe(duration);
        }
        let slots = sample.slots.as_ref().map_err(|absent| *absent);
        let used = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Agent {
            durations: self.durations.clone(),
            slots: slots.map(|slots| (used(slots.records.len()), slots.capacity)),
            no_slot: slots.map(|slots| slots.no_slot),
            stale: slots.map(|slots| slots.stale),
            second_copy: slots.map(|slots| slots.second_copy),
            map_full: slots.map(|slots| slots.map_full),
            closer_looks: slots.and_then(|slots| slots.closer_looks),
            corrections: slots.and_then(|slots| slots.corrections),
            missed: slots.map(|slots| slots.missed.clone()).unwrap_or_default(),
            runs: slots.map(|slots| slots.runs.clone()).unwrap_or_default(),
        }
    }
}

/// The records of a sample, by namespace.
type Records<'a> = HashMap<NetnsId, Vec<&'a SlotRecord>>;

fn by_namespace(sample: &Sample) -> Records<'_> {
    let mut records = Records::new();
    for record in sample.slots.iter().flat_map(|slots| &slots.records) {
        records.entry(record.netns).or_default().push(record);
    }
    records
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

/// Namespaces whose sockets could not be read.
fn unread(sample: &Sample) -> BTreeSet<NetnsId> {
    let namespaces = sample.namespaces.iter().filter(|namespace| namespace.sockets.is_err());
    namespaces.map(|namespace| namespace.netns).collect()
}

#[cfg(test)]
mod tests;
