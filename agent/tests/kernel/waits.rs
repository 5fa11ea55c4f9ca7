//! Accept seen by a hook: as many waits as servers got connections, and each as long as it was.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use backlogd::{
    histogram::{Histogram, upper_bound},
    input::{Absent, Known, Tier},
    model::snapshot::{Counters, Listener, Snapshot},
    sources::Options,
};
use socket2::Socket;

use crate::{
    agent::{Agent, SETTINGS, find, own, own_lost, undone_in},
    namespace::{in_own_netns, mount_tracing, own_netns, packets_by_interrupt, wait_for},
    offenders::{NeverAccepts, StoppedServer},
    servers::{Pool, Way, current_call, uring_ways, visit},
    tier::{options, scaled},
};

const ANY: &str = "127.0.0.1:0";

/// One histogram of a listener.
type Of = fn(&Listener) -> &Known<Arc<Histogram>>;
const WAIT: Of = |listener| &listener.accept_wait;
const DURATION: Of = |listener| &listener.connection_duration;

fn count(listener: &Listener, of: Of) -> Known<u64> {
    of(listener).as_ref().map(|histogram| histogram.count()).map_err(|&why| why)
}

/// By which kind of hook accept is seen; `None`: by none.
#[track_caller]
fn tier(agent: &Agent, snapshot: &Snapshot) -> Option<Tier> {
    let hook = snapshot.hooks.iter().find(|hook| hook.event == "accept").expect("in the table");
    agent.serves("accept").then_some(hook.tier)
}

/// What a histogram must count of `n` connections.
fn counted(tier: Option<Tier>, way: Way, n: u64) -> Known<u64> {
    match (tier, way) {
        (None, _) => Err(Absent::NotOnThisKernel),
        // io_uring is no system call that accepts
        (Some(Tier::Tracepoint), Way::Uring | Way::UringMultishot) => Ok(0),
        (Some(_), _) => Ok(n),
    }
}

/// Loads the servers, all at once; the agent looks meanwhile.
fn load(agent: &mut Agent, addresses: &[SocketAddr], n: u64) {
    let mut clients: Vec<_> = addresses.iter().flat_map(|&addr| visit(addr, n)).collect();
    while !clients.iter().all(thread::JoinHandle::is_finished) {
        agent.look();
    }
    clients.drain(..).for_each(|client| client.join().expect("client"));
}

/// How many of a listener's accepts may reach no program: none, but where neither fentry nor kprobe
/// is to be had. There are kernels on which interrupts hide `most` of all events from all programs
/// alike, and where tracepoints are preemptible the kernel skips those of system calls, and says so.
fn hidden(agent: &mut Agent, most: u64) -> u64 {
    let snapshot = agent.look();
    match tier(agent, &snapshot) {
        Some(Tier::Fentry | Tier::Kprobe) => 0,
        Some(_) | None => most + agent.missed(|event| event == "accept"),
    }
}

