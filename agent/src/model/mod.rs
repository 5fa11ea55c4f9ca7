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
pub mod snapshot;
mod socket;
mod stall;
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
        Absent, Hook, Known, ListenSocket, NamespaceSample, Sample, SlotRecord, SlotsSample,
        Source, Tier,
    },
    model::{
        drops::Claims,
        escalation::Escalation,
        listener::{Round, Span, Tracked},
        namespace::{NamespaceState, loss_absent},
        snapshot::{Agent, Durations, Listener, Namespace, Snapshot},
        socket::{Sight, Socket, Step},
    },
    time::{Monotonic, Nanos},
};

/// Listeners that are gone and no longer shown, of which the counters are kept in case they
/// return: the oldest go first.
const MAX_GONE: usize = 16_384;

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
    sockets: ByCookie<Socket>,
    listeners: BTreeMap<ListenerKey, Tracked>,
    namespaces: BTreeMap<NetnsId, NamespaceState>,
    durations: BTreeMap<Source, Durations>,
    /// As the sample before showed them.
    owners: Arc<BTreeMap<Inode, Vec<Pid>>>,
    samples: u64,
    previous: Option<Monotonic>,
    escalation: Escalation,
}

impl Model {
    /// A model without history. `hooks` says how each event is obtained.
    #[must_use]
    pub fn new(settings: Settings, hooks: Arc<[Hook]>) -> Self {
        Self {
            settings,
            hooks,
            sockets: ByCookie::default(),
            listeners: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            durations: BTreeMap::new(),
            owners: Arc::default(),
            samples: 0,
            previous: None,
            escalation: Escalation::default(),
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
        let records: ByCookie<&SlotRecord> = match &sample.slots {
            Ok(slots) => slots.records.iter().map(|record| (record.cookie, record)).collect(),
            Err(_) => ByCookie::default(),
        };
        for namespace in &sample.namespaces {
            self.see_namespace(namespace, &records, sample.at);
        }
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
            processes: sample.processes.clone(),
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
        records: &ByCookie<&SlotRecord>,
        at: Monotonic,
    ) {
        let first = !self.namespaces.contains_key(&namespace.netns);
        let tells_syn_drops =
            self.hooks.iter().any(|hook| hook.event == "syn_drop" && hook.tier < Tier::Sampled);
        let state = self.namespaces.entry(namespace.netns).or_default();
        let Ok(dump) = &namespace.sockets else { return };
        let live: ByCookie<&ListenSocket> =
            dump.iter().map(|socket| (socket.cookie, socket)).collect();
        let ours = records.values().filter(|record| record.netns == namespace.netns);
        for cookie in live.keys().copied().chain(ours.map(|record| record.cookie)) {
            self.sockets.entry(cookie).or_insert_with(|| Socket::new(namespace.netns));
        }
        let mut steps: Vec<(ListenerKey, Cookie, Step)> = Vec::with_capacity(self.sockets.len());
        let known = self.sockets.iter_mut().filter(|(_, s)| s.netns == namespace.netns);
        for (cookie, socket) in known {
            let step = socket.see(Sight {
                at,
                live: live.get(cookie).map(|live| **live),
                record: records.get(cookie).map(|record| **record),
                first,
                stalled_after: self.settings.stalled_after.into(),
            });
            state.handshakes += step.handshakes;
            steps.extend(socket.key.map(|key| (key, *cookie, step)));
        }
        let moved = state.listen_drops(namespace);
        let claims: Vec<Claims> = steps.iter().map(|(.., step)| step.claims).collect();
        let mut shares = state.allowance.share(moved.unwrap_or(0), &claims);
        let syn_queue_full = state.syn_queue_drops(namespace);
        if tells_syn_drops {
            drops::name_syn_queue_full(&mut shares, syn_queue_full);
        }
        for ((key, cookie, step), (share, unpaid)) in steps.iter().zip(shares) {
            if let Some(socket) = self.sockets.get_mut(cookie) {
                socket.settle(unpaid);
            }
            let listener = self.listeners.entry(*key).or_default();
            listener.add(step, at);
            listener.add_drops(match step.drops_absent {
                Some(absent) => Err(absent),
                None => moved.map(|_| share).ok_or(Absent::Unreadable),
            });
        }
    }

    /// How long connections waited and lived, for the listeners of the records.
    fn add_durations(&mut self, slots: &SlotsSample) {
        let grown = slots.waits.iter().map(|(cookie, more)| (cookie, more, Span::Wait));
        let durations = slots.durations.iter();
        let grown = grown.chain(durations.map(|(cookie, more)| (cookie, more, Span::Open)));
        for (cookie, more, span) in grown {
            let key = self.sockets.get(cookie).and_then(|socket| socket.key);
            if let Some(listener) = key.and_then(|key| self.listeners.get_mut(&key)) {
                listener.add_durations(more, span);
            }
        }
    }

    fn show_listeners(&mut self, sample: &Sample, interval: Nanos) -> Vec<Listener> {
        let features = self.features(sample);
        let owners_changed = !Arc::ptr_eq(&self.owners, &sample.owners);
        self.owners = sample.owners.clone();
        let mut sockets: Vec<(ListenerKey, &Socket)> =
            self.sockets.values().filter_map(|socket| Some((socket.key?, socket))).collect();
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
    fn forget(&mut self, sample: &Sample, records: &ByCookie<&SlotRecord>) {
        let unread = unread(sample);
        let listeners = &mut self.listeners;
        self.sockets.retain(|cookie, socket| {
            let finished =
                socket.is_finished(records.contains_key(cookie)) && !unread.contains(&socket.netns);
            if finished
                && let (Some(key), Some(drops)) = (socket.key, socket.socket_drops())
                && let Some(listener) = listeners.get_mut(&key)
            {
                listener.bury(drops);
            }
            !finished
        });
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
                netstat: namespace.netstat.clone(),
                sysctls: namespace.sysctls.clone(),
                lost_in_kernel: match loss_absent(no_slot) {
                    Some(absent) => Err(absent),
                    None => state.lost(namespace, sample.at),
                },
            }
        };
        sample.namespaces.iter().map(show).collect()
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
