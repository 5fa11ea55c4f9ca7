//! `backlogd trace` through the real binary: exactly the events that were provoked.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::{Child, ChildStderr, Command, Stdio},
    sync::Mutex,
    thread::{self, JoinHandle},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    clients::Clients,
    namespace::{in_own_netns, own_netns, wait_for},
    offenders::{Accepts, NeverAccepts},
    tier::{self, backlogd},
};

/// A running trace. Its output is read as it comes.
struct Trace {
    child: Child,
    stdout: JoinHandle<String>,
    stderr: BufReader<ChildStderr>,
    /// The first note: what is watched.
    watching: String,
}

/// How a trace ended.
struct Ended {
    code: Option<i32>,
    events: Vec<Value>,
    notes: String,
}

impl Trace {
    /// Starts it; returns once it watches.
    fn start(arguments: &[&str]) -> Self {
        let mut child = backlogd()
            .args(["trace", "-o", "json", "--config", "/dev/null"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let mut stdout = child.stdout.take().expect("piped");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let stdout = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("JSON is UTF-8");
            text
        });
        let mut watching = String::new();
        stderr.read_line(&mut watching).expect("a note");
        Self { child, stdout, stderr, watching }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
    }

    /// Stops it; returns when it stands still.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let path = format!("/proc/{}/stat", self.child.id());
        wait_for("trace to stop", || {
            let stat = fs::read_to_string(&path).expect("our child");
            stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        });
    }

    /// Tells it to end. What has happened so far is in its output.
    fn interrupt(self) -> Ended {
        self.signal(Signal::INT);
        self.end()
    }

    /// Waits until it ends by itself.
    fn end(mut self) -> Ended {
        let mut notes = String::new();
        self.stderr.read_to_string(&mut notes).expect("notes are UTF-8");
        let code = self.child.wait().expect("our child").code();
        let text = self.stdout.join().expect("it was read");
        let event = |line: &str| serde_json::from_str(line).expect("an object on each line");
        Ended { code, events: text.lines().map(event).collect(), notes }
    }
}