#[track_caller]
fn check_way(way: Way, n_threads: usize) {
    in_own_netns(|| {
        let n = scaled(20_000);
        let pool = Pool::start(way, n_threads, NeverAccepts::listen(ANY, 128));
        let mut agent = Agent::start();
        load(&mut agent, &[pool.addr], n);
        wait_for("the server to have all", || pool.accepted() == n);
        check_servers(&mut agent, &[(pool.addr, way)], n, 1);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn threads_that_were_blocked_before_the_agent_are_seen() {
    check_way(Way::Blocking, 8);
}

#[test]
#[ignore = "kernel: needs root"]
fn servers_that_wait_by_epoll_are_seen() {
    check_way(Way::Epoll, 4);
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_that_accepts_by_io_uring_is_seen() {
    for way in uring_ways() {
        check_way(way, 1);
    }
}

/// Compares with the `n` connections that each server got. `most` of a thousand events may be hidden
/// from all programs, on a kernel that does such a thing.
#[track_caller]
fn check_servers(agent: &mut Agent, servers: &[(SocketAddr, Way)], n: u64, most: u64) {
    let all = n * servers.len() as u64;
    let undone = undone_in(&agent.look(), own_netns());
    assert_eq!(agent.truth().count("PassiveOpens"), all + undone);
    agent.until("counted and lost to be all", |snapshot| {
        let counted = own(snapshot).map(|listener| listener.counters.established);
        let counted: Known<u64> = counted.chain([own_lost(snapshot)]).sum();
        counted == Ok(all)
    });
    let hidden = hidden(agent, n * most / 1000);
    let near =
        |expected: u64, got: Known<u64>| got.is_ok_and(|got| got.abs_diff(expected) <= hidden);
    agent.until("connections to be destroyed", |snapshot| {
        own(snapshot).all(|listener| near(n, listener.counters.closed))
    });
    let (snapshot, _) = agent.settled();
    let tier = tier(agent, &snapshot);
    for &(addr, way) in servers {
        let listener = find(&snapshot, addr);
        let Counters { established, accepted, .. } = listener.counters;
        assert!(near(n, established) && near(n, accepted), "{way:?}: {established:?} {accepted:?}");
        assert!(near(0, listener.open), "{way:?}: {:?}", listener.open);
        let expected = counted(tier, way, n);
        for got in [count(listener, WAIT), count(listener, DURATION)] {
            let is_it = expected.map_or(got == expected, |expected| near(expected, got));
            let agent = &snapshot.agent;
            assert!(is_it, "{way:?}: {got:?}, expected {expected:?}; {agent:?}");
        }
    }
}

/// `n` connections to each of several servers, all at once: an accept by a thread pool, by epoll, by
/// io_uring, and by processes that inherited the listening socket.
#[track_caller]
fn check_mix(n: u64, most: u64) {
    let listen = || NeverAccepts::listen(ANY, 512);
    let pool = |way, threads| Pool::start(way, threads, listen());
    let mut pools = vec![pool(Way::Blocking, 8), pool(Way::Epoll, 4)];
    pools.extend(uring_ways().pop().map(|way| pool(way, 1)));
    let inherited = listen();
    let processes = StoppedServer::prefork(4, &inherited);
    let mut agent = Agent::start();
    let mut servers: Vec<_> = pools.iter().map(|pool| (pool.addr, pool.way)).collect();
    servers.push((inherited.addr, Way::Blocking));
    load(&mut agent, &servers.iter().map(|server| server.0).collect::<Vec<_>>(), n);
    let by_processes = || processes.iter().map(StoppedServer::accepted).sum();
    let accepted = || pools.iter().map(Pool::accepted).chain([by_processes()]);
    wait_for("the servers to have all", || accepted().all(|accepted| accepted == n));
    check_servers(&mut agent, &servers, n, most);
}

#[test]
#[ignore = "kernel: needs root"]
fn a_mix_of_servers_is_counted_as_each_of_them_counts() {
    in_own_netns(|| check_mix(scaled(25_000), 1));
}

#[test]
#[ignore = "kernel: needs root"]
fn waits_of_connections_that_arrive_by_interrupt_are_counted() {
    in_own_netns(|| {
        packets_by_interrupt();
        check_mix(scaled(5_000), 50);
    });
}

/// A duration, between two that the test measured.
type Bounds = [Duration; 2];

/// Checks that a histogram holds one duration within each of `bounds`, whatever it is there: below
/// the bound of each bucket are at least those that must be, at most those that can be.
#[track_caller]
fn check_bounds(histogram: &Histogram, bounds: &[Bounds]) {
    assert_eq!(histogram.count(), bounds.len() as u64);
    let below = |at: usize, bound: f64| {
        bounds.iter().filter(|it| it[at].as_secs_f64() <= bound).count() as u64
    };
    let mut n = 0;
    for (bucket, more) in histogram.buckets().iter().enumerate() {
        n += more;
        let bound = upper_bound(bucket);
        // a duration within 10^-7 of a bound can be on either side of it
        let (least, most) = (below(1, bound * (1.0 - 1e-6)), below(0, bound * (1.0 + 1e-6)));
        assert!((least..=most).contains(&n), "{n} of up to {bound} s: {histogram:?}, {bounds:?}");
    }
    let sum = Duration::from_nanos(histogram.sum().0);
    let [least, most] = [0, 1].map(|at| bounds.iter().map(|it| it[at]).sum::<Duration>());
    assert!((least..=most).contains(&sum), "{sum:?} is not within {least:?} and {most:?}");
}

/// The histogram of the listener on `addr`; `None` where no hook serves accept, and then it is
/// absent.
#[track_caller]
fn histogram(agent: &mut Agent, addr: SocketAddr, of: Of) -> Option<Histogram> {
    let is_served = agent.serves("accept");
    let snapshot = agent.look();
    match of(find(&snapshot, addr)) {
        Ok(histogram) if is_served => Some((**histogram).clone()),
        other => {
            assert_eq!((other, is_served), (&Err(Absent::NotOnThisKernel), false));
            None
        }
    }
}

/// One more connection in the queue, its client, and before and after.
fn enqueue(agent: &Agent, addr: SocketAddr) -> (TcpStream, [Instant; 3]) {
    let length = agent.truth().at(addr).length;
    let start = Instant::now();
    let client = TcpStream::connect(addr).expect("it listens");
    let connected = Instant::now();
    wait_for("the connection to be queued", || agent.truth().at(addr).length == length + 1);
    (client, [start, connected, Instant::now()])
}

/// The next connection, and when accept was called and returned.
fn accept(server: &NeverAccepts) -> (Socket, [Instant; 2]) {
    let start = Instant::now();
    let connection = server.accept(1).pop().expect("one");
    (connection, [start, Instant::now()])
}

#[test]
#[ignore = "kernel: needs root"]
fn each_wait_of_a_slow_server_is_in_the_bucket_of_its_length() {
    const PAUSE: Duration = Duration::from_millis(250);
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 64);
        let n = scaled(40).max(12);
        let queued: Vec<_> = (0..n).map(|_| enqueue(&agent, server.addr)).collect();
        let (mut bounds, mut sum) = (Vec::new(), Duration::ZERO);
        for (_, [start, connected, queued]) in &queued {
            thread::sleep(PAUSE); // the server is slow
            let (_, [called, returned]) = accept(&server);
            bounds.push([called - *queued, returned - *start]);
            sum += returned - *connected;
        }
        let Some(waits) = histogram(&mut agent, server.addr, WAIT) else { return };
        check_bounds(&waits, &bounds);
        let ratio = waits.sum().as_seconds() / sum.as_secs_f64();
        assert!((0.99..1.01).contains(&ratio), "{:?} and {sum:?}", waits.sum());
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_thread_that_waits_for_a_connection_is_not_a_connection_that_waits() {
    const BLOCKED: Duration = Duration::from_millis(300);
    for before_the_agent in [false, true] {
        in_own_netns(|| {
            let server = NeverAccepts::listen(ANY, 8);
            let addr = server.addr;
            let mut agent = (!before_the_agent).then(Agent::start);
            let (sender, id) = mpsc::channel();
            let thread = thread::spawn(move || {
                sender.send(rustix::thread::gettid()).expect("somebody waits");
                let accepted = rustix::net::accept(server.socket()).expect("accept");
                (Instant::now(), accepted, server)
            });
            let id = id.recv().expect("it starts");
            wait_for("the server to block", || current_call(id) == Some(libc::SYS_accept));
            let agent = agent.get_or_insert_with(Agent::start);
            thread::sleep(BLOCKED); // with nothing to accept
            let start = Instant::now();
            let client = TcpStream::connect(addr).expect("it listens");
            let (returned, ..) = thread.join().expect("server");
            let longest = returned - start;
            assert!(longest < BLOCKED / 2, "{longest:?}: the machine is too slow to tell");
            if let Some(waits) = histogram(agent, addr, WAIT) {
                check_bounds(&waits, &[[Duration::ZERO, longest]]);
            }
            drop(client);
        });
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn a_connection_lasts_from_accept_until_it_is_destroyed() {
    // is no part of how long it was open
    const QUEUED: Duration = Duration::from_millis(150);
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(ANY, 8);
        let mut bounds = Vec::new();
        // each ends by RST, and in order: then the last FIN must be acknowledged
        for (held, by_reset) in
            [0, 10, 70, 500, 1200].into_iter().flat_map(|ms| [(ms, true), (ms, false)])
        {
            let client = TcpStream::connect(server.addr).expect("it listens");
            thread::sleep(QUEUED);
            let (connection, [called, returned]) = accept(&server);
            thread::sleep(Duration::from_millis(held)); // open
            let start = Instant::now();
            if by_reset {
                connection.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            } else {
                drop(client);
            }
            drop(connection);
            if !by_reset {
                agent.check_all_closed(server.addr, bounds.len() as u64 + 1);
            }
            bounds.push([start - returned, called.elapsed()]);
        }
        agent.check_all_closed(server.addr, bounds.len() as u64);
        if let Some(durations) = histogram(&mut agent, server.addr, DURATION) {
            check_bounds(&durations, &bounds);
        }
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn each_of_many_listeners_has_its_own_durations_and_none_of_one_before_it() {
    // the histograms of so many are in several parts of the map
    const LISTENERS: usize = 600;
    in_own_netns(|| {
        mount_tracing();
        // too few for two rounds: the second has the slots of the first
        let wanted = Options { accept_tracepoints: true, ..options(700) };
        let mut agent = Agent::with(&wanted, SETTINGS);
        let mut all = 0;
        for round in 0..2 {
            let listen =
                |i| NeverAccepts::listen(&format!("127.0.0.1:{}", 2_000 * (round + 5) + i), 8);
            let servers: Vec<_> = (0..LISTENERS).map(listen).collect();
            let n = |i: usize| i % 3 + 1 + round;
            for (i, server) in servers.iter().enumerate() {
                let connect = |_| TcpStream::connect(server.addr).expect("it listens");
                let clients: Vec<_> = (0..n(i)).map(connect).collect();
                drop((clients, server.accept(n(i))));
            }
            all += (0..LISTENERS).map(n).sum::<usize>() as u64;
            let snapshot = agent.until("all to be closed", |snapshot| {
                own(snapshot).filter_map(|it| it.counters.closed.ok()).sum::<u64>() == all
            });
            let is_served = agent.serves("accept");
            let mut differ = 0;
            for (i, server) in servers.iter().enumerate() {
                let listener = find(&snapshot, server.addr);
                for got in [count(listener, WAIT), count(listener, DURATION)] {
                    assert_eq!(is_served, got.is_ok(), "{got:?}");
                    differ += got.map_or(0, |got| got.abs_diff(n(i) as u64));
                }
            }
            let hidden = 2 * hidden(&mut agent, 0);
            assert!(
                differ <= hidden,
                "round {round}: {differ}, of which {hidden} are known to be missed"
            );
            drop(servers);
            agent.until("the slots to be free", |snapshot| {
                snapshot.agent.slots.is_ok_and(|(used, _)| used == 0)
            });
        }
    });
}
