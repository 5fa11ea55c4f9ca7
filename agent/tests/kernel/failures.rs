//! System calls that fail: counted under who called, as often as the caller got the error.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use backlogd::{
    errno::Errno,
    input::{CallErrors, ErrorCounts, Known, Tier},
    model::snapshot::Snapshot,
};
use io_uring::IoUring;
use rustix::{
    net::{SocketFlags, accept_with},
    process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit},
};
use socket2::Socket;

use crate::{
    agent::{Agent, Numbers},
    clients::Clients,
    namespace::{in_own_netns, set_sysctl},
    offenders::NeverAccepts,
    servers::{Way, accepted_fd, push_accept, uring_ways},
    space::Space,
};

const ANY: &str = "127.0.0.1:0";

/// What failed in the name of a task: how often with which error.
type Failed = BTreeMap<i32, u64>;

/// The agent's counts of `comm`; `None` where no hook serves `event`, and then they are absent.
#[track_caller]
fn failed(agent: &mut Agent, event: &str, of: Of, comm: &str) -> Option<Failed> {
    let is_served = agent.serves(event);
    let snapshot = agent.look();
    let counts = of(snapshot.errors.as_ref().expect("programs run"));
    assert_eq!(counts.is_ok(), is_served, "{event}: {counts:?}");
    let number = |errno: Errno| i32::try_from(errno.0).expect("small");
    let counts = counts.as_ref().ok()?.iter().filter(|((name, _), _)| &**name == comm);
    Some(counts.map(|(&(_, errno), &n)| (number(errno), n)).collect())
}

/// One kind of call.
type Of = fn(&CallErrors) -> &Known<Arc<ErrorCounts>>;

#[track_caller]
fn accept_errors(agent: &mut Agent, comm: &str) -> Option<Failed> {
    failed(agent, "accept_error", |errors| &errors.accept, comm)
}

#[track_caller]
fn connect_errors(agent: &mut Agent, comm: &str) -> Option<Failed> {
    failed(agent, "connect_error", |errors| &errors.connect, comm)
}

/// What no hook sees is not compared.
#[track_caller]
fn check(counted: Option<&Failed>, expected: &Failed) {
    assert!(counted.is_none_or(|it| it == expected), "{counted:?}, not {expected:?}");
}

/// Those that are not 0.
fn only<const N: usize>(counts: [(i32, u64); N]) -> Failed {
    counts.into_iter().filter(|&(_, n)| 0 < n).collect()
}

fn tier(snapshot: &Snapshot, event: &str) -> Tier {
    snapshot.hooks.iter().find(|hook| hook.event == event).expect("in the table of hooks").tier
}

/// Set for the process behind [`FewFiles`]: how it accepts.
const SERVE: &str = "BACKLOGD_TEST_FEW_FILES";
/// Its name.
const COMM: &str = "few-files";
/// How many descriptors it may have.
const FILES: u64 = 16;
/// How often it hits that limit before it says so.
const MISSES: u64 = 25;
/// How often it then finds the queue empty.
const IDLE: u64 = 10;

/// A process that may have few descriptors. It keeps what it accepts until told otherwise, and
/// counts each error that it gets.
struct FewFiles {
    process: Child,
    control: BufReader<UnixStream>,
}

/// What such a process got, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Got {
    accepted: u64,
    emfile: u64,
    would_block: u64,
}

impl FewFiles {
    fn start(way: Way, listener: &NeverAccepts) -> Self {
        let (control, its) = UnixStream::pair().expect("socket pair");
        let process = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "failures::serves_standard_input_with_few_files"])
            .args(["--ignored", "--test-threads=1"])
            .env(SERVE, if way == Way::Uring { "io_uring" } else { "accept4" })
            .stdin(OwnedFd::from(listener.socket().try_clone().expect("a descriptor")))
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(its))
            .spawn()
            .expect("this test again");
        Self { process, control: BufReader::new(control) }
    }

    /// Lets it do its next part; what it got when it is through.
    fn go_on(&mut self) -> Got {
        self.control.get_ref().write_all(b"\n").expect("it waits");
        let mut line = String::new();
        self.control.read_line(&mut line).expect("it answers");
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        let [accepted, emfile, would_block] = numbers[..] else { panic!("it said {line:?}") };
        Got { accepted, emfile, would_block }
    }
}

