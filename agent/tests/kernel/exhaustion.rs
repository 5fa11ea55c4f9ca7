//! What runs out: descriptors and local ports; and what is left open.

use std::{
    env,
    fs::{self, File},
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use backlogd::{
    id::Pid,
    input::Known,
    model::snapshot::{PortUse, Snapshot},
    time::Monotonic,
};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};

use crate::{
    agent::{Agent, find},
    clients::{Clients, bind},
    namespace::{DEADLINE, in_own_netns, is_since, set_sysctl, wait_for},
    offenders::NeverAccepts,
    tier::scaled,
};

/// Set for the process that leaks.
const LEAK: &str = "BACKLOGD_TEST_LEAK";
/// Its limit of descriptors.
const FILES: u64 = 1_000;
/// It opens one in each.
const PACE: Duration = Duration::from_millis(10);

struct Leaker(Child);

impl Drop for Leaker {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Open descriptors, as /proc says.
fn n_fds(pid: u32) -> u64 {
    let folder = format!("/proc/{pid}/fd");
    match fs::metadata(&folder).expect("alive").size() {
        // before 6.2
        0 => fs::read_dir(&folder).expect("alive").count() as u64,
        n => n,
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn descriptors_are_those_of_proc_and_their_end_is_foreseen() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 5);
        let inherited = server.socket().as_fd().try_clone_to_owned().expect("a descriptor");
        let leaker = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "exhaustion::leaks_descriptors", "--ignored", "--test-threads=1"])
            .env(LEAK, "1")
            .stdin(inherited)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test again");
        let leaker = Leaker(leaker);
        let pid = leaker.0.id();
        let mut foreseen = Vec::new();
        let start = Instant::now();
        loop {
            let before = n_fds(pid);
            let snapshot = agent.look();
            let after = n_fds(pid);
            if let Some(process) = snapshot.processes.get(&Pid(pid)) {
                let open = process.now.open_fds.expect("told");
                assert!((before..=after).contains(&open), "{before} <= {open} <= {after}");
                if process.now.max_fds == Ok(FILES)
                    && (400..800).contains(&open)
                    && let Ok(left) = process.fds_exhausted_in
                {
                    foreseen.push((Instant::now(), left));
                }
            }
            if after == FILES {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "{after} of {FILES} in {DEADLINE:?}");
            thread::sleep(Duration::from_millis(100));
        }
        let end = Instant::now();
        // what leaks: /dev/null
        agent.until("what they are", |snapshot| {
            let kinds = snapshot.processes.get(&Pid(pid)).and_then(|it| it.now.fd_kinds);
            kinds.is_some_and(|it| it.sockets < 10 && FILES - 20 < it.files && !it.is_partial)
        });
        assert!(5 < foreseen.len(), "{foreseen:?}");
        let mut errors: Vec<f64> = foreseen
            .into_iter()
            .map(|(then, left)| {
                let truth = (end - then).as_secs_f64();
                (left.as_seconds() - truth).abs() / truth
            })
            .collect();
        errors.sort_by(f64::total_cmp);
        assert!(errors[errors.len() / 2] < 0.1, "off by these parts: {errors:?}");
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn leaks_descriptors() {
    if env::var_os(LEAK).is_none() {
        return;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).expect("prctl");
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: Some(FILES) })
        .expect("less is allowed");
    let mut leaked = Vec::new();
    let start = Instant::now();
    for turn in 0_u32.. {
        match File::open("/dev/null") {
            Ok(file) => leaked.push(file),
            Err(_) => loop {
                thread::park();
            },
        }
        thread::sleep((PACE * turn).saturating_sub(start.elapsed())); // the leak's pace
    }
}

/// Looks until the table was read after this call: that is soon only where the numbers of sockets moved.
#[track_caller]
fn read_anew(agent: &mut Agent) -> Snapshot {
    let begun: Monotonic = agent.look().at;
    let is_newer = |snapshot: &Snapshot| {
        let read: Known<_> = snapshot.namespaces[0].table.clone();
        read.is_ok_and(|read| begun <= read.at)
    };
    let snapshot = agent.until("a read of the table", is_newer);
    let read = snapshot.namespaces[0].table.as_ref().expect("just seen");
    assert!(!read.table.is_partial);
    snapshot
}

