//! Who holds a listener: found within two seconds, however it came to them.

use std::{
    env, fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use backlogd::{
    input::Workload,
    model::snapshot::{Listener, Snapshot},
    sources::Options,
};
use rustix::{
    io::IoSliceMut,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{Signal, set_parent_process_death_signal},
};

use crate::{
    agent::{Agent, SETTINGS, find},
    namespace::{in_own_netns, mount_own, wait_for},
    offenders::NeverAccepts,
    tier::options,
};

/// Longer than it may take to find an owner: two seconds, and a sample.
pub(crate) const IN_TIME: Duration = Duration::from_millis(2_500);

/// Looks, as often as the daemon would or more, until the listener is as wanted.
#[track_caller]
fn in_time(
    agent: &mut Agent,
    server: &NeverAccepts,
    what: &str,
    wanted: impl Fn(&Listener, &Snapshot) -> bool,
) {
    let start = Instant::now();
    loop {
        let snapshot = agent.look();
        let listener = find(&snapshot, server.addr);
        if wanted(listener, &snapshot) {
            return;
        }
        let (owners, comm) = (&listener.owners, &listener.comm);
        assert!(start.elapsed() < IN_TIME, "not in time: {what}: {owners:?} {comm:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// A process that has the listening socket as its standard input.
fn heir(server: &NeverAccepts, program: &str, arguments: &[&str]) -> Heir {
    let inherited = server.socket().as_fd().try_clone_to_owned().expect("a further descriptor");
    let mut command = Command::new(program);
    command.args(arguments).stdin(inherited).stdout(Stdio::null());
    Heir(command.spawn().expect(program))
}

/// Ends with the test.
struct Heir(Child);

impl Heir {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_owned(listener: &Listener, pid: u32) -> bool {
    listener.owners.iter().any(|owner| owner.0 == pid)
}

#[test]
#[ignore = "kernel: needs root"]
fn whoever_inherits_or_loses_a_listener_is_known_in_time() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 5);
        let own = std::process::id();
        in_time(&mut agent, &server, "the first owner", |listener, _| is_owned(listener, own));
        // long after the passes that a new listener is due
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            agent.look();
            thread::sleep(Duration::from_millis(200));
        }
        let heir = heir(&server, "sleep", &["600"]);
        in_time(&mut agent, &server, "the heir", |listener, _| {
            is_owned(listener, heir.pid()) && is_owned(listener, own)
        });
        drop(heir);
        in_time(&mut agent, &server, "the heir's end", |listener, _| {
            listener.owners.len() == 1 && is_owned(listener, own)
        });
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn the_name_after_exec_is_known_in_time() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 5);
        let heir = heir(&server, "sh", &["-c", "sleep 3; exec sleep 600"]);
        let named = |name: &'static str| {
            let pid = backlogd::id::Pid(heir.pid());
            move |_: &Listener, snapshot: &Snapshot| {
                snapshot.processes.get(&pid).is_some_and(|process| &*process.now.comm == name)
            }
        };
        in_time(&mut agent, &server, "the shell", named("sh"));
        let comm = format!("/proc/{}/comm", heir.pid());
        wait_for("exec", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n"));
        in_time(&mut agent, &server, "its other name", named("sleep"));
    });
}

/// Set for the process that takes a descriptor from its standard input.
const HOLD: &str = "BACKLOGD_TEST_HOLD";

#[test]
#[ignore = "kernel: needs root"]
fn whoever_is_passed_a_listener_is_known_in_time() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 5);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "owners::holds_what_it_is_passed", "--ignored", "--test-threads=1"])
            .env(HOLD, "1")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test again");
        let holder = Heir(child);
        let own = std::process::id();
        in_time(&mut agent, &server, "the first owner", |listener, _| is_owned(listener, own));
        pass(&ours, server.socket().as_fd());
        in_time(&mut agent, &server, "the other", |listener, _| is_owned(listener, holder.pid()));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn holds_what_it_is_passed() {
    if env::var_os(HOLD).is_none() {
        return;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).expect("prctl");
    let stdin = io::stdin();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(stdin.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)
        .expect("recvmsg");
    let held: Vec<OwnedFd> = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(held.len(), 1);
    loop {
        thread::park();
    }
}

/// Passes a descriptor over a Unix socket.
fn pass(over: &UnixStream, fd: BorrowedFd<'_>) {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(over, &[io::IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).expect("sendmsg");
}

const UID: &str = "0f1d3a64-5b7e-4c2a-9d10-7f2f6f1f3c55";
const CONTAINER: &str = "3f29c1d5b7e84a0c9e6d2b1a4f7c8e5d6a9b0c1d2e3f4a5b6c7d8e9f0a1b2c3d";

/// A host's files as kubelet leaves them.
fn kubelet_files(root: &Path) {
    let logs = root.join(format!("var/log/pods/shop_checkout-7d9c_{UID}/web"));
    fs::create_dir_all(logs).expect("folders");
    let links = root.join("var/log/containers");
    fs::create_dir_all(&links).expect("folders");
    let link = links.join(format!("checkout-7d9c_shop_web-{CONTAINER}.log"));
    std::os::unix::fs::symlink("/var/log/pods/nowhere", link).expect("symlink");
}

/// A process in a control group of its own, which is removed with it.
struct Grouped {
    heir: Option<Heir>,
    folders: Vec<PathBuf>,
}

impl Grouped {
    fn new(heir: Heir, mount: &Path, path: &str) -> Self {
        let mut folder = mount.to_owned();
        let mut folders = Vec::new();
        for part in path.split('/') {
            folder.push(part);
            // another test's can be there still
            let _ = fs::create_dir(&folder);
            folders.push(folder.clone());
        }
        fs::write(folder.join("cgroup.procs"), heir.pid().to_string()).expect("moved");
        Self { heir: Some(heir), folders }
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        drop(self.heir.take());
        for folder in self.folders.iter().rev() {
            // the last one out leaves a moment later
            for _ in 0..100 {
                if fs::remove_dir(folder).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn the_unit_container_and_pod_of_an_owner_are_those_of_its_control_group() {
    in_own_netns(|| {
        let files = tempfile::tempdir().expect("a folder");
        kubelet_files(files.path());
        let mount = tempfile::tempdir().expect("a folder");
        let target = mount.path().to_str().expect("ASCII");
        mount_own(&["-t", "cgroup2", "none", target]);
        let mut agent =
            Agent::with(&Options { root: files.path().into(), ..options(256) }, SETTINGS);
        let uid = UID.replace('-', "_");
        let pod = format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{CONTAINER}.scope"
        );
        let check = |agent: &mut Agent, path: &str, expected: Workload| {
            let server = NeverAccepts::listen("127.0.0.1:0", 5);
            let grouped = Grouped::new(heir(&server, "sleep", &["600"]), mount.path(), path);
            let pid = backlogd::id::Pid(grouped.heir.as_ref().expect("alive").pid());
            in_time(agent, &server, "the workload", |_, snapshot| {
                let process = snapshot.processes.get(&pid);
                process.is_some_and(|process| *process.now.workload == expected)
            });
        };
        let known = |text: &str| Some(text.into());
        check(
            &mut agent,
            &pod,
            Workload {
                container_id: known(CONTAINER),
                pod_uid: known(UID),
                namespace: known("shop"),
                pod: known("checkout-7d9c"),
                container: known("web"),
                ..Workload::default()
            },
        );
        let unit = Workload { unit: known("backlogd-test.service"), ..Workload::default() };
        check(&mut agent, "system.slice/backlogd-test.service", unit);
    });
}