impl Drop for FewFiles {
    fn drop(&mut self) {
        // both fail only when it has ended already
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn serves_standard_input_with_few_files() {
    let Some(way) = env::var_os(SERVE) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).expect("prctl");
    fs::write("/proc/thread-self/comm", COMM).expect("our name");
    let [listener, control] = [io::stdin().as_fd(), io::stderr().as_fd()]
        .map(|fd| fd.try_clone_to_owned().expect("an open descriptor"));
    let listener = Socket::from(listener);
    let mut control = BufReader::new(UnixStream::from(control));
    let mut next = |got: Got| {
        if got != Got::default() {
            let Got { accepted, emfile, would_block } = got;
            writeln!(control.get_ref(), "{accepted} {emfile} {would_block}").expect("it reads");
        }
        control.read_line(&mut String::new()).expect("it writes");
    };
    let limit = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    if way == "io_uring" {
        let mut ring = IoUring::new(8).expect("it was tried before");
        setrlimit(Resource::Nofile, limit).expect("less is allowed");
        serve(&mut next, || by_ring(&mut ring, &listener));
    } else {
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        setrlimit(Resource::Nofile, limit).expect("less is allowed");
        serve(&mut next, || accept_with(&listener, SocketFlags::NONBLOCK).map_err(Into::into));
    }
}

/// Accepts until there are no descriptors left and on; then all the others, and on.
fn serve(next: &mut impl FnMut(Got), mut accept: impl FnMut() -> io::Result<OwnedFd>) {
    let mut got = Got::default();
    let mut step = |got: &mut Got, kept: Option<&mut Vec<OwnedFd>>| match accept() {
        Ok(connection) => {
            got.accepted += 1;
            if let Some(kept) = kept {
                kept.push(connection);
            }
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EMFILE) => got.emfile += 1,
            Some(libc::EAGAIN) => got.would_block += 1,
            _ => panic!("accept: {error}"),
        },
    };
    next(got);
    let mut kept = Vec::new();
    while got.emfile < MISSES {
        step(&mut got, Some(&mut kept));
    }
    next(got);
    kept.clear();
    while got.would_block < IDLE {
        step(&mut got, None);
    }
    next(got);
}

/// One accept through the ring.
fn by_ring(ring: &mut IoUring, listener: &Socket) -> io::Result<OwnedFd> {
    push_accept(ring, listener, Way::Uring);
    ring.submit_and_wait(1)?;
    let entry = ring.completion().next().expect("one was waited for");
    accepted_fd(entry.result())
}

/// How many clients such a server has.
const CLIENTS: usize = 40;

#[track_caller]
fn check_few_files(way: Way) {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let listener = NeverAccepts::listen(ANY, 64);
        let mut server = FewFiles::start(way, &listener);
        let clients = Clients::connect(CLIENTS, listener.addr);
        let full = server.go_on();
        assert!(0 < full.accepted && full.accepted < FILES, "{full:?}");
        assert_eq!((full.emfile, full.would_block), (MISSES, 0));
        let n = CLIENTS as u64;
        let length = n - full.accepted;
        let numbers =
            Numbers { established: n, accepted: full.accepted, length, ..Numbers::default() };
        agent.check(listener.addr, numbers);
        // io_uring is no system call that accepts
        let is_seen = way != Way::Uring || tier(&agent.look(), "accept_error") == Tier::Fentry;
        let expected = |got: Got| {
            let emfile = if is_seen { got.emfile } else { 0 };
            only([(libc::EMFILE, emfile), (libc::EAGAIN, got.would_block)])
        };
        check(accept_errors(&mut agent, COMM).as_ref(), &expected(full));
        if way == Way::Epoll {
            let idle = server.go_on();
            assert_eq!(idle, Got { accepted: n, emfile: MISSES, would_block: IDLE });
            agent.check(listener.addr, Numbers { accepted: n, length: 0, ..numbers });
            check(accept_errors(&mut agent, COMM).as_ref(), &expected(idle));
        }
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_without_descriptors_is_counted_by_its_own_count_and_an_idle_one_has_no_error() {
    check_few_files(Way::Epoll);
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_that_accepts_by_io_uring_is_counted_when_it_has_no_descriptors() {
    if !uring_ways().is_empty() {
        check_few_files(Way::Uring);
    }
}

/// Runs `calls` on a thread of that name.
fn named<T: Send>(comm: &str, calls: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(comm.into()).spawn_scoped(scope, calls);
        thread.expect("a thread").join().expect("it ends well")
    })
}