/// How many lines `ss` prints.
fn ss(filter: &str) -> u64 {
    let output = Command::new("ss").arg("-tanH").args(filter.split(' ')).output().expect("ss");
    assert!(output.status.success(), "ss: {output:?}");
    String::from_utf8(output.stdout).expect("ASCII").lines().count() as u64
}

#[test]
#[ignore = "kernel: needs root"]
fn what_a_server_does_not_close_is_in_close_wait_as_ss_shows_it() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 64);
        let (closing, staying) =
            (Clients::connect(20, server.addr), Clients::connect(10, server.addr));
        let held = server.accept(30);
        drop(closing);
        let close_wait = format!("state close-wait sport = :{}", server.addr.port());
        wait_for("CLOSE_WAIT", || ss(&close_wait) == 20);
        let snapshot = read_anew(&mut agent);
        let listener = find(&snapshot, server.addr);
        let connections = listener.connections.expect("read");
        assert_eq!((connections.close_wait, connections.accepted), (20, 30));
        assert_eq!(listener.open, Ok(30));
        drop((held, staying));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn connections_that_we_closed_are_in_time_wait_by_destination_as_ss_shows_it() {
    in_own_netns(|| {
        set_sysctl("ipv4/tcp_tw_reuse", "0");
        let n = scaled(20_000);
        let server = NeverAccepts::listen("127.0.0.1:0", 1024);
        for _ in 0..n {
            let client = TcpStream::connect(server.addr).expect("connected");
            let accepted = server.accept(1);
            // whoever closes first waits
            drop(client);
            drop(accepted);
        }
        let filter = format!("state time-wait dport = :{}", server.addr.port());
        wait_for("TIME_WAIT", || ss(&filter) == n);
        let mut agent = Agent::start();
        let snapshot =
            agent.until("a read of the table", |snapshot| snapshot.namespaces[0].table.is_ok());
        let read = snapshot.namespaces[0].table.clone().expect("just seen");
        assert_eq!(read.table.time_wait_ephemeral, n);
        let worst = worst(&snapshot);
        assert_eq!((worst.destination.time_wait, worst.destination.open), (n, 0));
        assert_eq!(
            (worst.destination.addr, worst.destination.port),
            (server.addr.ip(), server.addr.port())
        );
        // of both ends, where they closed at the same time
        agent.until("the kernel's own count", |snapshot| {
            let all = ss("state time-wait");
            snapshot.namespaces[0].sockstat.is_ok_and(|stat| stat.time_wait == all && n <= all)
        });
    });
}

fn worst(snapshot: &Snapshot) -> PortUse {
    snapshot.namespaces[0].ports.as_ref().expect("read")[0]
}

