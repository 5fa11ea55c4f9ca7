//! Everything at once, for a minute: no counter goes back, and at each quiet instant all are exact.

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use backlogd::{
    id::ListenerKey,
    input::Known,
    model::snapshot::{Counters, Snapshot},
};

use crate::{
    agent::{Agent, find, own, own_few_lost},
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    offenders::{Accepts, NeverAccepts},
    truth::Seen,
};

/// How long the load lasts; `BACKLOGD_TEST_SECONDS` says otherwise.
const SECONDS: u64 = 60;
/// Load between two quiet instants.
const ROUND: Duration = Duration::from_secs(5);
/// Between two looks.
const CADENCE: Duration = Duration::from_millis(200);

#[test]
#[ignore = "kernel: needs root"]
fn under_mixed_load_no_counter_goes_back_and_quiet_instants_are_exact() {
    let seconds = env::var("BACKLOGD_TEST_SECONDS")
        .map_or(SECONDS, |text| text.parse().expect("BACKLOGD_TEST_SECONDS: whole seconds"));
    in_own_netns(|| {
        let mut agent = Agent::start();
        let mut servers = Servers::start();
        let mut history = History::default();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            run_round(&mut agent, &mut servers, &mut history);
            check_quiet(&mut agent, &servers, &mut history);
        }
    });
}

/// The servers, by address, and what those accepted that were closed.
struct Servers {
    steady: BTreeMap<SocketAddr, Vec<Accepts>>,
    reopening: Option<Accepts>,
    accepted_before: u64,
}

impl Servers {
    fn start() -> Self {
        let ms = Duration::from_millis;
        let mut steady: BTreeMap<SocketAddr, Vec<Accepts>> = BTreeMap::new();
        let mut add = |server: Accepts| steady.entry(server.addr).or_default().push(server);
        add(Accepts::at_once(NeverAccepts::listen("127.0.0.1:0", 128)));
        add(Accepts::at_once(NeverAccepts::listen("[::1]:0", 128)));
        add(Accepts::slowly(ms(2), NeverAccepts::listen("127.0.0.1:0", 10)));
        let group = NeverAccepts::group(&[5, 20, 20, 20]);
        for (listener, pause) in group.into_iter().zip([50, 1, 0, 3]) {
            add(Accepts::slowly(ms(pause), listener));
        }
        let reopening = Accepts::slowly(ms(1), NeverAccepts::listen("127.0.0.1:0", 16));
        Self { steady, reopening: Some(reopening), accepted_before: 0 }
    }

    /// Closes one listener and listens on its address again.
    fn reopen(&mut self) {
        let Some(server) = self.reopening.take() else { return };
        let addr = server.addr;
        self.accepted_before += server.stop();
        let listener = NeverAccepts::again(addr, 16);
        self.reopening = Some(Accepts::slowly(Duration::from_millis(1), listener));
    }

    /// What the servers themselves counted, by address.
    fn accepted(&self) -> BTreeMap<SocketAddr, u64> {
        let sum = |group: &Vec<Accepts>| group.iter().map(Accepts::accepted).sum();
        let mut all: BTreeMap<_, _> = self.steady.iter().map(|(&a, g)| (a, sum(g))).collect();
        if let Some(server) = &self.reopening {
            all.insert(server.addr, self.accepted_before + server.accepted());
        }
        all
    }
}

/// Loads each address until told to stop; each second connection ends by a reset.
fn press(addr: SocketAddr, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let (closing, resetting) = (Clients::start(7, addr), Clients::start(7, addr));
            thread::sleep(Duration::from_millis(10)); // the load's pace
            drop(closing);
            resetting.reset();
        }
    })
}

fn run_round(agent: &mut Agent, servers: &mut Servers, history: &mut History) {
    let stop = Arc::new(AtomicBool::new(false));
    let addresses: Vec<SocketAddr> = servers.accepted().into_keys().collect();
    let clients: Vec<_> = addresses.iter().map(|&addr| press(addr, stop.clone())).collect();
    let start = Instant::now();
    for look in 1.. {
        if ROUND < start.elapsed() {
            break;
        }
        history.append(&agent.look());
        if look % 3 == 0 {
            servers.reopen();
        }
        thread::sleep(CADENCE); // the agent's cadence
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("client"));
}

fn check_quiet(agent: &mut Agent, servers: &Servers, history: &mut History) {
    // clients whose last ACK was refused are still trying: until then nothing is final
    let drained = |seen: &Seen| seen.sockets.iter().all(|socket| socket.length == 0);
    let mut last = agent.truth();
    let mut since = Instant::now();
    wait_for("the queues to drain", || {
        let seen = agent.truth();
        if seen != last || !drained(&seen) {
            (last, since) = (seen, Instant::now());
        }
        Duration::from_millis(500) < since.elapsed()
    });
    // a client that comes back meanwhile is in one of the two only
    let (snapshot, all_accepted) = loop {
        let before = servers.accepted();
        let (snapshot, _) = agent.settled();
        history.append(&snapshot);
        if before == servers.accepted() {
            break (snapshot, before);
        }
    };
    let lost = own_few_lost(&snapshot);
    for (addr, accepted) in all_accepted {
        let counters = find(&snapshot, addr).counters;
        let counted = counters.accepted.expect("counted");
        let is_right = (counted..=counted + lost).contains(&accepted);
        assert!(is_right, "{addr}: {accepted} accepted, {lost} lost, {counters:?}");
    }
}

/// The newest counters of each listener.
#[derive(Default)]
struct History(BTreeMap<ListenerKey, Counters>);

impl History {
    /// Takes the next snapshot, in which nothing is less than before.
    #[track_caller]
    fn append(&mut self, snapshot: &Snapshot) {
        for listener in own(snapshot) {
            let now = listener.counters;
            let before = self.0.insert(listener.key, now).unwrap_or(now);
            for ((name, now), (_, before)) in values(&now).into_iter().zip(values(&before)) {
                assert!(before <= now, "{name} of {:?}: {before:?}, then {now:?}", listener.key);
            }
        }
        let present = own(snapshot).count();
        assert_eq!(present, self.0.len(), "no listener leaves before the retention");
    }
}

fn values(c: &Counters) -> [(&'static str, u64); 8] {
    let known = |n: Known<u64>| n.expect("known to eBPF");
    [
        ("established", known(c.established)),
        ("accepted", known(c.accepted)),
        ("closed", known(c.closed)),
        ("aborted_listener_closed", known(c.aborted_listener_closed)),
        ("aborted_reset", known(c.aborted_reset)),
        ("drops", known(c.drops)),
        ("socket_drops", known(c.socket_drops)),
        ("full", c.full.0),
    ]
}
