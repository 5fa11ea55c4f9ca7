//! A closer look: the tracepoints of system calls are on for some seconds when a listener stalls,
//! and off again, however the daemon ends.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use aya::programs::loaded_programs;

use crate::{
    binary::Daemon,
    clients::Clients,
    namespace::{in_own_netns, mount_tracing, wait_for},
    offenders::NeverAccepts,
};

/// Programs that see system calls return, of the whole host.
fn watching() -> BTreeSet<u32> {
    let is_ours = |name: &str| matches!(name, "exit_accept" | "exit_accept4" | "exit_connect");
    let programs = loaded_programs().filter_map(Result::ok);
    let ours = programs.filter(|program| program.name_as_str().is_some_and(is_ours));
    ours.map(|program| program.id()).collect()
}

/// The value of a series, 0 when it is not there.
fn value(daemon: &Daemon, series: &str) -> u64 {
    let metrics = daemon.get("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |number| number.trim().parse().expect("a whole number"))
}

/// A daemon that neither fentry nor kprobe helps, and a listener with a connection that nobody
/// accepts.
fn stall() -> (Daemon, NeverAccepts, Clients) {
    mount_tracing();
    let flags =
        ["--tier", "tracepoint", "--accept-tracepoints=false", "--stalled-after-seconds", "1"];
    let daemon = Daemon::start(&flags);
    let server = NeverAccepts::listen("127.0.0.1:0", 10);
    let clients = Clients::connect(1, server.addr);
    (daemon, server, clients)
}

#[test]
#[ignore = "kernel: needs root"]
fn a_stalled_listener_is_looked_at_for_five_seconds() {
    in_own_netns(|| {
        let before = watching();
        let (daemon, server, clients) = stall();
        assert_eq!(
            (before.len(), 0),
            (watching().len(), value(&daemon, "backlogd_closer_looks_total"))
        );
        wait_for("the closer look", || value(&daemon, "backlogd_closer_look_active") == 1);
        let begun = Instant::now();
        assert_eq!(before.len() + 3, watching().len());
        server.socket().set_nonblocking(true).expect("a socket");
        drop(server.accept(1));
        server.socket().accept().map(drop).expect_err("the queue is empty");
        let series = format!("backlogd_accept_would_block_total{{comm=\"{}\"}}", own_name());
        wait_for("what failed", || value(&daemon, &series) == 1);
        wait_for("its end", || value(&daemon, "backlogd_closer_look_active") == 0);
        let lasted = begun.elapsed();
        assert!(Duration::from_secs(4) < lasted && lasted < Duration::from_secs(8), "{lasted:?}");
        wait_for("the programs to go", || watching() == before);
        assert_eq!(1, value(&daemon, "backlogd_closer_looks_total"));
        drop((daemon, clients));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_daemon_that_is_killed_meanwhile_leaves_nothing_on() {
    in_own_netns(|| {
        let before = watching();
        let (daemon, server, clients) = stall();
        wait_for("the closer look", || value(&daemon, "backlogd_closer_look_active") == 1);
        assert_eq!(before.len() + 3, watching().len());
        // SIGKILL
        drop(daemon);
        wait_for("the programs to go", || watching() == before);
        drop((server, clients));
    });
}

/// What the kernel calls this thread.
fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/thread-self/comm").expect("our name");
    name.trim_end().to_owned()
}
