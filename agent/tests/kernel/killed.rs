//! The daemon, killed under load: the kernel keeps nothing of it, and traffic does not notice.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::programs::{loaded_links, loaded_programs};

use crate::{
    binary::Daemon,
    namespace::{in_own_netns, mount_tracing, wait_for},
    tier::scaled,
};

/// Kills in a row; fewer where the processor is emulated.
fn kills() -> u64 {
    scaled(20).max(4)
}

/// Programs, links, maps by id.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ids {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Ids {
    /// Those that somebody's descriptors keep: of the processes of this host, or of one of them.
    fn held_by(pid: Option<u32>) -> Self {
        let mut ids = Self::default();
        let folders = match pid {
            Some(pid) => vec![PathBuf::from(format!("/proc/{pid}"))],
            None => fs::read_dir("/proc").expect("proc").map(|it| it.expect("it").path()).collect(),
        };
        for folder in folders {
            // what ends meanwhile holds nothing
            let Ok(files) = fs::read_dir(folder.join("fdinfo")) else { continue };
            for file in files.flatten() {
                ids.add(&fs::read_to_string(file.path()).unwrap_or_default());
            }
        }
        ids
    }

    /// Adds what one descriptor keeps.
    fn add(&mut self, fdinfo: &str) {
        for line in fdinfo.lines() {
            let Some((name, id)) = line.split_once(":\t") else { continue };
            let ids = match name {
                "prog_id" => &mut self.programs,
                "link_id" => &mut self.links,
                "map_id" => &mut self.maps,
                _ => continue,
            };
            ids.insert(id.trim().parse().expect("a number"));
        }
    }

    /// All programs and links that the kernel has. (A map stays for as long as a program uses it.)
    fn loaded() -> Self {
        // what goes meanwhile cannot be asked
        let programs = loaded_programs().flatten().map(|program| program.id());
        let links = loaded_links().flatten().map(|link| link.id());
        Self { programs: programs.collect(), links: links.collect(), maps: BTreeSet::new() }
    }

    /// What `self` has and none of `others`.
    fn without(self, others: &[&Self]) -> Self {
        let minus = |ids: BTreeSet<u32>, of: fn(&Self) -> &BTreeSet<u32>| {
            ids.into_iter()
                .filter(|id| !others.iter().any(|other| of(other).contains(id)))
                .collect()
        };
        Self {
            programs: minus(self.programs, |ids| &ids.programs),
            links: minus(self.links, |ids| &ids.links),
            maps: minus(self.maps, |ids| &ids.maps),
        }
    }
}

/// What a tracer can leave behind elsewhere: pins, probes, patched functions, events switched on.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    pins: Vec<PathBuf>,
    /// As their files have them; empty where the kernel has none.
    lists: [String; 3],
    enabled: Vec<PathBuf>,
}

impl Traces {
    fn now() -> Self {
        let tracing = Path::new("/sys/kernel/tracing");
        let entries = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten();
            entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
        };
        let groups = ["syscalls", "sock", "tcp", "kprobes"];
        let events = groups.iter().flat_map(|group| entries(&tracing.join("events").join(group)));
        let is_on = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|on| on.trim() != "0");
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        Self {
            pins: entries(Path::new("/sys/fs/bpf")),
            lists: [
                read(&tracing.join("kprobe_events")),
                read(&tracing.join("enabled_functions")),
                read(Path::new("/sys/kernel/debug/kprobes/list")),
            ],
            enabled: events.map(|event| event.join("enable")).filter(is_on).collect(),
        }
    }
}

/// An echo server and clients that call it, one connection for each word.
struct Traffic {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
    server: (Arc<AtomicBool>, JoinHandle<()>),
}

impl Traffic {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let addr = listener.local_addr().expect("bound");
        let [stop, stop_server] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let calls = Arc::new(AtomicU64::new(0));
        let server = thread::spawn({
            let stop = stop_server.clone();
            move || echo(&listener, &stop)
        });
        let client = || {
            let (stop, calls) = (stop.clone(), calls.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    call(addr);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = vec![client(), client()];
        Self { stop, calls, clients, server: (stop_server, server) }
    }

    /// How many calls have succeeded; one that does not ends the test.
    fn calls(&self) -> u64 {
        let failed = self.clients.iter().any(JoinHandle::is_finished);
        assert!(!failed, "a call has failed");
        self.calls.load(Ordering::Relaxed)
    }

    /// The server goes last.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("no call fails");
        }
        let (stop, server) = self.server;
        stop.store(true, Ordering::Relaxed);
        server.join().expect("it serves");
    }
}

fn echo(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false).expect("O_NONBLOCK");
                let mut word = [0; 4];
                stream.read_exact(&mut word).expect("a word");
                stream.write_all(&word).expect("it can be sent");
            }
            // the clients are slower than a turn of this loop
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("accept: {error}"),
        }
    }
}

fn call(addr: SocketAddr) {
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&addr, limit).expect("connect");
    stream.set_read_timeout(Some(limit)).expect("a timeout");
    stream.write_all(b"word").expect("it can be sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer, b"word");
}

/// Kills the daemon, which has `hook`, again and again.
#[track_caller]
fn check_killed(arguments: &[&str], hook: &str) {
    mount_tracing();
    let before = (Ids::loaded(), Traces::now());
    let traffic = Traffic::start();
    for _ in 0..kills() {
        let daemon = Daemon::start(arguments);
        wait_for(hook, || daemon.get("/readyz").contains(hook));
        let ours = Ids::held_by(Some(daemon.pid()));
        assert!(!ours.links.is_empty() && 4 <= ours.programs.len(), "{ours:?}");
        assert!(ours.programs.is_subset(&Ids::loaded().programs), "{ours:?}");
        let calls = traffic.calls();
        wait_for("calls while the programs run", || calls + 20 <= traffic.calls());
        drop(daemon);
        // the kernel frees them later, after a grace period (`bpf_prog_put`, kernel/bpf/syscall.c)
        wait_for("its programs and links to go", || {
            let loaded = Ids::loaded();
            ours.programs.is_disjoint(&loaded.programs) && ours.links.is_disjoint(&loaded.links)
        });
    }
    traffic.stop();
    // others come and go on this host: what nobody holds is left behind by somebody
    wait_for("nothing to be left", || {
        let left = Ids::loaded().without(&[&before.0, &Ids::held_by(None)]);
        left == Ids::default()
    });
    let mut traces = Traces::now();
    wait_for("probes to be gone", || {
        traces = Traces::now();
        traces == before.1
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_killed_daemon_leaves_nothing_and_traffic_goes_on() {
    in_own_netns(|| check_killed(&[], "established tracepoint state"));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_killed_daemon_leaves_no_tracepoint_of_a_system_call() {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    // the programs cannot be had there
    let hook = if lockdown.contains("[confidentiality]") {
        "established tracepoint state"
    } else {
        "accept tracepoint exit_accept"
    };
    let arguments = ["--tier", "tracepoint", "--accept-tracepoints"];
    in_own_netns(|| check_killed(&arguments, hook));
}
