//! Bursts that are larger than the accept queue.

use backlogd::{detect::phase::Severity, model::snapshot::Snapshot};

use super::watch::{SOON, Watch, check, value};
use crate::{
    actors::{Act, Actor},
    agent::find,
    clients::Clients,
    namespace::{in_own_netns, set_sysctl, wait_for},
};

/// `n` clients at once. The server pauses while they come, for milliseconds: one that is quick
/// enough would take them as they arrive.
fn burst(server: &Actor, n: usize) -> Clients {
    server.stop();
    let clients = Clients::start(n, server.addr);
    server.go_on();
    clients
}

/// What the kernel counted for the namespace.
fn counted(snapshot: &Snapshot, field: &str) -> u64 {
    snapshot.namespaces[0].netstat.as_ref().expect("read")[field]
}

#[test]
#[ignore = "kernel: needs root"]
fn five_hundred_clients_at_once_overflow_a_backlog_of_two_hundred_and_nothing_else_is_told() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::Serves, "burst", "127.0.0.1:0", 200);
        let mut watch = Watch::start("burst", &["AcceptQueueOverflow"]);
        drop(Clients::connect(20, server.addr));
        server.accepts(20);
        watch.quiet(1);
        let clients = burst(&server, 500);
        let alert = watch.told("AcceptQueueOverflow", SOON);
        let n = counted(&watch.snapshot, "ListenOverflows");
        assert_eq!(n as f64, value(&alert, "overflows"), "of the first look");
        assert!((299..=500).contains(&n), "{n}");
        check(
            &alert,
            (Severity::Warning, &format!("burst {}", server.addr)),
            &format!("{n} overflows in "),
            Some("the limit of 200 is the program's own: net.core.somaxconn = 4096 allows more"),
            "raise the backlog argument of listen(2) in the program, to 1024, then restart",
        );
        assert!(alert.latest.seen.contains("0 of 200 places taken now"), "{alert:?}");
        // each that was dropped tries again after a second; of those that come by cookie some are never
        // served, since nobody tells them that their last ACK was dropped
        let accepted = watch.rests(&mut server);
        wait_for("clients to be connected", || 500 == clients.connected());
        assert!((20 + 201..=520).contains(&accepted), "{accepted}");
        assert_eq!(find(&watch.snapshot, server.addr).counters.accepted, Ok(accepted));
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_limit_that_somaxconn_caps_is_told_with_the_sysctl() {
    in_own_netns(|| {
        set_sysctl("core/somaxconn", "128");
        let mut server = Actor::start(Act::Serves, "capped", "127.0.0.1:0", 4_096);
        let mut watch = Watch::start("capped", &["AcceptQueueOverflow"]);
        for _ in 0..3 {
            let clients = burst(&server, 400);
            watch.told("AcceptQueueOverflow", SOON);
            assert!(129 <= watch.rests(&mut server));
            drop(clients);
        }
        let alert = watch.find("AcceptQueueOverflow").expect("it goes on for minutes");
        let n = counted(&watch.snapshot, "ListenOverflows");
        assert_eq!(n as f64, value(&alert, "overflows"));
        check(
            &alert,
            (Severity::Warning, &format!("capped {}", server.addr)),
            &format!("{n} overflows in "),
            Some("the limit of 128 is capped by net.core.somaxconn = 128"),
            "then restart the program: the limit is latched at listen(2)",
        );
        // where no hook tells waits, a comment says under which condition
        let mend = &alert.latest.mend;
        assert!(mend.starts_with("sysctl -w net.core.somaxconn=4096 # "), "{mend}");
    });
}