fn refused<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
#[ignore = "kernel: needs root"]
fn what_is_no_tcp_socket_does_not_count() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let dir = tempfile::tempdir().expect("a directory");
        let [here, nowhere] = ["here", "nowhere"].map(|name| dir.path().join(name));
        named("others", || {
            let listener = UnixListener::bind(&here).expect("a free name");
            listener.set_nonblocking(true).expect("O_NONBLOCK");
            for _ in 0..5 {
                assert_eq!(refused(listener.accept()), Some(libc::EAGAIN));
            }
            let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
            assert_eq!(refused(net_accept(&udp)), Some(libc::EOPNOTSUPP));
            assert_eq!(
                refused(net_accept(fs::File::open("/dev/null").expect("it is there"))),
                Some(libc::ENOTSOCK)
            );
            assert_eq!(refused(UnixStream::connect(&nowhere)), Some(libc::ENOENT));
            assert_eq!(refused(udp.connect("255.255.255.255:9")), Some(libc::EACCES));
        });
        check(connect_errors(&mut agent, "others").as_ref(), &only([]));
        // under lockdown no program may ask which kind of socket a descriptor leads to
        let is_blind = agent.look().hooks.iter().any(|hook| hook.why.contains("lockdown"));
        let expected = only([
            (libc::EAGAIN, if is_blind { 5 } else { 0 }),
            (libc::EOPNOTSUPP, is_blind.into()),
        ]);
        check(accept_errors(&mut agent, "others").as_ref(), &expected);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn in_a_namespace_that_is_not_followed_nothing_counts() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let call = |comm| {
            let listener = TcpListener::bind(ANY).expect("a free port");
            listener.set_nonblocking(true).expect("O_NONBLOCK");
            named(comm, || assert_eq!(refused(listener.accept()), Some(libc::EAGAIN)));
        };
        Space::new().inside(|| call("elsewhere"));
        call("here");
        let once = only([(libc::EAGAIN, 1)]);
        check(accept_errors(&mut agent, "here").as_ref(), &once);
        // under lockdown no program may ask where a task is
        let is_blind = agent.look().hooks.iter().any(|hook| hook.why.contains("lockdown"));
        let expected = if is_blind { once } else { only([]) };
        check(accept_errors(&mut agent, "elsewhere").as_ref(), &expected);
    });
}

fn net_accept(socket: impl AsFd) -> io::Result<OwnedFd> {
    accept_with(socket, SocketFlags::empty()).map_err(Into::into)
}

#[track_caller]
fn check_no_port_left(host: &str) {
    in_own_netns(|| {
        set_sysctl("ipv4/ip_local_port_range", "50000 50001");
        let mut agent = Agent::start();
        let server = NeverAccepts::listen(&format!("{host}:80"), 8);
        let closed = SocketAddr::new(server.addr.ip(), 81);
        let connections = named("dialer", || {
            let connections = [(); 4].map(|()| TcpStream::connect(server.addr));
            // ECONNREFUSED is found out while the caller waits
            for _ in 0..3 {
                assert_eq!(refused(TcpStream::connect(closed)), Some(libc::ECONNREFUSED));
            }
            connections
        });
        let got: Vec<_> = connections
            .iter()
            .map(|it| it.as_ref().err().and_then(io::Error::raw_os_error))
            .collect();
        assert_eq!(got, [None, None, Some(libc::EADDRNOTAVAIL), Some(libc::EADDRNOTAVAIL)]);
        // nor is a connect that does not wait a failure
        let clients = named("eager", || {
            Clients::connect(2, NeverAccepts::listen(&format!("{host}:82"), 8).addr)
        });
        // tcp_v4_connect and tcp_v6_connect return before the answer is there
        let is_late = tier(&agent.look(), "connect_error") == Tier::Kprobe;
        let expected =
            only([(libc::EADDRNOTAVAIL, 2), (libc::ECONNREFUSED, if is_late { 0 } else { 3 })]);
        check(connect_errors(&mut agent, "dialer").as_ref(), &expected);
        check(connect_errors(&mut agent, "eager").as_ref(), &only([]));
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_connect_that_finds_no_local_port_is_counted() {
    check_no_port_left("127.0.0.1");
    check_no_port_left("[::1]");
}
