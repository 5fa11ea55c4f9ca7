//! Processes that listen for themselves and then do what servers should not.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, Resource, Rlimit, Signal, kill_process, set_parent_process_death_signal, setrlimit,
    },
};

use crate::{namespace::wait_for, offenders::NeverAccepts};

/// What such a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Accepts and closes what it accepted.
    Serves,
    /// Accepts while it has one of [`PERMITS`] permits; a client that closes gives one back.
    Permits,
    /// Never closes what it accepted.
    Keeps,
    /// The same with [`FILES`] descriptors at most; when accept fails it tries again at once.
    FewFiles,
}

const ACTS: [(&str, Act); 4] = [
    ("serves", Act::Serves),
    ("permits", Act::Permits),
    ("keeps", Act::Keeps),
    ("few_files", Act::FewFiles),
];

/// Clients that [`Act::Permits`] serves at a time.
pub(crate) const PERMITS: usize = 4;

/// Descriptors of [`Act::FewFiles`].
pub(crate) const FILES: u64 = 64;

/// Set for such a process: what it does, its name, address and backlog.
const ACT: &str = "BACKLOGD_TEST_ACT";

/// What it is told once it runs.
const STICK: u8 = 1;
const CLOSE: u8 = 2;

/// Such a process.
pub(crate) struct Actor {
    pub(crate) addr: SocketAddr,
    process: Child,
    control: BufReader<UnixStream>,
}

/// What it has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) accepted: u64,
    pub(crate) errors: u64,
}

