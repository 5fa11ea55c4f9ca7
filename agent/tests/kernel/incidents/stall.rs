//! Connections wait and nobody accepts: for want of a permit, stopped by a signal, one of many.

use std::time::Duration;

use backlogd::{detect::phase::Severity, id::Pid};

use super::watch::{SOON, Watch, check, value};
use crate::{
    actors::{Act, Actor, PERMITS},
    agent::find,
    clients::Clients,
    namespace::in_own_netns,
};

/// A stall is over when it was for five seconds.
const OVER: Duration = Duration::from_secs(8);

#[test]
#[ignore = "kernel: needs root"]
fn a_server_without_permits_is_told_though_its_clients_believe_that_they_are_connected() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::Permits, "permits", "127.0.0.1:0", 128);
        let mut watch = Watch::start("permits", &["ListenerStalled"]);
        let (pid, subject) = (server.pid(), format!("permits {}", server.addr));
        let served = Clients::connect(PERMITS, server.addr);
        server.accepts(PERMITS as u64);
        watch.quiet(2);
        let queued = Clients::connect(10, server.addr);
        let alert = watch.told("ListenerStalled", SOON);
        check(
            &alert,
            (Severity::Warning, &subject),
            &format!("pid {pid}: 10 of 128 places taken, nobody has accepted for 4 s"),
            Some(&format!("threads of pid {pid} is in accept or waits for events")),
            &format!("cat /proc/{pid}/task/*/stack # where its threads are"),
        );
        let cause = alert.latest.cause.as_deref().expect("just checked");
        assert!(cause.contains(" in futex"), "{cause}");
        assert_eq!([Pid(pid)], *alert.subject.pids);
        assert_eq!(10, queued.connected());
        assert_eq!(10.0, value(&alert, "length"));
        drop((served, queued));
        watch.clears("ListenerStalled", OVER);
        server.accepts(PERMITS as u64 + 10);
        watch.quiet(2);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_process_that_is_stopped_by_a_signal_is_told_with_the_command_that_lets_it_go_on() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::Serves, "paused", "127.0.0.1:0", 64);
        let mut watch = Watch::start("stopped", &["ListenerStalled"]);
        let (pid, subject) = (server.pid(), format!("paused {}", server.addr));
        drop(Clients::connect(5, server.addr));
        server.accepts(5);
        watch.quiet(1);
        server.stop();
        let clients = Clients::connect(7, server.addr);
        let alert = watch.told("ListenerStalled", SOON);
        check(
            &alert,
            (Severity::Warning, &subject),
            &format!("pid {pid}: 7 of 64 places taken, nobody has accepted for 4 s"),
            Some(&format!("pid {pid} is stopped by a signal")),
            &format!("kill -CONT {pid}"),
        );
        server.go_on();
        watch.clears("ListenerStalled", OVER);
        server.accepts(12);
        watch.quiet(2);
        drop(clients);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn of_eight_workers_the_one_that_is_stuck_is_told_while_seven_serve() {
    const EACH: i32 = 64;
    in_own_netns(|| {
        let worker = |addr: &str| Actor::start(Act::Serves, "worker", addr, EACH);
        let mut workers = vec![worker("127.0.0.1:0")];
        let addr = workers[0].addr;
        workers.extend((1..8).map(|_| worker(&addr.to_string())));
        let mut watch = Watch::start("stuck_member", &["ListenerStalled"]);
        let mut crowd = Clients::connect(40, addr);
        watch.quiet(2);
        workers[3].stick();
        let stuck = workers[3].pid();
        // a few each second, as from a load balancer
        let alert = loop {
            crowd.join(Clients::connect(12, addr));
            watch.look();
            if let Some(alert) = watch.find("ListenerStalled") {
                break alert;
            }
            // by chance none of the first few is this member's
            let first = watch.snapshot.listeners.iter().find(|it| it.key.port == addr.port());
            let waits = first.expect("there").members.iter().filter_map(|it| it.waiting.ok()).max();
            assert!(waits.is_none_or(|it| it.as_seconds() < SOON.as_secs_f64()), "{waits:?}");
        };
        let listener = find(&watch.snapshot, addr);
        let members = &listener.members;
        let at = members.iter().position(|it| it.pid == Some(Pid(stuck))).expect("a member");
        let (length, inode) = (members[at].length, members[at].inode);
        check(
            &alert,
            (Severity::Warning, &format!("worker {addr}")),
            &format!(
                "member {} (pid {stuck}, inode {inode}) of 8: {length} of {EACH} places taken, nobody \
                 has accepted for 4 s; the other 7 accept",
                at + 1
            ),
            Some(&format!("threads of pid {stuck} is in accept or waits for events")),
            &format!("cat /proc/{stuck}/task/*/stack # where its threads are"),
        );
        assert_eq!((1.0, 8.0), (value(&alert, "stalled_members"), value(&alert, "members")));
        // what is one queue for `ss -l` and dashboards is all but empty
        assert!(10 * listener.length < listener.limit, "{listener:?}");
        let accepted: u64 = workers.iter_mut().map(|worker| worker.done().accepted).sum();
        assert_eq!(crowd.connected() as u64, accepted + listener.length);
        // whoever ends it has its queue thrown away
        workers.remove(3).kill();
        watch.clears("ListenerStalled", OVER);
        watch.quiet(2);
        drop(crowd);
    });
}
