//! A network namespace for each test, and waiting for what happens in it.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    panic,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use backlogd::id::NetnsId;
use rustix::{
    fs::statfs,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{agent::has_lost, tier::needs_tracefs};

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Runs `test` on a thread in a fresh network namespace whose loopback is up. What the test starts,
/// threads and processes, lives there too. With `BACKLOGD_TEST_INTERRUPTS` set, all its packets
/// arrive by interrupt.
///
/// Linux 6.18 on some virtual machines now and then runs no program for an event at all, in bursts.
/// The agent publishes that; a test that fails when it did runs again, at most twice.
pub(crate) fn in_own_netns(test: impl Fn() + Sync) {
    let run = || {
        unshare(UnshareFlags::NEWNET);
        run("ip", &["link", "set", "lo", "up"]);
        if needs_tracefs() {
            mount_tracing();
        }
        allow_many_files();
        if env::var_os("BACKLOGD_TEST_INTERRUPTS").is_some() {
            packets_by_interrupt();
        }
        panic::catch_unwind(panic::AssertUnwindSafe(&test)).map_err(|panic| (panic, has_lost()))
    };
    for is_last in [false, false, true] {
        match thread::scope(|scope| scope.spawn(run).join()) {
            Ok(Ok(())) => return,
            Ok(Err((_, true))) if !is_last => {}
            Ok(Err((panic, _))) | Err(panic) => panic::resume_unwind(panic),
        }
    }
}

/// Whether this kernel is `version` or later.
pub(crate) fn is_since(version: (u32, u32)) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().expect("a number"));
    (numbers.next().expect("major"), numbers.next().expect("minor")) >= version
}

/// From here on, packets of the calling thread's network namespace arrive by interrupt, as from a
/// network card. Plain loopback interrupts nobody.
pub(crate) fn packets_by_interrupt() {
    mount_own_sysfs();
    fs::write("/sys/class/net/lo/queues/rx-0/rps_cpus", "3").expect("RPS");
}

/// Shows the calling thread the network namespace that it is in below `/sys`.
fn mount_own_sysfs() {
    mount_own(&["-t", "sysfs", "sysfs", "/sys"]);
    mount_tracing();
}

/// Hides from the calling thread how the kernel describes its structures.
pub(crate) fn hide_btf() {
    mount_own(&["-t", "tmpfs", "tmpfs", "/sys/kernel/btf"]);
}

/// Shows the calling thread, and it alone, tracepoints, probes and pins.
pub(crate) fn mount_tracing() {
    // linux/magic.h; /proc/mounts also lists what another mount hides
    for (kind, folder, magic) in [
        ("tracefs", "/sys/kernel/tracing", 0x7472_6163),
        ("debugfs", "/sys/kernel/debug", 0x6462_6720),
        ("bpf", "/sys/fs/bpf", 0xcafe_4a11),
    ] {
        if statfs(folder).expect(folder).f_type != magic {
            mount_own(&["-t", kind, kind, folder]);
        }
    }
}

/// Mounts for the calling thread alone.
pub(crate) fn mount_own(what: &[&str]) {
    unshare(UnshareFlags::NEWNS);
    run("mount", &["--make-rprivate", "/"]);
    run("mount", what);
}

/// The namespace of the calling thread.
pub(crate) fn own_netns() -> NetnsId {
    let inode = fs::metadata("/proc/thread-self/ns/net").expect("our namespace").ino();
    NetnsId(u32::try_from(inode).expect("nsfs numbers are small"))
}

/// Sets a sysctl of this namespace, named as below `/proc/sys/net`.
pub(crate) fn set_sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).expect(name);
}

/// Returns when `happened` does; panics with `what` when that takes too long.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a program to its end; panics when it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect(program);
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// A thousand listeners and their clients need more than the usual 1,024.
fn allow_many_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("RLIMIT_NOFILE");
}

#[expect(unsafe_code, reason = "unshare(2) can part a thread from its descriptors")]
fn unshare(what: UnshareFlags) {
    assert!(!what.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: the only danger is `FILES`, and the line above refuses it.
    unsafe { unshare_unsafe(what) }.expect("unshare needs root");
}