impl Actor {
    /// Starts one of that name, and returns when it listens. Its port may be one that others listen
    /// on, too (`SO_REUSEPORT`).
    pub(crate) fn start(act: Act, comm: &str, addr: &str, backlog: i32) -> Self {
        let (control, its) = UnixStream::pair().expect("socket pair");
        let (name, _) = ACTS.iter().find(|(_, it)| *it == act).expect("all are in it");
        let process = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "actors::serves_standard_input_of_nobody", "--ignored"])
            .arg("--test-threads=1")
            .env(ACT, format!("{name} {comm} {addr} {backlog}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(its))
            .spawn()
            .expect("this test again");
        let addr = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut actor = Self { addr, process, control: BufReader::new(control) };
        actor.addr = actor.line().parse().expect("where it listens");
        actor
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has done so far.
    pub(crate) fn done(&mut self) -> Done {
        self.tell("count");
        let line = self.line();
        let numbers: Vec<u64> = line.split(' ').flat_map(str::parse).collect();
        let [accepted, errors] = numbers[..] else { panic!("it said {line:?}") };
        Done { accepted, errors }
    }

    /// Returns when it has accepted `n`.
    #[track_caller]
    pub(crate) fn accepts(&mut self, n: u64) {
        wait_for("connections to be accepted", || self.done().accepted == n);
    }

    /// Lets it wait for a lock that nobody gives back; returns when it does.
    pub(crate) fn stick(&mut self) {
        self.tell("stick");
        assert_eq!("stuck", self.line());
    }

    /// Lets it close its listener, and nothing else; returns when that is closed.
    pub(crate) fn close_listener(&mut self) {
        self.tell("close");
        assert_eq!("closed", self.line());
    }

    /// Stops it; returns when it stands still.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let stat = |task: PathBuf| fs::read_to_string(task.join("stat")).expect("it stays");
        let is_stopped =
            |stat: String| stat.rsplit_once(") ").expect("the name ends").1.starts_with('T');
        wait_for("the server to stop", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("alive");
            tasks.into_iter().all(|task| is_stopped(stat(task.expect("a thread").path())))
        });
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("our child");
    }

    /// Ends it.
    pub(crate) fn kill(&mut self) {
        // it may have ended by itself
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn tell(&self, word: &str) {
        writeln!(self.control.get_ref(), "{word}").expect("it reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).expect("it answers");
        line.trim_end().to_owned()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the threads of such a process share.
#[derive(Default)]
struct Common {
    accepted: AtomicU64,
    errors: AtomicU64,
    order: AtomicU8,
}

#[test]
#[ignore = "kernel: needs root"]
fn serves_standard_input_of_nobody() {
    let Ok(text) = env::var(ACT) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).expect("prctl");
    let words: Vec<&str> = text.split(' ').collect();
    let [act, comm, addr, backlog] = words[..] else { panic!("{ACT} is {text:?}") };
    let (_, act) = *ACTS.iter().find(|(name, _)| *name == act).expect("one of them");
    // the process, and the thread that accepts
    for file in ["/proc/self/comm", "/proc/thread-self/comm"] {
        fs::write(file, comm).expect("our name");
    }
    let control = io::stderr().as_fd().try_clone_to_owned().expect("an open descriptor");
    let control = Arc::new(UnixStream::from(control));
    let listener = NeverAccepts::prepared(addr, backlog.parse().expect("a number"), |socket| {
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
    });
    let addr = listener.addr;
    let listener: TcpListener = listener.into_socket().into();
    let common = Arc::new(Common::default());
    thread::spawn({
        let (control, common) = (control.clone(), common.clone());
        move || answer(&control, &common)
    });
    if act == Act::FewFiles {
        let limit = Rlimit { current: Some(FILES), maximum: Some(FILES) };
        setrlimit(Resource::Nofile, limit).expect("less is allowed");
    }
    writeln!(&*control, "{addr}").expect("somebody reads");
    match act {
        Act::Permits => by_permits(&listener, &common),
        Act::Serves | Act::Keeps | Act::FewFiles => serve(listener, act, &common, &control),
    }
}

/// Does as it is told.
fn answer(control: &UnixStream, common: &Common) {
    for line in BufReader::new(control).lines() {
        match line.expect("a line").as_str() {
            "stick" => common.order.store(STICK, Ordering::SeqCst),
            "close" => common.order.store(CLOSE, Ordering::SeqCst),
            _ => {
                let [accepted, errors] =
                    [&common.accepted, &common.errors].map(|it| it.load(Ordering::SeqCst));
                writeln!(&*control, "{accepted} {errors}").expect("it reads");
            }
        }
    }
}

/// Accepts, until it is told to stop that.
fn serve(listener: TcpListener, act: Act, common: &Common, control: &UnixStream) {
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    let mut kept = Vec::new();
    loop {
        match common.order.load(Ordering::SeqCst) {
            STICK => {
                writeln!(&*control, "stuck").expect("it reads");
                wait_for_ever();
            }
            CLOSE => break,
            _ => {}
        }
        match listener.accept() {
            Ok((connection, _)) => {
                common.accepted.fetch_add(1, Ordering::SeqCst);
                if act != Act::Serves {
                    kept.push(connection);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let soon = Timespec::try_from(Duration::from_millis(50)).expect("a short time");
                poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&soon)).expect("poll");
            }
            Err(_) => {
                common.errors.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    drop(listener);
    writeln!(&*control, "closed").expect("it reads");
    wait_for_ever();
}

fn wait_for_ever() {
    let (lock, never) = (Mutex::new(()), Condvar::new());
    let mut guard = lock.lock().expect("ours alone");
    loop {
        guard = never.wait(guard).expect("ours alone");
    }
}

/// Takes a permit before each accept, as servers do that bound how many they serve.
fn by_permits(listener: &TcpListener, common: &Common) {
    let permits = Arc::new((Mutex::new(PERMITS), Condvar::new()));
    loop {
        {
            let (left, given_back) = &*permits;
            let mut left = left.lock().expect("nobody panics");
            while *left == 0 {
                left = given_back.wait(left).expect("nobody panics");
            }
            *left -= 1;
        }
        let (connection, _) = listener.accept().expect("accept");
        common.accepted.fetch_add(1, Ordering::SeqCst);
        let permits = permits.clone();
        thread::spawn(move || {
            until_closed(&connection);
            drop(connection);
            *permits.0.lock().expect("nobody panics") += 1;
            permits.1.notify_one();
        });
    }
}

/// Reads until the client has closed.
fn until_closed(mut connection: &TcpStream) {
    while let Ok(1..) = io::Read::read(&mut connection, &mut [0; 64]) {}
}
