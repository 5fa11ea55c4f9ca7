//! The daemon under a service manager: what it tells it, and the socket that it is passed. Through
//! the real binary; this test stands for the manager.

#![expect(clippy::unwrap_used, reason = "outside of #[test] functions, but in a test")]

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon in the sampled tier, and the socket that it tells things to.
struct Service {
    child: Child,
    manager: UnixDatagram,
    dir: TempDir,
}

impl Service {
    /// With `name` in NOTIFY_SOCKET, which `manager` listens on.
    fn start(dir: TempDir, manager: UnixDatagram, name: &str, variables: &[(&str, &str)]) -> Self {
        let config = dir.path().join("backlogd.toml");
        fs::write(&config, "sample_interval_seconds = 0.1\n").unwrap();
        let mut command = command(dir.path());
        let child = command.env("NOTIFY_SOCKET", name).envs(variables.iter().copied()).spawn();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { child: child.unwrap(), manager, dir }
    }

    fn at_path(variables: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        Self::start(dir, manager, path.to_str().unwrap(), variables)
    }

    /// The next message.
    fn hear(&self) -> String {
        let mut message = [0; 512];
        let n = self.manager.recv(&mut message).unwrap();
        String::from_utf8(message[..n].to_vec()).unwrap()
    }

    /// Messages until the first that begins with `start`, that one last.
    fn hear_until(&self, start: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last: &String| !last.starts_with(start)) {
            heard.push(self.hear());
        }
        heard
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// The daemon's thread that takes samples.
    fn sampler(&self) -> i32 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let is_sampler =
            |task: &Path| fs::read_to_string(task.join("comm")).unwrap() == "sampler\n";
        let mut tasks = tasks.map(|task| task.unwrap().path());
        let task = tasks.find(|task| is_sampler(task)).unwrap();
        task.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // it has ended already where the test is about that
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    add_arguments(&mut command, dir);
    command
}

fn add_arguments(command: &mut Command, dir: &Path) {
    command
        .args(["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--config"])
        .arg(dir.join("backlogd.toml"))
        .arg("--socket")
        .arg(dir.join("backlogd.sock"))
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped());
}

#[test]
fn a_manager_hears_ready_with_a_status_then_reloads_then_the_end() {
    let mut service = Service::at_path(&[]);
    let first = service.hear();
    let status = first.strip_prefix("READY=1\nSTATUS=").unwrap();
    assert!(status.contains(" listener") && status.contains(" alert"), "{first}");
    let log = BufReader::new(service.child.stderr.take().unwrap());
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("started")).unwrap();
    let listen = line.split_once("listen=").unwrap().1.split(' ').next().unwrap().to_owned();
    assert!(get(&listen, "/readyz").starts_with("HTTP/1.1 200"), "ready when it says so");

    // a refused configuration is a reload that has ended, too
    for text in ["sample_interval_seconds = 0.2\n", "sample_interval_seconds = \"fast\"\n"] {
        fs::write(service.dir.path().join("backlogd.toml"), text).unwrap();
        service.signal("HUP");
        let heard = service.hear_until("RELOADING=1");
        let reloading = heard.last().unwrap();
        let microseconds: u64 =
            reloading.rsplit_once("\nMONOTONIC_USEC=").unwrap().1.parse().unwrap();
        let age = monotonic().checked_sub(Duration::from_micros(microseconds)).unwrap();
        assert!(age < PATIENCE, "{reloading}: {age:?} ago");
        assert_eq!("READY=1", service.hear());
    }

    service.signal("TERM");
    service.hear_until("STOPPING=1");
    assert_eq!(Some(0), service.child.wait().unwrap().code());
}

/// `CLOCK_MONOTONIC`.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

#[test]
fn the_status_is_told_when_it_changes_and_not_else() {
    let service = Service::at_path(&[]);
    service.hear_until("READY=1");
    // listeners of other tests come and go in the same namespace: what must hold is that no status
    // is told twice
    let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut told = service.hear_until("STATUS=");
    service.manager.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut message = [0; 512];
    while let (Ok(n), true) = (service.manager.recv(&mut message), told.len() < 20) {
        told.push(String::from_utf8(message[..n].to_vec()).unwrap());
    }
    assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{told:?}");
}

#[test]
fn the_name_of_a_socket_may_be_abstract() {
    let name = format!("backlogd-test-{}", std::process::id());
    let addr = UnixAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&addr).unwrap();
    let service = Service::start(TempDir::new().unwrap(), manager, &format!("@{name}"), &[]);
    service.hear_until("READY=1");
}