#[test]
#[ignore = "kernel: needs root"]
fn all_local_ports_are_in_use_when_connect_begins_to_fail() {
    in_own_netns(|| {
        set_sysctl("ipv4/ip_local_port_range", "20000 21007");
        // of the range's 1,008 ports, two are reserved, somebody listens on two, and four are bound
        set_sysctl("ipv4/ip_local_reserved_ports", "20001,20999,30000");
        let mut agent = Agent::start();
        let others =
            [20_500, 20_501].map(|port| NeverAccepts::listen(&format!("127.0.0.1:{port}"), 5));
        let idle = ["127.0.0.1:20002", "127.0.0.2:20003", "[::1]:20004", "0.0.0.0:20006"].map(bind);
        // these take none: listened on, reserved, beyond the range
        let more = ["127.0.0.2:20500", "127.0.0.2:20999", "127.0.0.1:21008"].map(bind);
        // who can tell what is bound and idle
        let (usable, bound) = if is_since((6, 8)) { (1_000, 6) } else { (1_004, 0) };
        let server = NeverAccepts::listen("127.0.0.1:30001", 2_000);
        // a port that bind(2) gave to a connection is in use as any other
        let chosen = bind("127.0.0.1:20005");
        chosen.connect(&server.addr.into()).expect("connected");
        let mut clients = connect(server.addr, 899);
        clients.push(chosen.into());
        assert_eq!(clients.len(), 900);
        let snapshot = read_anew(&mut agent);
        let port_use = worst(&snapshot);
        assert_eq!((port_use.used, port_use.usable), (900, usable));
        let read = snapshot.namespaces[0].table.as_ref().expect("just seen");
        let found = &read.table.bound;
        assert!(found.iter().all(|port| (20_002..=20_999).contains(port)), "{found:?}");
        assert_eq!(found.len(), bound);
        let before = failed_connects(&snapshot);
        clients.extend(connect(server.addr, 110));
        assert_eq!(clients.len(), 1_000, "the first that fails is the one thousand and first");
        let snapshot = read_anew(&mut agent);
        let port_use = worst(&snapshot);
        assert_eq!((port_use.used, port_use.usable), (1_000, usable));
        if is_since((6, 8)) {
            assert!((port_use.ratio() - 1.0).abs() < f64::EPSILON);
        }
        if agent.serves("connect_error") {
            assert_eq!(failed_connects(&snapshot) - before, 10);
        }
        drop((others, idle, more, clients));
    });
}

/// Tries `n` times; those that worked. Each failure must be for want of a port.
fn connect(to: SocketAddr, n: usize) -> Vec<TcpStream> {
    let connect = |_| match TcpStream::connect(to) {
        Ok(client) => Some(client),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
            None
        }
    };
    (0..n).filter_map(connect).collect()
}

/// connect(2) with EADDRNOTAVAIL, of whoever.
fn failed_connects(snapshot: &Snapshot) -> u64 {
    let errors = snapshot.errors.as_ref().ok().and_then(|errors| errors.connect.as_ref().ok());
    let counts = errors.into_iter().flat_map(|counts| counts.iter());
    counts
        .filter(|((_, errno), _)| errno.0 == libc::EADDRNOTAVAIL.unsigned_abs())
        .map(|it| it.1)
        .sum()
}

#[test]
#[ignore = "kernel: needs root"]
fn what_a_udp_socket_drops_is_counted_for_it() {
    check_udp_drops("127.0.0.1:0", "UdpRcvbufErrors");
    check_udp_drops("[::1]:0", "Udp6RcvbufErrors");
}

/// Of 500 datagrams the socket has as many as fit, and the kernel's total the others.
#[track_caller]
fn check_udp_drops(addr: &'static str, field: &'static str) {
    in_own_netns(move || {
        let server = UdpSocket::bind(addr).expect("bound");
        let client = UdpSocket::bind(addr).expect("bound");
        let addr = server.local_addr().expect("bound");
        rustix::net::sockopt::set_socket_recv_buffer_size(&server, 1).expect("SO_RCVBUF");
        for _ in 0..500 {
            client.send_to(b"x", addr).expect("sent");
        }
        let mut agent = Agent::start();
        let snapshot = agent.until("its owner", |snapshot| {
            snapshot.udp.iter().any(|udp| udp.key.port == addr.port() && udp.comm.is_some())
        });
        let udp = snapshot.udp.iter().find(|udp| udp.key.port == addr.port()).expect("bound");
        server.set_nonblocking(true).expect("O_NONBLOCK");
        let mut taken = 0;
        while let Ok(1) = server.recv(&mut [0]) {
            taken += 1;
        }
        assert_eq!(udp.drops, Ok(500 - taken));
        let errors = |name| {
            move |snapshot: &Snapshot| {
                snapshot.namespaces[0]
                    .netstat
                    .as_ref()
                    .is_ok_and(|fields| fields.contains_key(name))
            }
        };
        let snapshot = agent.until("the total", errors(field));
        let fields = snapshot.namespaces[0].netstat.clone().expect("read");
        assert_eq!(Ok(fields[field]), udp.drops);
    });
}
