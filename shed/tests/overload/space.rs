//! A network namespace for each test, and what the kernel says in it.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{env, fs, process::Command, time::Duration};

const SPACE: &str = "BACKLOGD_SHED_SPACE";

/// Runs `test`, of this program, in a network namespace of its own; false: it is there already.
pub(crate) fn in_own_space(test: &str) -> bool {
    runs(test, "")
}

/// The same for one that measures: its processes go before all others of the machine where that is
/// granted (`SCHED_RR`), so that they wait for each other alone.
pub(crate) fn first_in_own_space(test: &str) -> bool {
    runs(test, "chrt --rr --pid 1 $$; ")
}

fn runs(test: &str, prepare: &str) -> bool {
    if env::var_os(SPACE).is_some() {
        return false;
    }
    let prepare = format!("{prepare}ip link set lo up && exec \"$0\" \"$@\"");
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "--net", "sh", "-c", &prepare]);
    command.arg(env::current_exe().expect("this program")).env(SPACE, "");
    let output = command.args(["--exact", test, "--ignored", "--nocapture"]).output();
    let output = output.expect("unshare of util-linux");
    let said = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    assert!(output.status.success(), "in its own namespace: {}", said.concat());
    eprint!("{}", said[1]);
    true
}

/// A counter of this network namespace.
fn count(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/net/{file}")).expect("counters");
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        if let Some(place) = names.split(' ').position(|name| name == key) {
            return values.split(' ').nth(place).and_then(|n| n.parse().ok()).expect("a number");
        }
    }
    panic!("no {key} in {file}");
}

/// One of TcpExt.
pub(crate) fn netstat(key: &str) -> u64 {
    count("netstat", key)
}

/// Connections that the kernel accepted.
pub(crate) fn passive_opens() -> u64 {
    count("snmp", "PassiveOpens")
}

/// Resets that were sent in this network namespace.
pub(crate) fn resets() -> usize {
    usize::try_from(count("snmp", "OutRsts")).expect("few")
}

/// Connections of `port` in TIME_WAIT: who closes first has it.
pub(crate) fn time_waits(port: u16) -> usize {
    let text = fs::read_to_string("/proc/self/net/tcp").expect("sockets");
    let local = format!(" 0100007F:{port:04X} ");
    text.lines().filter(|line| line.contains(&local) && line.contains(" 06 ")).count()
}

/// Sets RLIMIT_NOFILE of this process, and how far it may be raised.
pub(crate) fn limit_descriptors(n: usize, most: usize) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &std::process::id().to_string(), &format!("--nofile={n}:{most}")]);
    assert!(command.status().expect("prlimit of util-linux").success());
}

/// User and system time of this process.
pub(crate) fn cpu() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").expect("threads");
    let nanos = tasks.map(|task| {
        let path = task.expect("a thread").path().join("schedstat");
        let text = fs::read_to_string(path).expect("a thread");
        text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a number")
    });
    Duration::from_nanos(nanos.sum())
}

/// Has this process run before all others, whatever else the machine does.
pub(crate) fn first() {
    let mut command = Command::new("chrt");
    command.args(["--fifo", "--all-tasks", "--pid", "1", &std::process::id().to_string()]);
    assert!(command.status().expect("chrt of util-linux").success());
}
