//! `backlogd shed` as the agent sees it: a listener that accepts all the time, and drops nothing;
//! beside a server that waits for a permit before it accepts.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use socket2::SockRef;

use crate::{
    actors::{Act, Actor, PERMITS},
    agent::{Agent, Numbers, find},
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    tier::backlogd,
};

const SOFT: usize = 10;
const N_CLIENTS: usize = 500;

/// `backlogd shed`; it ends, however the test ends.
struct Shed {
    process: Child,
    /// Where it sheds.
    addr: SocketAddr,
    metrics: SocketAddr,
}

impl Shed {
    fn start(backend: SocketAddr, soft: usize) -> Self {
        let mut process = backlogd()
            .args(["shed", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .args(["--backend", &backend.to_string(), "--soft", &soft.to_string()])
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let log = BufReader::new(process.stderr.take().expect("piped"));
        let mut lines = log.lines().map_while(Result::ok);
        let mut listen = |part: &str| -> SocketAddr {
            let line = lines.find(|line| line.contains(part)).expect(part);
            let (_, after) = line.split_once(" listen=").expect("the address");
            let addr = after.split(' ').next().expect("the address");
            addr.parse().expect("an address")
        };
        let addr = listen("sheds above the soft limit");
        let metrics = listen(" started ");
        // what it logs later is read, too: a log that is closed is no part of this
        thread::spawn(move || lines.for_each(drop));
        Self { process, addr, metrics }
    }

    /// The sum of the series of a metric that have `label`.
    fn counted(&self, name: &str, label: &str) -> u64 {
        let mut stream = TcpStream::connect(self.metrics).expect("it listens");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let start = format!("backlogd_shed_{name}{{");
        let of = |line: &&str| line.starts_with(&start) && line.contains(label);
        let value = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok());
        text.lines().filter(of).map(|line| value(line).expect("a number")).sum()
    }
}

/// By SIGKILL.
impl Drop for Shed {
    fn drop(&mut self) {
        // both fail only when it has ended already
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A backend that keeps what it accepts until the client is done.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // a client's end, or its reset
            thread::spawn(move || drop(stream.read_to_end(&mut Vec::new())));
        }
    });
    addr
}

/// `None`: it was reset before connect(2) saw that it was established.
fn connect(addr: SocketAddr) -> Option<TcpStream> {
    match TcpStream::connect(addr) {
        Ok(client) => Some(client),
        Err(err) if err.kind() == ErrorKind::ConnectionReset => None,
        Err(err) => panic!("{addr}: {err}"),
    }
}

/// Whether the connection was reset; else it is served, and ends here by a reset.
fn was_shed(client: Option<TcpStream>) -> bool {
    let Some(client) = client else { return true };
    let socket = SockRef::from(&client);
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("SO_RCVTIMEO");
    let is_reset =
        (&client).read(&mut [0]).is_err_and(|err| err.kind() == ErrorKind::ConnectionReset);
    socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    is_reset
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_that_sheds_accepts_all_and_drops_nothing() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let shed = Shed::start(backend(), SOFT);
        wait_for("its metrics", || shed.counted("limit", "kind=\"soft\"") == SOFT as u64);
        let clients: Vec<_> = (0..N_CLIENTS).map(|_| connect(shed.addr)).collect();
        let accepted = || shed.counted("accepted_total", "");
        wait_for("all to be accepted", || accepted() == N_CLIENTS as u64);
        let n_shed = clients.into_iter().map(was_shed).filter(|it| *it).count();
        assert_eq!(n_shed, N_CLIENTS - SOFT, "by the clients");
        let by_soft = shed.counted("connections_total", "reason=\"soft\"");
        assert_eq!(by_soft, n_shed as u64, "by its own count");
        wait_for("the others to end", || shed.counted("open_connections", "") == 0);
        let expected =
            Numbers { established: N_CLIENTS as u64, accepted: accepted(), ..Numbers::default() };
        let (snapshot, seen) = agent.settled();
        let listener = find(&snapshot, shed.addr);
        assert_eq!(Numbers::of(listener), expected);
        assert_eq!(listener.open, Ok(0));
        assert_eq!(seen.count("ListenDrops"), 0);
    });
}

/// What `backlogd check` tells of this namespace: its alerts that nothing says better.
fn check() -> Vec<Value> {
    let output = backlogd()
        .args(["check", "--standalone", "--own-netns-only", "--config", "/dev/null", "-o", "json"])
        .output()
        .expect("the binary");
    let mut report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|err| {
        panic!("{err}: {output:?}");
    });
    let Value::Array(mut alerts) = report["alerts"].take() else { panic!("{report:#}") };
    alerts.retain(|alert| alert["inhibited_by"].is_null());
    alerts
}

#[test]
#[ignore = "kernel: needs root"]
fn check_names_the_server_that_waits_before_it_accepts_and_not_the_one_that_sheds() {
    const BACKLOG: i32 = 128;
    in_own_netns(|| {
        let mut agent = Agent::start();
        let mut waits = Actor::start(Act::Permits, "permits", "127.0.0.1:0", BACKLOG);
        let shed = Shed::start(backend(), PERMITS);
        wait_for("its metrics", || shed.counted("limit", "kind=\"soft\"") == PERMITS as u64);
        let [hanging, told] = [waits.addr, shed.addr].map(|it| Clients::start(N_CLIENTS, it));
        wait_for("those above the limit to be reset", || told.waiting() == PERMITS);
        waits.accepts(PERMITS as u64);
        let alerts = check();
        let [alert] = &alerts[..] else { panic!("{alerts:#?}") };
        let text = |key: &str| alert[key].as_str().unwrap_or_else(|| panic!("{key}: {alert:#}"));
        assert_eq!(text("alert"), "ListenerStalled");
        assert_eq!(text("subject"), format!("permits {}", waits.addr));
        assert_eq!(alert["pids"], serde_json::json!([waits.pid()]));
        let full = format!(": {} of {BACKLOG} places taken, nobody has accepted", BACKLOG + 1);
        assert!(text("seen").contains(&full), "{alert:#}");
        // after all that time
        assert_eq!((hanging.waiting(), told.waiting()), (N_CLIENTS, PERMITS));
        waits.accepts(PERMITS as u64);
        let snapshot = agent.look();
        let dropped = |addr| find(&snapshot, addr).counters.drops;
        assert_eq!(dropped(shed.addr), Ok(0));
        assert_eq!(find(&snapshot, shed.addr).length, 0);
        let lost = dropped(waits.addr).expect("counted");
        let without_place = N_CLIENTS - PERMITS - 1 - usize::try_from(BACKLOG).expect("positive");
        assert!(without_place as u64 <= lost, "{lost} drops");
        assert_eq!(agent.count("ListenDrops"), lost, "all of them are its own");
        let n_shed = shed.counted("connections_total", "reason=\"soft\"");
        assert_eq!(n_shed, (N_CLIENTS - PERMITS) as u64);
    });
}
