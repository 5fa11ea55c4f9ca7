//! Listeners that come and go all the time: no count is lost, and nothing grows.

use std::{
    collections::VecDeque,
    env, fs,
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use backlogd::model::snapshot::Snapshot;
use socket2::Socket;

use crate::{
    agent::{Agent, Numbers, own, own_few_lost, undone_in},
    clients::Clients,
    namespace::{in_own_netns, own_netns, wait_for},
    offenders::NeverAccepts,
};

/// How long the load lasts; `BACKLOGD_TEST_SECONDS` says otherwise.
const SECONDS: u64 = 20;
/// Opened, and as many closed, in each second.
const LISTENERS_PER_SECOND: u64 = 50;
/// Listeners take turns at as many ports, so that each returns many times.
const PORTS: std::ops::Range<u16> = 20_000..20_100;
/// How many are open at a time.
const OPEN: u16 = 10;
/// Small enough to be full by the time that somebody accepts.
const BACKLOG: i32 = 8;
/// Connections that the servers keep while others come, some beyond their listener's end.
const KEPT: usize = 200;
/// Crowds of clients that stay while others come.
const CROWDS: usize = 50;
/// Between two looks.
const CADENCE: Duration = Duration::from_millis(100);

/// What the servers know: how many listeners there were, and what accept(2) returned.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    listeners: u64,
    accepted: u64,
}

#[test]
#[ignore = "kernel: needs root"]
fn listeners_that_come_and_go_lose_no_count_and_no_memory() {
    let seconds = env::var("BACKLOGD_TEST_SECONDS")
        .map_or(SECONDS, |text| text.parse().expect("BACKLOGD_TEST_SECONDS: whole seconds"));
    in_own_netns(|| {
        let mut agent = Agent::start();
        let half = Duration::from_secs(seconds) / 2;
        let mut served = Served::default();
        // by the end of the first half every port had its turn
        let [first, second] = [(); 2].map(|()| {
            run(&mut agent, half, &mut served);
            check_quiet(&mut agent, served);
            Memory::now()
        });
        let expected = seconds * LISTENERS_PER_SECOND;
        assert!(expected * 8 / 10 <= served.listeners, "only {served:?} in {seconds} s");
        first.check_not_grown(&second);
    });
}

/// What the servers and the clients tell each other.
struct Common {
    /// The port of the youngest listener.
    youngest: AtomicU16,
    stop: AtomicBool,
}

/// Load for a while, and looks meanwhile.
fn run(agent: &mut Agent, time: Duration, served: &mut Served) {
    let common =
        Arc::new(Common { youngest: AtomicU16::new(PORTS.start), stop: AtomicBool::new(false) });
    let server = thread::spawn({
        let common = common.clone();
        move || serve(&common, time)
    });
    let clients = thread::spawn({
        let common = common.clone();
        move || press(&common)
    });
    while !server.is_finished() {
        check_room(&agent.look());
        thread::sleep(CADENCE); // the agent's cadence
    }
    common.stop.store(true, Ordering::Relaxed);
    let more = server.join().expect("the server");
    clients.join().expect("the clients");
    served.listeners += more.listeners;
    served.accepted += more.accepted;
}

/// Opens a listener and closes another one, at a pace. The older half of the listeners is served; of
/// those that close, one in three has never been.
fn serve(common: &Common, time: Duration) -> Served {
    let mut served = Served::default();
    let mut listeners = VecDeque::new();
    let mut kept: VecDeque<Socket> = VecDeque::new();
    let pace = Duration::from_secs(1) / u32::try_from(LISTENERS_PER_SECOND).expect("few");
    let start = Instant::now();
    for (port, turn) in PORTS.cycle().zip(1..) {
        let listener = NeverAccepts::listen(&format!("127.0.0.1:{port}"), BACKLOG);
        listener.socket().set_nonblocking(true).expect("O_NONBLOCK");
        listeners.push_back(listener);
        served.listeners += 1;
        common.youngest.store(port, Ordering::Relaxed);
        let half = usize::from(OPEN / 2);
        for listener in listeners.iter().take(half) {
            let accepted = accept_all(listener);
            served.accepted += u64::try_from(accepted.len()).expect("few");
            kept.extend(accepted);
        }
        kept.drain(..kept.len().saturating_sub(KEPT));
        if usize::from(OPEN) < listeners.len() {
            listeners.remove(if turn % 3 == 0 { half + 1 } else { 0 });
        }
        if time < start.elapsed() {
            return served;
        }
        thread::sleep((pace * turn).saturating_sub(start.elapsed())); // the load's pace
    }
    unreachable!("ports come in a cycle")
}

