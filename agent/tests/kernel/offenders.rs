//! Servers that do what servers should not. Each counts what it accepted.

use std::{
    env, fs, io,
    io::{BufReader, Read as _, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process, set_parent_process_death_signal},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::wait_for;

/// Listens, and accepts only when the test itself does.
pub(crate) struct NeverAccepts {
    socket: Socket,
    pub(crate) addr: SocketAddr,
}

impl NeverAccepts {
    /// Listens on `addr`; port 0 lets the kernel choose.
    pub(crate) fn listen(addr: &str, backlog: i32) -> Self {
        Self::prepared(addr, backlog, |_| {})
    }

    /// Listens once more where somebody listened before.
    pub(crate) fn again(addr: SocketAddr, backlog: i32) -> Self {
        Self::listen(&addr.to_string(), backlog)
    }

    /// Listens with a socket to which `prepare` did something before bind(2).
    pub(crate) fn prepared(addr: &str, backlog: i32, prepare: impl FnOnce(&Socket)) -> Self {
        let addr: SocketAddr = addr.parse().expect("address and port");
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("socket");
        prepare(&socket);
        Self::bound(socket, addr, backlog)
    }

    /// Listens by Multipath TCP.
    pub(crate) fn multipath(addr: &str, backlog: i32) -> Self {
        let addr: SocketAddr = addr.parse().expect("address and port");
        let (domain, protocol) = (Domain::for_address(addr), Some(Protocol::MPTCP));
        Self::bound(Socket::new(domain, Type::STREAM, protocol).expect("socket"), addr, backlog)
    }

    fn bound(socket: Socket, addr: SocketAddr, backlog: i32) -> Self {
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&addr.into()).expect("bind");
        socket.listen(backlog).expect("listen");
        let addr = socket.local_addr().expect("bound").as_socket().expect("an IP socket");
        Self { socket, addr }
    }

    /// A `SO_REUSEPORT` group, on one port: a member for each backlog.
    pub(crate) fn group(backlogs: &[i32]) -> Vec<Self> {
        let mut members: Vec<Self> = Vec::new();
        for &backlog in backlogs {
            let addr = members.first().map_or("127.0.0.1:0".into(), |m| m.addr.to_string());
            members.push(Self::prepared(&addr, backlog, |s| {
                s.set_reuse_port(true).expect("SO_REUSEPORT");
            }));
        }
        members
    }

    /// Calls listen(2) on the listening socket.
    pub(crate) fn listen_again(&self, backlog: i32) {
        self.socket.listen(backlog).expect("listen");
    }

    /// Accepts `n` connections that are there, or are about to be.
    pub(crate) fn accept(&self, n: usize) -> Vec<Socket> {
        (0..n).map(|_| self.socket.accept().expect("accept").0).collect()
    }

    /// The socket alone, for whoever accepts in another way.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// The socket, for what nobody else needs.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// Accepts, closes what it accepted, and counts.
pub(crate) struct Accepts {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicU64>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// How a server accepts.
#[derive(Clone, Copy)]
enum Pace {
    /// What is there.
    AtOnce,
    /// The same, after having done nothing for a while.
    After(Duration),
    /// One, then nothing for a while.
    Slow(Duration),
}

impl Accepts {
    /// A healthy server.
    pub(crate) fn at_once(listener: NeverAccepts) -> Self {
        Self::start(listener, Pace::AtOnce)
    }

    /// A server that is busy elsewhere first.
    pub(crate) fn after(delay: Duration, listener: NeverAccepts) -> Self {
        Self::start(listener, Pace::After(delay))
    }

    /// A server that takes its time for each connection.
    pub(crate) fn slowly(pause: Duration, listener: NeverAccepts) -> Self {
        Self::start(listener, Pace::Slow(pause))
    }

    fn start(NeverAccepts { socket, addr }: NeverAccepts, pace: Pace) -> Self {
        let (stop, stopped) = UnixStream::pair().expect("socket pair");
        let accepted = Arc::new(AtomicU64::new(0));
        let counter = accepted.clone();
        let thread = thread::spawn(move || serve(&socket, &stopped, pace, &counter));
        Self { addr, accepted, stop: Some(stop), thread: Some(thread) }
    }

    /// How many connections accept(2) returned so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Closes the listener; how many it accepted.
    pub(crate) fn stop(mut self) -> u64 {
        self.finish();
        self.accepted()
    }

    fn finish(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let served = thread.join();
            assert!(served.is_ok() || thread::panicking(), "the server on {} failed", self.addr);
        }
    }
}

impl Drop for Accepts {
    fn drop(&mut self) {
        self.finish();
    }
}

fn serve(socket: &Socket, stopped: &UnixStream, pace: Pace, accepted: &AtomicU64) {
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let stop = || PollFd::new(stopped, PollFlags::IN);
    if let Pace::After(delay) = pace
        && wait(&mut [stop()], Some(delay))
    {
        return;
    }
    loop {
        match socket.accept() {
            Ok(connection) => {
                accepted.fetch_add(1, Ordering::SeqCst);
                drop(connection);
                if let Pace::Slow(pause) = pace
                    && wait(&mut [stop()], Some(pause))
                {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if wait(&mut [stop(), PollFd::new(socket, PollFlags::IN)], None) {
                    return;
                }
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Waits for any of `fds`; whether the first of them came, which means to stop.
fn wait(fds: &mut [PollFd<'_>], at_most: Option<Duration>) -> bool {
    let timeout = at_most.map(|limit| Timespec::try_from(limit).expect("a short time"));
    poll(fds, timeout.as_ref()).expect("poll");
    !fds[0].revents().is_empty()
}

/// A process that blocks in accept(2), closes what it accepted, and can be stopped.
pub(crate) struct StoppedServer {
    pub(crate) addr: SocketAddr,
    process: Child,
    accepted: Arc<AtomicU64>,
}

/// Set for the process behind [`StoppedServer`].
const SERVE: &str = "BACKLOGD_TEST_SERVE";

impl StoppedServer {
    /// Starts it, running.
    pub(crate) fn start(backlog: i32) -> Self {
        Self::serve(NeverAccepts::listen("127.0.0.1:0", backlog))
    }

    /// Starts `n` of them, running, which all inherit one listening socket.
    pub(crate) fn prefork(n: usize, NeverAccepts { socket, addr }: &NeverAccepts) -> Vec<Self> {
        let inherit = || socket.try_clone().expect("a further descriptor");
        (0..n).map(|_| Self::serve(NeverAccepts { socket: inherit(), addr: *addr })).collect()
    }

    /// Starts it, running, with a socket that listens.
    pub(crate) fn serve(NeverAccepts { socket, addr }: NeverAccepts) -> Self {
        let mut process = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "offenders::serves_standard_input", "--ignored", "--test-threads=1"])
            .env(SERVE, "1")
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test again");
        let accepted = Arc::new(AtomicU64::new(0));
        let (counter, output) = (accepted.clone(), process.stderr.take().expect("piped"));
        thread::spawn(move || {
            for byte in BufReader::new(output).bytes() {
                counter.fetch_add(u64::from(byte.expect("a byte") == b'.'), Ordering::SeqCst);
            }
        });
        Self { addr, process, accepted }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How many connections accept(2) returned so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Returns when it waits in accept(2), for one that has accepted before.
    pub(crate) fn rests(&self) {
        wait_for("the server to rest", || self.states().all(|state| state == b'S'));
    }

    /// Stops it; returns when it stands still.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        wait_for("the server to stop", || self.states().all(|state| state == b'T'));
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("our child");
    }

    /// Of each of its threads.
    fn states(&self) -> impl Iterator<Item = u8> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("alive");
        tasks.map(|task| {
            let stat = fs::read_to_string(task.expect("a thread").path().join("stat"));
            let stat = stat.expect("a stopped thread stays");
            stat.rsplit_once(") ").expect("the name ends").1.as_bytes()[0]
        })
    }
}

/// A process that holds a listening socket and sleeps.
pub(crate) struct Sleeps {
    pub(crate) addr: SocketAddr,
    process: Child,
}

impl Sleeps {
    /// Starts it with a socket that listens.
    pub(crate) fn holding(NeverAccepts { socket, addr }: NeverAccepts) -> Self {
        let mut sleep = Command::new("sleep");
        let process = sleep.arg("600").stdin(OwnedFd::from(socket)).spawn().expect("sleep");
        Self { addr, process }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Sleeps {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for StoppedServer {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.process.wait().expect("our child");
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn serves_standard_input() {
    if env::var_os(SERVE).is_none() {
        return;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).expect("prctl");
    let listener = io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let listener = Socket::from(listener);
    loop {
        let connection = listener.accept().expect("accept");
        io::stderr().write_all(b".").expect("somebody counts");
        drop(connection);
    }
}

/// Hands a connection over only when its client has sent something (`TCP_DEFER_ACCEPT`).
#[expect(unsafe_code, reason = "no safe wrapper of TCP_DEFER_ACCEPT")]
pub(crate) fn defer_accept(socket: &Socket) {
    let seconds: libc::c_int = 10;
    let (fd, option) = (socket.as_raw_fd(), libc::TCP_DEFER_ACCEPT);
    // SAFETY: the value points to a live local of the given size.
    let result =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const seconds).cast(), 4) };
    assert_eq!(result, 0, "TCP_DEFER_ACCEPT: {}", io::Error::last_os_error());
}