impl Ended {
    /// How many events of each kind there are of the listener on `port`.
    fn counts(&self, port: u16) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for event in self.events.iter().filter(|event| event["port"] == port) {
            *counts.entry(event["event"].as_str().expect("a name")).or_default() += 1;
        }
        counts
    }

    /// Shown and lost, as the last note has it.
    fn summary(&self) -> (u64, u64) {
        let last = self.notes.lines().last().expect("a summary");
        let words: Vec<_> = last.split(' ').collect();
        let lost = match words[6] {
            "none" => 0,
            number => number.parse().expect("a number"),
        };
        (words[1].parse().expect("a number"), lost)
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn each_event_is_shown_once_and_only_of_the_port_that_was_asked_for() {
    in_own_netns(|| {
        let other = NeverAccepts::listen("127.0.0.1:0", 10);
        let addr = {
            // a port that is free
            NeverAccepts::listen("127.0.0.1:0", 1).addr
        };
        let port = addr.port();
        let kinds = "established,listen,unlisten,close";
        let trace = Trace::start(&["--port", &port.to_string(), "--event", kinds]);
        let expected = format!("backlogd: no listener on port {port} so far; waiting\n");
        assert_eq!(expected, trace.watching);
        let server = Accepts::at_once(NeverAccepts::again(addr, 10));
        for _ in 0..7 {
            // the server closes first, and the client sees it
            let mut client = TcpStream::connect(addr).expect("it listens");
            assert_eq!(0, client.read(&mut [0]).expect("closed in order"));
        }
        let clients = Clients::connect(3, other.addr);
        drop(other.accept(3));
        drop(clients);
        assert_eq!(7, server.stop());
        let ended = trace.interrupt();
        let expected = [("listen", 1), ("established", 7), ("close", 7), ("unlisten", 1)];
        assert_eq!(BTreeMap::from(expected), ended.counts(port), "{:?}", ended.events);
        assert_eq!(Some(0), ended.code);
        assert_eq!((16, 0), ended.summary(), "{}", ended.notes);
        assert_eq!(16, ended.events.len(), "nothing of {}", other.addr);
        let netns = u64::from(own_netns().0);
        for event in &ended.events {
            assert_eq!(netns, event["netns"], "{event}");
            // the test itself called listen(2)
            assert_eq!(std::process::id(), event["owner"]["pid"], "{event}");
        }
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn it_ends_by_itself_after_a_time_or_a_number_of_events() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:0", 10);
        let port = server.addr.port().to_string();
        let event = ["--port", &port, "--event", "established"];
        let timed = Trace::start(&[&event[..], &["--duration", "4s"]].concat());
        let counted = Trace::start(&[&event[..], &["--count", "2"]].concat());
        let watching = format!("backlogd: watching 1 listening socket on port {port}\n");
        assert_eq!(watching, timed.watching);
        let clients = Clients::connect(3, server.addr);
        let counted = counted.end();
        assert_eq!((Some(0), 2), (counted.code, counted.events.len()), "{}", counted.notes);
        let timed = timed.end();
        assert_eq!((Some(0), (3, 0)), (timed.code, timed.summary()), "{}", timed.notes);
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_is_chosen_by_its_owner() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:0", 10);
        let (own, other) = (std::process::id().to_string(), "1");
        let event = ["--event", "established"];
        let mine = Trace::start(&[&event[..], &["--pid", &own]].concat());
        let not_mine = Trace::start(&[&event[..], &["--pid", other]].concat());
        let watching = format!("backlogd: watching 1 listening socket of process {own}\n");
        assert_eq!(watching, mine.watching);
        let clients = Clients::connect(4, server.addr);
        assert_eq!((4, 0), mine.interrupt().summary());
        assert_eq!((0, 0), not_mine.interrupt().summary());
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn another_namespace_is_watched_from_outside() {
    in_own_netns(|| {
        let path = format!("/proc/self/task/{}/ns/net", rustix::thread::gettid());
        let path = path.replace("self", &std::process::id().to_string());
        let (inode, server) = (own_netns().0, NeverAccepts::listen("127.0.0.1:0", 10));
        let start = |netns: &str| {
            // a thread that is in yet another namespace starts it
            let trace = Mutex::new(None);
            in_own_netns(|| {
                let started = Trace::start(&["--netns", netns, "--event", "established"]);
                *trace.lock().expect("nobody panicked") = Some(started);
            });
            trace.into_inner().expect("nobody panicked").expect("it was started")
        };
        let traces = [start(&path), start(&format!("net:[{inode}]"))];
        let clients = Clients::connect(2, server.addr);
        for trace in traces {
            let watching = format!("backlogd: watching 1 listening socket in net:[{inode}]\n");
            assert_eq!(watching, trace.watching);
            assert_eq!((2, 0), trace.interrupt().summary());
        }
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn what_a_stopped_reader_missed_is_counted_as_lost() {
    const CONNECTIONS: u64 = 20_000;
    in_own_netns(|| {
        let server = Accepts::at_once(NeverAccepts::listen("127.0.0.1:0", 128));
        let port = server.addr.port().to_string();
        let trace = Trace::start(&["--port", &port, "--event", "established"]);
        trace.stop();
        for _ in 0..CONNECTIONS {
            let mut client = TcpStream::connect(server.addr).expect("it listens");
            assert_eq!(0, client.read(&mut [0]).expect("closed in order"));
        }
        assert_eq!(CONNECTIONS, server.stop());
        trace.signal(Signal::CONT);
        let ended = trace.interrupt();
        let (shown, lost) = ended.summary();
        assert_eq!(shown, ended.events.len() as u64);
        assert_eq!(CONNECTIONS, shown + lost, "{}", ended.notes);
        assert!(0 < lost && 0 < shown, "{}", ended.notes);
        assert!(ended.notes.ends_with("lost: the ring buffer was full\n"), "{}", ended.notes);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn without_privileges_it_is_3_and_names_the_capabilities() {
    // the build directory may be closed to others
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let copy = dir.path().join("backlogd");
    fs::copy(tier::binary(), &copy).expect("copy");
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
        .arg(&copy)
        .args(["trace", "--duration", "1s"])
        .output()
        .expect("setpriv is part of util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((Some(3), &b""[..]), (output.status.code(), &*output.stdout), "{said}");
    assert!(said.starts_with("backlogd: cannot trace: no eBPF program runs: "), "{said}");
    assert!(said.contains("CAP_BPF and CAP_PERFMON"), "{said}");
}
