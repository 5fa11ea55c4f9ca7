//! All network namespaces of the host, seen by one agent.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs, thread,
    time::{Duration, Instant},
};

use backlogd::{
    id::{ListenerKey, NetnsId},
    model::{
        Model,
        snapshot::{Listener, Snapshot},
    },
    sources::{Namespaces, Options, Sources},
};

use crate::{
    agent::{SETTINGS, undone_in},
    clients::Clients,
    namespace::{DEADLINE, in_own_netns, run, wait_for},
    offenders::NeverAccepts,
    space::Space,
    tier::{options, scaled},
    truth::Truth,
};

/// An agent that looks at the whole host.
struct Host {
    sources: Sources,
    model: Model,
}

impl Host {
    fn start() -> Self {
        let options = Options { namespaces: Namespaces::All, ..options(4096) };
        let sources = Sources::open(&options).expect("sources");
        let model = Model::new(SETTINGS, sources.hooks());
        let mut host = Self { sources, model };
        host.look();
        host
    }

    fn look(&mut self) -> Snapshot {
        self.model.apply(&self.sources.sample())
    }

    /// Looks until the snapshot is as wanted.
    #[track_caller]
    fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let start = Instant::now();
        loop {
            let snapshot = self.look();
            if wanted(&snapshot) {
                return snapshot;
            }
            assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn of(snapshot: &Snapshot, netns: NetnsId) -> impl Iterator<Item = &Listener> {
    snapshot.listeners.iter().filter(move |listener| listener.key.netns == netns)
}

/// Listeners in each namespace.
const LISTENERS: usize = 4;

/// A namespace and its listeners, the first of which is full and refuses clients.
struct Busy {
    space: Space,
    truth: Truth,
    servers: Vec<NeverAccepts>,
    _clients: Vec<Clients>,
}

impl Busy {
    fn new(traffic: bool) -> Self {
        let space = Space::new();
        let (truth, servers) = space.inside(|| {
            let listen = |i: usize| NeverAccepts::listen(&format!("127.0.0.1:{}", 8000 + i), 3);
            (Truth::start(), (0..LISTENERS).map(listen).collect())
        });
        let mut busy = Self { space, truth, servers, _clients: Vec::new() };
        if traffic {
            busy.press();
        }
        busy
    }

    /// Clients for all, and too many for the first.
    fn press(&mut self) {
        let addrs: Vec<_> = self.servers.iter().map(|server| server.addr).collect();
        let clients = self.space.inside(|| {
            let mut clients: Vec<_> = addrs.iter().map(|addr| Clients::connect(2, *addr)).collect();
            clients.push(Clients::start(6, addrs[0]));
            clients
        });
        self._clients.extend(clients);
        let drops = || self.space.inside(|| self.truth.count("ListenDrops"));
        wait_for("SYNs to be refused", || 4 <= drops());
    }

    /// What the snapshot shows is what the kernel says in this namespace.
    #[track_caller]
    fn check(&self, host: &mut Host) {
        let start = Instant::now();
        let (seen, snapshot) = loop {
            let before = self.space.inside(|| self.truth.now());
            let snapshot = host.look();
            let seen = self.space.inside(|| self.truth.now());
            // clients try again: at some time no drop comes for a moment
            let drops = of(&snapshot, self.space.netns).map(|l| l.counters.drops.unwrap_or(0));
            if before == seen && drops.sum::<u64>() == seen.count("ListenDrops") {
                break (seen, snapshot);
            }
            let shown: Vec<_> =
                of(&snapshot, self.space.netns).map(|l| (l.key, l.counters)).collect();
            let space = snapshot.namespaces.iter().find(|it| it.netns == self.space.netns);
            assert!(start.elapsed() < DEADLINE, "{seen:?}, but\n{shown:#?}\n{space:#?}");
        };
        let listeners: Vec<_> = of(&snapshot, self.space.netns).collect();
        assert_eq!(listeners.len(), LISTENERS);
        for listener in &listeners {
            let at = seen.at((listener.key.addr, listener.key.port).into());
            assert_eq!((listener.length, listener.limit), (at.length, at.limit), "{listener:?}");
            assert_eq!(listener.comm.as_deref(), Some(comm().as_str()), "{:?}", listener.key);
        }
        let established: u64 =
            listeners.iter().map(|l| l.counters.established.expect("has a record")).sum();
        let undone = undone_in(&snapshot, self.space.netns);
        assert_eq!(established + undone, seen.count("PassiveOpens"), "{listeners:?}");
    }
}

/// The name of this process.
fn comm() -> String {
    fs::read_to_string("/proc/self/comm").expect("comm").trim_end().to_owned()
}

#[test]
#[ignore = "kernel: needs root"]
fn the_listeners_of_all_namespaces_are_right_also_those_from_before_the_agent() {
    let n = usize::try_from(scaled(250)).expect("few");
    in_own_netns(|| {
        let mut before: Vec<Busy> = (0..n / 2).map(|_| Busy::new(false)).collect();
        let mut host = Host::start();
        before.iter_mut().step_by(25).for_each(Busy::press);
        let after: Vec<Busy> = (0..n / 2).map(|i| Busy::new(i % 25 == 0)).collect();
        let netns: BTreeMap<NetnsId, usize> =
            before.iter().chain(&after).map(|busy| (busy.space.netns, 0)).collect();
        host.until("every listener to be there and owned", |snapshot| {
            let ours = snapshot.listeners.iter().filter(|l| netns.contains_key(&l.key.netns));
            ours.filter(|listener| listener.comm.is_some()).count() == LISTENERS * 2 * (n / 2)
        });
        host.until("every namespace to be read", |snapshot| {
            let ours = snapshot.namespaces.iter().filter(|it| netns.contains_key(&it.netns));
            ours.filter(|it| it.netstat.is_ok() && !it.sysctls.is_empty()).count() == netns.len()
        });
        // one that had no traffic so far, from before and from after
        before[1].press();
        let mut after = after;
        after[1].press();
        for busy in before.iter().chain(&after).step_by(n.div_ceil(50)) {
            busy.check(&mut host);
        }
        before[1].check(&mut host);
        after[1].check(&mut host);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_namespace_ends_with_its_last_process_and_its_listeners_are_gone() {
    in_own_netns(|| {
        let space = Space::new();
        let pid = space.pid().to_string();
        run("ip", &["link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", &pid]);
        let is_there = || fs::exists("/proc/sys/net/ipv4/conf/v0").expect("/proc/sys");
        let mut host = Host::start();
        let server = space.inside(|| NeverAccepts::listen("127.0.0.1:9000", 5));
        let netns = space.netns;
        host.until("the listener", |snapshot| {
            of(snapshot, netns).any(|listener| listener.length == 0 && listener.limit == 5)
        });
        host.until("the namespace to be read", |snapshot| {
            snapshot.namespaces.iter().any(|it| it.netns == netns && it.netstat.is_ok())
        });
        assert!(is_there());
        drop(server);
        drop(space);
        // with the namespace the other end of the pair goes
        wait_for("the namespace to end while the agent runs", || {
            host.look();
            !is_there()
        });
        host.until("it to be gone from the snapshot", |snapshot| {
            snapshot.namespaces.iter().all(|it| it.netns != netns)
                && of(snapshot, netns).all(|listener| listener.members.is_empty())
        });
    });
}

/// Descriptors of this process.
fn n_fds() -> usize {
    fs::read_dir("/proc/self/fd").expect("fd").count()
}

#[test]
#[ignore = "kernel: needs root"]
fn namespaces_that_come_and_go_are_all_seen_and_leave_nothing() {
    let seconds = env::var("BACKLOGD_TEST_SECONDS")
        .map_or(20, |text| text.parse().expect("BACKLOGD_TEST_SECONDS: whole seconds"));
    in_own_netns(|| {
        let mut host = Host::start();
        let mut alive: Vec<(Instant, Space, NeverAccepts, bool)> = Vec::new();
        let mut spaces = HashSet::new();
        let mut fds = None;
        let start = Instant::now();
        let mut made = 0_u32;
        while start.elapsed() < Duration::from_secs(seconds) {
            if Duration::from_millis(100) * made <= start.elapsed() {
                let space = Space::new();
                let server = space.inside(|| NeverAccepts::listen("127.0.0.1:9000", 5));
                spaces.insert(space.netns);
                alive.push((Instant::now(), space, server, false));
                made += 1;
            }
            let snapshot = host.look();
            for (born, space, _, seen) in &mut alive {
                *seen |= of(&snapshot, space.netns).any(|listener| !listener.members.is_empty());
                assert!(*seen || born.elapsed() < Duration::from_secs(2), "not seen for 2 s");
            }
            alive.retain(|(born, ..)| born.elapsed() < Duration::from_secs(3));
            // when the first have gone again
            if fds.is_none() && Duration::from_secs(seconds / 2) < start.elapsed() {
                fds = Some(n_fds());
            }
        }
        let later = n_fds();
        let fds = fds.expect("half of the time passes");
        assert!(later <= fds + 10, "{fds} descriptors, then {later}");
        assert!(u64::from(made) * 10 >= seconds * 70, "only {made} in {seconds} s");
        alive.clear();
        host.until("all to be gone", |snapshot| {
            // others of this host may have the port, too
            let is_ours = |key: ListenerKey| key.port == 9000 && spaces.contains(&key.netns);
            snapshot.listeners.iter().all(|l| !is_ours(l.key) || l.members.is_empty())
                && snapshot.agent.slots.is_ok_and(|(used, _)| used < 50)
        });
    });
}
