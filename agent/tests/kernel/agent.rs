//! The agent's sources and model on the calling thread, and what every view of them must satisfy.

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use backlogd::{
    id::NetnsId,
    input::{Absent, Known, Tier},
    model::{
        Model, Settings,
        snapshot::{Listener, Snapshot},
    },
    sources::{Options, Sources},
};

use crate::{
    namespace::{DEADLINE, own_netns},
    tier::{must_serve, options},
    truth::{Seen, Truth},
};

/// The part of the agent under test: it looks when told to.
pub(crate) struct Agent {
    sources: Sources,
    model: Model,
    ebpf: bool,
    truth: Truth,
}

thread_local! {
    /// Whether an agent of this thread published that the kernel lost events.
    static LOST: Cell<bool> = const { Cell::new(false) };
}

/// Whether the agents of this thread published that the kernel lost events.
pub(crate) fn has_lost() -> bool {
    LOST.get()
}

/// What a listener with eBPF has counted, and its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) established: u64,
    pub(crate) accepted: u64,
    pub(crate) listener_closed: u64,
    pub(crate) reset: u64,
    pub(crate) drops: u64,
    pub(crate) length: u64,
}

/// Longer than it takes until what no program saw is called lost.
const LOSS_IS_PUBLISHED: Duration = Duration::from_secs(3);

/// As in production, but for the sake of the retention tests.
pub(crate) const SETTINGS: Settings = Settings {
    retention: Duration::from_secs(300),
    length_max_window: Duration::from_secs(60),
    stalled_after: Duration::from_secs(4),
};

impl Agent {
    /// Starts with eBPF, unless the tier under test has none, and takes the first look.
    pub(crate) fn start() -> Self {
        Self::with(&options(2048), SETTINGS)
    }

    /// Starts without eBPF.
    pub(crate) fn sampled() -> Self {
        Self::with(&Options { ebpf: false, slots: 2048, ..Options::default() }, SETTINGS)
    }

    /// Starts where the kernel refuses the programs that it asks for.
    pub(crate) fn refused() -> Self {
        Self { ebpf: false, ..Self::start() }
    }

    /// Starts as told and takes the first look.
    pub(crate) fn with(options: &Options, settings: Settings) -> Self {
        let sources = Sources::open(options).expect("sources");
        let model = Model::new(settings, sources.hooks());
        let mut agent = Self { sources, model, ebpf: options.ebpf, truth: Truth::start() };
        agent.look();
        agent
    }

    /// Whether a program serves `event` here. What the tier under test promises must be served.
    #[track_caller]
    pub(crate) fn serves(&self, event: &str) -> bool {
        let hooks = self.sources.hooks();
        let hook = hooks.iter().find(|hook| hook.event == event).expect("in the table of hooks");
        let is_served = hook.tier < Tier::Sampled;
        assert!(is_served || !must_serve(event), "{event} is not served: {hook:?}");
        is_served
    }

    /// Runs of programs for `events` that the kernel skipped, by its statistics.
    pub(crate) fn missed(&mut self, events: impl Fn(&str) -> bool) -> u64 {
        // they are in each tenth sample
        let snapshot = (0..10).map(|_| self.look()).last().expect("ten");
        let missed = snapshot.agent.missed.iter().filter(|(event, ..)| events(event));
        missed.map(|(.., n)| n).sum()
    }

