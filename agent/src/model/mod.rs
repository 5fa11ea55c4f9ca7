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
mod see;
pub mod snapshot;
mod socket;
mod stall;
mod suspects;
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
    input::{Absent, Hook, Known, NamespaceSample, ProcessSample, Sample, Source, Tier},
    model::{
        escalation::Escalation,
        listener::{Round, Tracked},
        namespace::{NamespaceState, NetstatTotals, loss_absent},
        see::by_namespace,
        snapshot::{Agent, Durations, Listener, Namespace, Process, Snapshot},
        socket::Socket,
        suspects::Suspects,
        trend::Trend,
        udp::Udp,
    },
    time::{Monotonic, Nanos},
};

/// Listeners that are gone and no longer shown, of which the counters are kept in case they
/// return: the oldest go first.
const MAX_GONE: usize = 4_096;

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
            stalled_after: Duration::from_secs(4),
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
    /// Boxed: half of a tree's places are empty.
    listeners: BTreeMap<ListenerKey, Box<Tracked>>,
    namespaces: BTreeMap<NetnsId, NamespaceState>,
    /// What those that are gone counted: the next ones of their numbers go on from there.
    ended: BTreeMap<NetnsId, NetstatTotals>,
    durations: BTreeMap<Source, Durations>,
    /// As the sample before showed them.
    owners: Arc<BTreeMap<Inode, Vec<Pid>>>,
    samples: u64,
    previous: Option<Monotonic>,
    escalation: Escalation,
    suspects: Suspects,
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
            suspects: Suspects::default(),
            udp: Udp::default(),
            fds: BTreeMap::new(),
        }
    }

    /// Whether something that was just seen deserves a closer look until the next sample.
    #[must_use]
    pub fn wants_closer_look(&self) -> bool {
        self.escalation.is_active()
    }

    /// How many samples it has taken in.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Processes whose threads may show why nobody accepts: those that hold a queue which has gone
    /// unserved for two seconds. At most four, each at most every five seconds, and in turns.
    #[must_use]
    pub fn wants_threads_of(&self) -> &[Pid] {
        self.suspects.wanted()
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
        self.forget(sample);
        let stalled = listeners.iter().filter(|listener| listener.stalled == Ok(true));
        self.escalation.next(sample.at, stalled.map(|listener| listener.key).collect());
        self.suspects.next(sample, &listeners, self.samples == 1);
        Snapshot {
            at: sample.at,
            unix_time: sample.unix_time,
            samples: self.samples,
            interval: interval.ok_or(Absent::TooEarly),
            listeners,
            namespaces: self.show_namespaces(sample),
            udp: self.udp.show(sample),
            processes: self.show_processes(sample),
            threads: self.suspects.found(),
            host: sample.host,
            errors: sample.slots.as_ref().map(|s| s.errors.clone()).map_err(|absent| *absent),
            hooks: self.hooks.clone(),
            degraded: sample.degraded.clone(),
            agent: self.show_agent(sample),
        }
    }

    fn show_listeners(&mut self, sample: &Sample, interval: Nanos) -> Vec<Listener> {
        let features = self.features(sample);
        let owners_changed = !Arc::ptr_eq(&self.owners, &sample.owners);
        self.owners = sample.owners.clone();
        let sockets = self.namespaces.values().flat_map(|state| state.sockets.values());
        let cookie = |socket: &Socket| socket.live.map(|live| live.cookie);
        let mut sockets: Vec<(ListenerKey, Option<Cookie>, &Socket)> =
            sockets.filter_map(|socket| Some((socket.key?, cookie(socket), socket))).collect();
        sockets.sort_unstable_by_key(|(key, cookie, _)| (*key, *cookie));
        let retention = Nanos::from(self.settings.retention);
        let unread = unread(sample);
        let mut rest = sockets.as_slice();
        let mut shown = Vec::with_capacity(self.listeners.len());
        for (key, tracked) in &mut self.listeners {
            // both are in the order of keys
            let n = rest.iter().take_while(|(other, ..)| other == key).count();
            let (ours, others) = rest.split_at(n);
            rest = others;
            let is_over = |since| retention < sample.at - since;
            let is_gone = tracked.gone_since().is_some_and(is_over)
                && ours.iter().all(|(.., socket)| socket.live.is_none());
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
    fn forget(&mut self, sample: &Sample) {
        let unread = unread(sample);
        let listeners = &mut self.listeners;
        for (netns, state) in &mut self.namespaces {
            if unread.contains(netns) {
                continue;
            }
            state.sockets.retain(|_, socket| {
                let finished = socket.is_finished();
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
                reserved_ports: namespace.reserved_ports.clone(),
                connected: namespace.connected,
                sockstat: namespace.sockstat,
                table: namespace.table.clone(),
                ports: state.ports.show(namespace),
                lost_in_kernel: match loss_absent(no_slot) {
                    Some(absent) => Err(absent),
                    None => state.lost(namespace, sample.at),
                },
                undone: loss_absent(no_slot).map_or(Ok(state.undone), Err),
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

/// Namespaces whose sockets could not be read.
fn unread(sample: &Sample) -> BTreeSet<NetnsId> {
    let namespaces = sample.namespaces.iter().filter(|namespace| namespace.sockets.is_err());
    namespaces.map(|namespace| namespace.netns).collect()
}

#[cfg(test)]
mod tests;