fn accept_all(listener: &NeverAccepts) -> Vec<Socket> {
    let mut accepted = Vec::new();
    loop {
        match listener.socket().accept() {
            Ok((socket, _)) => accepted.push(socket),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return accepted,
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Connects to the listeners in turn, and to one that has just closed; each second crowd ends by a
/// reset.
fn press(common: &Common) {
    let mut crowds = VecDeque::new();
    for (age, turn) in (0..=OPEN).cycle().zip(0_u32..) {
        if common.stop.load(Ordering::Relaxed) {
            return;
        }
        let n_ports = PORTS.end - PORTS.start;
        let youngest = common.youngest.load(Ordering::Relaxed) - PORTS.start;
        let port = PORTS.start + (youngest + n_ports - age) % n_ports;
        crowds.push_back(Clients::start(3, ([127, 0, 0, 1], port).into()));
        if CROWDS < crowds.len()
            && let Some(crowd) = crowds.pop_front()
            && turn % 2 == 0
        {
            crowd.reset();
        }
        thread::sleep(Duration::from_micros(500)); // the load's pace
    }
}

/// Nobody went without a slot, nothing found a map full.
#[track_caller]
fn check_room(snapshot: &Snapshot) {
    assert_eq!(snapshot.agent.no_slot, Ok(0));
    assert_eq!(snapshot.agent.map_full, Ok(0));
}

/// When the last listener and the last connection are gone, the counts are those of the servers and
/// of the kernel, and every slot is free.
#[track_caller]
fn check_quiet(agent: &mut Agent, served: Served) {
    wait_for("clients to give up", || agent.truth().sockets.is_empty());
    agent.until("every slot to be given back", |snapshot| {
        snapshot.agent.slots.is_ok_and(|(used, _)| used == 0)
    });
    // established and undone = PassiveOpens, drops = ListenDrops, and each listener's identity
    let (snapshot, seen) = agent.settled();
    check_room(&snapshot);
    let lost = own_few_lost(&snapshot);
    let mut sum = Numbers::default();
    for listener in own(&snapshot) {
        let numbers = Numbers::of(listener);
        sum.established += numbers.established;
        sum.accepted += numbers.accepted;
        sum.listener_closed += numbers.listener_closed;
        let closed = listener.counters.closed;
        assert_eq!(
            closed,
            Ok(numbers.accepted),
            "{numbers:?} of {:?}, {lost} lost, {:?}",
            listener.key,
            snapshot.agent
        );
    }
    let is_right = (sum.accepted..=sum.accepted + lost).contains(&served.accepted);
    assert!(is_right, "{served:?}, {sum:?}, {lost} lost");
    let undone = undone_in(&snapshot, own_netns());
    assert_eq!(sum.established + lost + undone, seen.count("PassiveOpens"));
    assert!(0 < sum.accepted && 0 < sum.listener_closed, "{sum:?}");
}

/// What this process, the agent among it, takes, in bytes, at an instant when nobody is connected.
#[derive(Debug)]
struct Memory {
    /// Of user space.
    resident: u64,
    /// Of the programs' maps: what the kernel says of each descriptor.
    locked: u64,
}

impl Memory {
    /// What may come and go between two quiet instants: the allocator's own.
    const SLACK: u64 = 1 << 20;

    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("status");
        let resident = value(&status, "VmRSS:").expect("of every process") * 1024;
        let mut locked = 0;
        for entry in fs::read_dir("/proc/self/fdinfo").expect("fdinfo") {
            let text = fs::read_to_string(entry.expect("a descriptor").path());
            // the directory's own is closed when it has been read
            locked += text.ok().and_then(|text| value(&text, "memlock:")).unwrap_or(0);
        }
        Self { resident, locked }
    }

    #[track_caller]
    fn check_not_grown(&self, later: &Self) {
        assert!(0 < self.locked && later.locked <= self.locked, "{self:?}, then {later:?}");
        assert!(later.resident <= self.resident + Self::SLACK, "{self:?}, then {later:?}");
    }
}

/// The first number after `name`.
fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