    /// Changes the model's settings.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.model.set(settings);
    }

    /// One sample.
    pub(crate) fn look(&mut self) -> Snapshot {
        let snapshot = self.model.apply(&self.sources.sample());
        let lost = [own_lost(&snapshot), snapshot.agent.corrections];
        if lost.into_iter().any(|lost| lost.is_ok_and(|n| 0 < n)) {
            LOST.set(true);
        }
        snapshot
    }

    /// One sample, and what the daemon does after each: looks at what the model wants to know more of.
    pub(crate) fn look_closer(&mut self) -> Snapshot {
        let snapshot = self.look();
        self.sources.look_closer(self.model.wants_closer_look());
        self.sources.look_at_threads(self.model.wants_threads_of());
        snapshot
    }

    /// The kernel's view at this instant.
    pub(crate) fn truth(&self) -> Seen {
        self.truth.now()
    }

    /// How often the kernel counted `field`.
    pub(crate) fn count(&self, field: &str) -> u64 {
        self.truth.count(field)
    }

    /// Looks until the snapshot is as wanted.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let start = Instant::now();
        loop {
            let snapshot = self.look();
            if wanted(&snapshot) {
                return snapshot;
            }
            let listeners: Vec<_> = own(&snapshot).map(|l| (l.key, l.length, l.counters)).collect();
            let lost = own_lost(&snapshot);
            let waited = start.elapsed();
            assert!(waited < DEADLINE, "waited in vain: {what}\nlost: {lost:?}\n{listeners:#?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A look while nothing moved, and the kernel's view of the same instant; the two agree in
    /// all that every test has in common. What no program saw must be published in a while.
    #[track_caller]
    pub(crate) fn settled(&mut self) -> (Snapshot, Seen) {
        let start = Instant::now();
        loop {
            let before = self.truth.now();
            let snapshot = self.look();
            let seen = self.truth.now();
            let is_whole = || !self.ebpf || seen.count("PassiveOpens") <= children(&snapshot);
            if before == seen && (is_whole() || LOSS_IS_PUBLISHED < start.elapsed()) {
                self.agree(&snapshot, &seen);
                return (snapshot, seen);
            }
            assert!(start.elapsed() < DEADLINE, "never still: {before:?}, then {seen:?}");
        }
    }

    /// Looks while nothing moves, and compares one listener.
    #[track_caller]
    pub(crate) fn check(&mut self, addr: SocketAddr, expected: Numbers) -> Listener {
        let (snapshot, _) = self.settled();
        let listener = find(&snapshot, addr);
        assert_eq!(Numbers::of(listener), expected, "{addr}");
        listener.clone()
    }

    /// Looks until `n` accepted connections are destroyed, which is when the last FIN of theirs is
    /// acknowledged; none is open then.
    #[track_caller]
    pub(crate) fn check_all_closed(&mut self, addr: SocketAddr, n: u64) {
        let closed = |snapshot: &Snapshot| find(snapshot, addr).counters.closed == Ok(n);
        let snapshot = self.until("connections to be destroyed", closed);
        assert_eq!(find(&snapshot, addr).open, Ok(0));
    }

    #[track_caller]
    fn agree(&self, snapshot: &Snapshot, seen: &Seen) {
        agree_now(snapshot, seen);
        let drops = sum(snapshot, |listener| listener.counters.drops);
        assert_eq!(drops, seen.count("ListenDrops"), "sum of drops");
        if !self.ebpf {
            return;
        }
        let (all, lost) = (children(snapshot), own_lost(snapshot));
        let (stale, missed) = (snapshot.agent.stale, &snapshot.agent.missed);
        let passive_opens = seen.count("PassiveOpens");
        assert_eq!(all, passive_opens, "{lost:?} lost; stale {stale:?}, missed {missed:?}");
        for listener in own(snapshot) {
            let n = Numbers::of(listener);
            let gone = n.accepted + n.listener_closed;
            assert_eq!(n.established, gone + n.length, "identity of {:?}: {n:?}", listener.key);
        }
    }
}

/// What PassiveOpens counts: handshakes that were counted for a listener, those that no program
/// saw, and children that were undone.
fn children(snapshot: &Snapshot) -> u64 {
    counted_and_lost(snapshot) + undone_in(snapshot, own_netns())
}

/// Handshakes that were counted for a listener, and those that no program saw.
fn counted_and_lost(snapshot: &Snapshot) -> u64 {
    let established = sum(snapshot, |listener| listener.counters.established);
    established + own_lost(snapshot).unwrap_or(0)
}

/// The sockets, their lengths, limits and `sk_drops` are those of `ss`.
#[track_caller]
fn agree_now(snapshot: &Snapshot, seen: &Seen) {
    let mut shown = BTreeMap::new();
    for socket in &seen.sockets {
        let row = (socket.length, socket.limit, socket.drops);
        shown.entry(socket.addr).or_insert_with(Vec::new).push(row);
    }
    let mut found = BTreeMap::new();
    for listener in own(snapshot).filter(|listener| !listener.members.is_empty()) {
        let (mut rows, mut length, mut limit) = (Vec::new(), 0, 0);
        for member in &listener.members {
            let drops = member.socket_drops.expect("this kernel gives it");
            rows.push((member.length.into(), member.limit.into(), drops.into()));
            length += u64::from(member.length);
            limit += u64::from(member.limit);
        }
        rows.sort_unstable();
        assert_eq!((listener.length, listener.limit), (length, limit), "{:?}", listener.key);
        found.insert(SocketAddr::new(listener.key.addr, listener.key.port), rows);
    }
    assert_eq!(found, shown, "listeners of the agent and of ss: length, limit, drops");
}

fn sum(snapshot: &Snapshot, count: impl Fn(&Listener) -> Known<u64>) -> u64 {
    own(snapshot).map(|listener| count(listener).expect("counted for every listener")).sum()
}

impl Numbers {
    /// Those of `listener`, which must all be known.
    #[track_caller]
    pub(crate) fn of(listener: &Listener) -> Self {
        let counters = listener.counters;
        let known = |n: Known<u64>| n.unwrap_or_else(|why| panic!("{why}: {counters:?}"));
        Self {
            established: known(counters.established),
            accepted: known(counters.accepted),
            listener_closed: known(counters.aborted_listener_closed),
            reset: known(counters.aborted_reset),
            drops: known(counters.drops),
            length: listener.length,
        }
    }
}

/// The listeners of this namespace.
pub(crate) fn own(snapshot: &Snapshot) -> impl Iterator<Item = &Listener> {
    let netns = own_netns();
    snapshot.listeners.iter().filter(move |listener| listener.key.netns == netns)
}

/// Handshakes of this namespace that no program saw.
pub(crate) fn own_lost(snapshot: &Snapshot) -> Known<u64> {
    let netns = own_netns();
    let own = snapshot.namespaces.iter().find(|namespace| namespace.netns == netns);
    own.map_or(Err(Absent::Unreadable), |namespace| namespace.lost_in_kernel)
}

/// Children of a namespace that the kernel made and undid, which are in PassiveOpens: two CPUs worked
/// on one handshake.
pub(crate) fn undone_in(snapshot: &Snapshot, netns: NetnsId) -> u64 {
    let found = snapshot.namespaces.iter().find(|namespace| namespace.netns == netns);
    found.and_then(|namespace| namespace.undone.ok()).unwrap_or(0)
}

/// As [`own_lost`], where packets do not arrive by interrupt: some kernels lose one now and then.
#[track_caller]
pub(crate) fn own_few_lost(snapshot: &Snapshot) -> u64 {
    let lost = own_lost(snapshot).unwrap_or(0);
    let all = counted_and_lost(snapshot);
    assert!(lost <= all.div_ceil(5_000), "{lost} of {all} lost");
    lost
}

/// The listener of this namespace on `addr`, if the snapshot has it.
pub(crate) fn find_in(snapshot: &Snapshot, addr: SocketAddr) -> Option<&Listener> {
    own(snapshot)
        .find(|listener| (listener.key.addr, listener.key.port) == (addr.ip(), addr.port()))
}

/// The listener of this namespace on `addr`.
#[track_caller]
pub(crate) fn find(snapshot: &Snapshot, addr: SocketAddr) -> &Listener {
    find_in(snapshot, addr).unwrap_or_else(|| {
        panic!("{addr} is not among {:?}", own(snapshot).map(|l| l.key).collect::<Vec<_>>())
    })
}
