//! What the owners of a queue that nobody serves are doing: which member, which process, where its
//! threads are.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use backlogd::{
    publish::api::{Listener, SnapshotDocument, Threads},
    threads::ThreadState,
};

use crate::{
    binary::Daemon,
    clients::Clients,
    namespace::{in_own_netns, own_netns, wait_for},
    offenders::{NeverAccepts, Sleeps, StoppedServer},
};

/// From the connection that nobody accepts to what its owner's threads do.
const IN_TIME: Duration = Duration::from_secs(5);

/// A daemon that has taken its first sample, in which any queue would make its owners suspects.
fn daemon(interval: &str, flags: &[&str]) -> Daemon {
    let daemon = Daemon::sampling(interval, flags);
    snapshot(&daemon);
    daemon
}

/// The newest one, or the first.
fn snapshot(daemon: &Daemon) -> SnapshotDocument {
    let mut answer = String::new();
    wait_for("the first sample", || {
        answer = daemon.get("/api/v1/snapshot");
        answer.starts_with("HTTP/1.1 200 ")
    });
    let (_, body) = answer.split_once("\r\n\r\n").expect("head and body");
    serde_json::from_str(body).expect("a snapshot")
}

/// The listener on `addr` of this namespace.
fn listener(snapshot: &SnapshotDocument, addr: SocketAddr) -> Option<&Listener> {
    let is_it =
        |it: &&Listener| (it.netns, it.addr, it.port) == (own_netns().0, addr.ip(), addr.port());
    snapshot.listeners.listeners.iter().find(is_it)
}

fn threads(snapshot: &SnapshotDocument, pid: u32) -> Option<Threads> {
    let process = snapshot.processes.iter().find(|process| process.pid == pid)?;
    process.threads.clone()
}

/// Waits until somebody has looked at the threads of `pid`.
fn looked_at(daemon: &Daemon, pid: u32) -> (Threads, SnapshotDocument) {
    let mut found = None;
    wait_for("a look at its threads", || {
        let snapshot = snapshot(daemon);
        found = threads(&snapshot, pid).map(|threads| (threads, snapshot));
        found.is_some()
    });
    found.expect("waited for")
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_that_was_stopped_is_told_within_five_seconds() {
    in_own_netns(|| {
        let daemon = daemon("1", &[]);
        let server = StoppedServer::start(10);
        drop(Clients::connect(1, server.addr));
        wait_for("it to serve", || server.accepted() == 1);
        server.rests();
        server.stop();
        let start = Instant::now();
        let clients = Clients::connect(1, server.addr);
        let (threads, _) = looked_at(&daemon, server.pid());
        let took = start.elapsed();
        assert!(took < IN_TIME, "{took:?}");
        assert!(0 < threads.total && threads.looked_at == threads.total, "{threads:?}");
        for group in &threads.groups {
            assert_eq!(ThreadState::Stopped, group.state, "{threads:?}");
        }
        // it was stopped in its call
        assert!(
            threads.groups.iter().any(|it| it.call.as_deref() == Some("accept")),
            "{threads:?}"
        );
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_that_sleeps_elsewhere_is_told_with_its_call_and_nobody_else_is_looked_at() {
    in_own_netns(|| {
        let daemon = daemon("0.1", &[]);
        let server = Sleeps::holding(NeverAccepts::listen("127.0.0.1:0", 10));
        let healthy = StoppedServer::start(10);
        let clients = [server.addr, healthy.addr].map(|addr| Clients::connect(3, addr));
        let (threads, snapshot) = looked_at(&daemon, server.pid());
        assert_eq!((1, 1, false), (threads.total, threads.looked_at, threads.traced));
        let group = &threads.groups[0];
        let told = (group.state, group.call.as_deref(), group.count);
        assert_eq!((ThreadState::Sleeping, Some("nanosleep"), 1), told);
        assert!(group.wchan.is_some(), "{group:?}");
        assert_eq!(None, self::threads(&snapshot, healthy.pid()));
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn of_two_processes_on_one_port_the_one_that_stands_still_is_named() {
    in_own_netns(|| {
        let daemon = daemon("0.1", &["--stalled-after-seconds", "3"]);
        let [stopped, healthy] = NeverAccepts::group(&[64, 64])
            .try_into()
            .map(|it: [_; 2]| it.map(StoppedServer::serve))
            .unwrap_or_else(|_| panic!("a group of two"));
        stopped.stop();
        let clients = Clients::connect(40, stopped.addr);
        let mut found = None;
        wait_for("a member to stall", || {
            found = listener(&snapshot(&daemon), stopped.addr).cloned();
            found.as_ref().is_some_and(|listener| listener.stalled == Some(true))
        });
        let listener = found.expect("waited for");
        let mut members = listener.members;
        members.sort_by_key(|member| member.stalled);
        let pids = [0, 1].map(|n| members[n].pid);
        assert_eq!([Some(healthy.pid()), Some(stopped.pid())], pids, "{members:?}");
        assert_eq!([Some(false), Some(true)], [0, 1].map(|n| members[n].stalled));
        assert_eq!((0, Some(0.0)), (members[0].length, members[0].waiting_seconds));
        // a sample that comes a little early is not waited for again
        assert!(members[1].waiting_seconds.is_some_and(|it| 2.85 <= it), "{members:?}");
        assert_eq!(40, healthy.accepted() + u64::from(members[1].length));
        // the cause was there by then
        let snapshot = snapshot(&daemon);
        let threads = threads(&snapshot, stopped.pid()).expect("looked at");
        assert!(threads.groups.iter().all(|it| it.state == ThreadState::Stopped), "{threads:?}");
        assert_eq!(None, self::threads(&snapshot, healthy.pid()));
        drop(clients);
    });
}