#[test]
fn a_watchdog_hears_at_half_its_time_and_no_more_when_the_sampler_hangs() {
    let service = Service::at_path(&[("WATCHDOG_USEC", "1000000")]);
    service.hear_until("READY=1");
    service.hear_until("WATCHDOG=1");
    let start = Instant::now();
    service.hear_until("WATCHDOG=1");
    service.hear_until("WATCHDOG=1");
    // two halves, of which the first may have begun before the second
    let took = start.elapsed();
    assert!(Duration::from_millis(400) < took && took < Duration::from_secs(3), "{took:?}");

    service.manager.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut beats = 0;
    while_stopped(service.sampler(), || {
        let mut message = [0; 512];
        let err = loop {
            match service.manager.recv(&mut message) {
                Ok(n) => beats += usize::from(message[..n].starts_with(b"WATCHDOG")),
                Err(err) => break err,
            }
        };
        assert_eq!(io::ErrorKind::WouldBlock, err.kind());
    });
    assert!(beats <= 2, "{beats} after the sampler hung");
    service.hear_until("WATCHDOG=1");
}

#[test]
fn a_watchdog_hears_between_samples_too() {
    let service = Service::at_path(&[
        ("WATCHDOG_USEC", "400000"),
        ("BACKLOGD_SAMPLE_INTERVAL_SECONDS", "60"),
    ]);
    for _ in 0..3 {
        service.hear_until("WATCHDOG=1");
    }
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() {
    let service = Service::at_path(&[("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", "1")]);
    service.hear_until("READY=1");
    service.manager.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    let (mut message, start) = ([0; 512], Instant::now());
    while start.elapsed() < Duration::from_millis(600) {
        let n = service.manager.recv(&mut message).unwrap_or(0);
        assert!(!message[..n].starts_with(b"WATCHDOG"));
    }
}

/// Stops one thread of a child, as if it hung, while `then` runs; the others run on.
fn while_stopped(tid: i32, then: impl FnOnce()) {
    let (stopped, is_stopped) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    // the kernel lets go of what a thread traces when that thread ends
    let tracer = thread::spawn(move || {
        stop_thread(tid);
        stopped.send(()).unwrap();
        let _ = ended.recv();
    });
    is_stopped.recv().unwrap();
    then();
    drop(end);
    tracer.join().unwrap();
}

#[expect(unsafe_code, reason = "ptrace(2) alone stops a single thread")]
fn stop_thread(tid: i32) {
    let none = std::ptr::null_mut::<libc::c_void>();
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: neither request reads or writes memory of this process.
        let result = unsafe { libc::ptrace(request, tid, none, none) };
        assert_eq!(0, result, "{}", io::Error::last_os_error());
    }
}

fn get(listen: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(listen).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Starts the daemon with `descriptor` as number 3, and `variables` set by a shell: before, nobody
/// knows LISTEN_PID.
fn activated(dir: &Path, descriptor: Stdio, variables: &str) -> Child {
    fs::write(dir.join("backlogd.toml"), "").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{variables} exec \"$0\" \"$@\" 3<&0 </dev/null")]);
    command.arg(env!("CARGO_BIN_EXE_backlogd")).stdin(descriptor);
    add_arguments(&mut command, dir);
    command.spawn().unwrap()
}

const OURS: &str = "LISTEN_PID=$$ LISTEN_FDS=1";

#[test]
fn a_socket_that_is_passed_is_served_on_and_what_waited_on_it_is_answered() {
    let dir = TempDir::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    let early = thread::spawn(move || get(&addr.to_string(), "/healthz"));
    let mut child = activated(dir.path(), OwnedFd::from(listener).into(), OURS);
    assert!(early.join().unwrap().starts_with("HTTP/1.1 200"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_socket_that_was_passed_to_another_process_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let variables = "LISTEN_PID=1 LISTEN_FDS=1";
    let mut child =
        activated(dir.path(), listener.try_clone().map(OwnedFd::from).unwrap().into(), variables);
    let log = BufReader::new(child.stderr.take().unwrap());
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("started")).unwrap();
    assert!(!line.contains(&listener.local_addr().unwrap().to_string()), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_cannot_be_served_on_is_refused_with_what_it_is() {
    let dir = TempDir::new().unwrap();
    let check = |descriptor: Stdio, variables: &str, expected: &str| {
        let output = activated(dir.path(), descriptor, variables).wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(Some(78), output.status.code(), "{text}");
        assert!(text.contains(expected), "{expected:?} in {text}");
    };
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    check(
        OwnedFd::from(udp).into(),
        OURS,
        "is an IP socket of another kind than TCP, expected a listening TCP",
    );
    let unix = UnixListener::bind(dir.path().join("other")).unwrap();
    check(OwnedFd::from(unix).into(), OURS, "is a socket of another family than IPv4 and IPv6");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    check(OwnedFd::from(connection).into(), OURS, "is a TCP socket that does not listen");
    check(Stdio::null(), OURS, "is /dev/null, expected a listening TCP socket");
    check(
        Stdio::null(),
        "LISTEN_PID=$$ LISTEN_FDS=2",
        "LISTEN_FDS passes 2 descriptors, expected 1",
    );
    check(Stdio::null(), "LISTEN_PID=$$ LISTEN_FDS=x", "LISTEN_FDS is \"x\", expected a number");
}
