//! The texts, as committed.

use std::sync::Arc;

use super::*;
use crate::{
    audit::{audit, fixture::judged},
    detect::{command::RESTART, fixture, phase::Severity, rule::Evidence},
    errno::Errno,
    histogram::Histogram,
    id::{Inode, Pid},
    input::{Absent, CallErrors, Connections, Table, TableRead, Workload},
    model::snapshot::{Counters, DropsBy, Found, Member, Rates},
    threads::{Call, ThreadGroup, ThreadState, Threads},
    time::Nanos,
};
use backlogd_abi::histogram::{BUCKETS, bucket};

/// An alert of the case, about its first listener.
type Fires<'a> = (&'a str, Severity, usize, &'a str);

/// The story of the first listener after `change`.
fn story(fires: &[Fires<'_>], change: impl FnOnce(&mut Snapshot)) -> String {
    let mut now = fixture::snapshot(vec![fixture::listener(80)]);
    now.samples = 100;
    change(&mut now);
    let judged = judged(now, fires);
    let (now, findings) = (&judged.snapshot, audit(&judged.snapshot, &judged.verdicts));
    let listener = &now.listeners[0];
    let alerts = alerts_of(listener, &judged.verdicts);
    let sections = tell(listener, now, &alerts, &findings_of(listener, &findings));
    let lines = sections.iter().filter(|it| it.name == "todo").flat_map(|it| &it.lines);
    lines.filter(|line| *line != "Nothing.").for_each(|line| fixture::check_mend(line));
    let text = |section: &Section| format!("{}\n  {}\n", section.name, section.lines.join("\n  "));
    sections.iter().map(text).collect()
}

/// Ten of each.
fn waits(nanos: &[u64]) -> Arc<Histogram> {
    let mut buckets = [0; BUCKETS];
    nanos.iter().for_each(|&it| buckets[bucket(it)] += 10);
    Arc::new(Histogram::new(buckets, Nanos(10 * nanos.iter().sum::<u64>())))
}

fn seconds(n: u64) -> Nanos {
    Nanos(n * 1_000_000_000)
}

/// A thousand connections a second, accepted at once.
fn busy(now: &mut Snapshot) {
    let it = &mut now.listeners[0];
    it.workload = Arc::new(Workload { unit: Some("nginx.service".into()), ..Workload::default() });
    it.members[0].limit = 511;
    (it.limit, it.length, it.length_max) = (511, 3, Ok(40));
    it.members[0].length = 3;
    it.rates = Rates { established: Ok(1000.2), accepted: Ok(1000.0), drops: Ok(0.0) };
    it.counters.established = Ok(3_600_000);
    it.counters.accepted = Ok(3_599_997);
    it.accept_wait = Ok(waits(&[30_000, 40_000, 90_000]));
    it.since_accept = Ok(Nanos(1_000_000));
    it.open = Ok(220);
    let connections = Connections { accepted: 220, time_wait: 31, ..Connections::default() };
    it.connections = Ok(connections);
    let read = TableRead { at: now.at, table: Table::default() };
    now.namespaces[0].table = Ok(Arc::new(read));
    now.at = now.at + seconds(4);
}

#[test]
fn a_busy_listener_that_is_well() {
    insta::assert_snapshot!(story(&[], busy));
}

#[test]
fn what_came_before_the_agent_is_told_apart() {
    #[track_caller]
    fn check(counted: [u64; 2], found: Known<[u64; 2]>, expected: &str) {
        let text = story(&[], |now| {
            let counters = &mut now.listeners[0].counters;
            (counters.established, counters.accepted) = (Ok(counted[0]), Ok(counted[1]));
            counters.found = found.map(|[waiting, open]| Found { waiting, open });
        });
        let got = text.lines().find_map(|line| line.split_once("Since the agent watches, "));
        assert_eq!(Some(expected), got.map(|(_, it)| it), "{counted:?} {found:?}");
    }
    check([30, 30], Ok([0, 0]), "30 connections came and 30 were accepted.");
    check([1, 1], Ok([0, 0]), "1 connection came and 1 was accepted.");
    check(
        [30, 0],
        Ok([30, 0]),
        "no connection came and none was accepted. When it began, 30 connections waited already.",
    );
    check(
        [45, 33],
        Ok([10, 20]),
        "15 connections came and 13 were accepted. When it began, 10 connections waited already, and 20 \
         were open.",
    );
    check(
        [25, 21],
        Ok([0, 20]),
        "5 connections came and 1 was accepted. When it began, 20 connections were open already.",
    );
    check(
        [2, 1],
        Ok([1, 1]),
        "no connection came and none was accepted. When it began, 1 connection waited already, and 1 was open.",
    );
    check(
        [30, 0],
        Err(Absent::Unreadable),
        "30 connections came and 0 were accepted; those that waited or were open when it began are counted.",
    );
}

#[test]
fn what_runs_out_in_days_is_no_news() {
    let left = |hours: u64| {
        story(&[], |now| {
            let mut process = fixture::process("nginx", 500, 1_024);
            process.fds_exhausted_in = Ok(seconds(hours * 3_600));
            now.processes.insert(Pid(100), process);
        })
    };
    assert!(left(1).contains("limit 1024; none will be left in 60 min."), "{}", left(1));
    assert!(left(524).contains("limit 1024.\n"), "{}", left(524));
}

/// One connection that was opened is not a leak.
#[test]
fn what_a_few_samples_or_descriptors_show_is_no_trend() {
    #[track_caller]
    fn check(samples: u64, more: u64, minutes: u64, is_told: bool) {
        let text = story(&[], |now| {
            now.samples = samples;
            let mut process = fixture::process("nginx", 1_024 - more, 1_024);
            process.fds_exhausted_in = Ok(seconds(minutes * 60));
            now.processes.insert(Pid(100), process);
        });
        assert_eq!(is_told, text.contains("none will be left in"), "{text}");
    }
    check(61, 500, 100, true);
    check(60, 500, 100, false);
    check(5, 500, 1, false);
    check(600, 499, 100, false);
}

#[test]
fn a_few_waits_give_no_verdict() {
    let text = |n: usize| {
        story(&[], |now| {
            let mut buckets = [0; BUCKETS];
            buckets[bucket(900_000_000)] = n as u64;
            let waits = Histogram::new(buckets, Nanos(900_000_000 * n as u64));
            now.listeners[0].accept_wait = Ok(Arc::new(waits));
        })
    };
    let few = "Only 19 waits for accept were measured: too few to judge the program.";
    assert!(text(19).contains(few), "{}", text(19));
    assert!(!text(19).contains("slow to accept"), "{}", text(19));
    assert!(text(20).contains("The program is slow to accept"), "{}", text(20));
    assert!(!text(0).contains("for accept were"), "{}", text(0));
}

#[test]
fn errors_of_another_process_of_that_name_are_not_told_as_ones_own() {
    #[track_caller]
    fn check(ours: u64, other: Option<(&str, u64)>, errno: i32, expected: Option<&str>) {
        let text = story(&[], |now| {
            now.processes = [(Pid(100), fixture::process("nginx", ours, 64))].into();
            if let Some((comm, open)) = other {
                now.processes.insert(Pid(200), fixture::process(comm, open, 64));
            }
            let errors = [(("nginx".into(), Errno(errno.unsigned_abs())), 9)];
            let accept = Ok(Arc::new(errors.into()));
            now.errors = Ok(CallErrors { accept, connect: Err(Absent::NotOnThisKernel) });
        });
        let line = text.lines().find_map(|line| line.split_once("accept failed 9 times with "));
        let got = line.map(|(_, rest)| rest);
        assert_eq!(expected, got, "{ours} {other:?} {errno}: {text}");
    }
    const OWN: &str = "EMFILE (no descriptor left below its limit) in tasks named nginx.";
    check(64, None, libc::EMFILE, Some(OWN));
    check(6, None, libc::EMFILE, Some(OWN));
    check(6, Some(("redis", 64)), libc::EMFILE, Some(OWN));
    check(64, Some(("nginx", 64)), libc::EMFILE, Some(OWN));
    check(6, Some(("nginx", 64)), libc::EMFILE, None);
    let any = "EMFILE (no descriptor left below its limit) in tasks named nginx: of this process, or another \
               of that name.";
    check(6, Some(("nginx", 6)), libc::EMFILE, Some(any));
    let any = "ENFILE (no file left on this host) in tasks named nginx: of this process, or another of that \
               name.";
    check(6, Some(("nginx", 64)), libc::ENFILE, Some(any));
}

#[test]
fn a_fin_is_no_byte_that_somebody_has_not_read() {
    let unread = |unread_bytes, close_wait| {
        story(&[], |now| {
            let connections =
                Connections { unread_bytes, close_wait, accepted: 9, ..Connections::default() };
            now.listeners[0].connections = Ok(connections);
        })
    };
    assert!(!unread(5, 5).contains("has not read"), "{}", unread(5, 5));
    assert!(unread(9, 5).contains("has not read at least 4 bytes that came."), "{}", unread(9, 5));
    assert!(unread(9, 0).contains("has not read 9 bytes that came."), "{}", unread(9, 0));
}

#[test]
fn connections_that_are_not_closed_are_something_to_look_at() {
    let todo = |close_wait, accepted| {
        let text = story(&[], |now| {
            let connections = Connections { close_wait, accepted, ..Connections::default() };
            now.listeners[0].connections = Ok(connections);
        });
        text.rsplit_once("todo\n").expect("it is the last").1.trim().to_owned()
    };
    let look = "ss -tnpo state close-wait sport = :80 # if it stays so, find why the program does not close what \
                its peers have closed";
    assert_eq!(look, todo(300, 310));
    assert_eq!("Nothing.", todo(300, 700));
    assert_eq!("Nothing.", todo(5, 5));
}

#[test]
fn how_to_raise_a_limit_is_told_once() {
    let capped = |now: &mut Snapshot| {
        now.namespaces[0].sysctls = Arc::new([("somaxconn", 128)].into());
        now.listeners[0].counters.drops_by.accept_queue_full_syn = Ok(137);
    };
    let finding = "# LimitCappedBySomaxconn: ";
    assert!(story(&[], capped).contains(finding));
    let mut now = fixture::snapshot(vec![fixture::listener(80)]);
    capped(&mut now);
    let seen = "137 overflows in 300 s";
    let mut judged = judged(now, &[("AcceptQueueOverflow", Severity::Warning, 0, seen)]);
    let alert = Arc::make_mut(&mut judged.verdicts).alerts.first_mut().expect("there is one");
    let mend = format!("sysctl -w net.core.somaxconn=8192 # {RESTART}");
    let alert = Arc::make_mut(alert);
    alert.latest = Arc::new(Evidence { mend: mend.clone(), ..(*alert.latest).clone() });
    let (now, findings) = (&judged.snapshot, audit(&judged.snapshot, &judged.verdicts));
    let listener = &now.listeners[0];
    let alerts = alerts_of(listener, &judged.verdicts);
    let sections = tell(listener, now, &alerts, &findings_of(listener, &findings));
    assert_eq!(Some(&vec![mend]), sections.last().map(|it| &it.lines));
}

#[test]
fn whose_accept_cannot_succeed_is_told_with_what_is_missing() {
    insta::assert_snapshot!(story(&[STALLED], |now| {
        stalled(now);
        found(now, 100, &[(ThreadState::Running, None, "0", 1)]);
        now.processes.insert(Pid(100), fixture::process("nginx", 64, 64));
    }));
}

/// What the detection says of it.
const STALLED: Fires<'_> = (
    "ListenerStalled",
    Severity::Critical,
    0,
    "pid 100: 512 of 511 places taken, nobody has accepted for 75 s",
);

/// The same, and nobody has accepted for 75 s.
fn stalled(now: &mut Snapshot) {
    busy(now);
    let it = &mut now.listeners[0];
    (it.members[0].length, it.length, it.length_max) = (512, 512, Ok(512));
    (it.stalled, it.members[0].stalled) = (Ok(true), Ok(true));
    (it.since_accept, it.members[0].waiting) = (Ok(seconds(75)), Ok(seconds(75)));
    it.rates = Rates { established: Ok(0.0), accepted: Ok(0.0), drops: Ok(2.5) };
    it.counters.drops = Ok(61);
    it.counters.full = seconds(70);
    it.counters.drops_by.accept_queue_full_syn = Ok(61);
    it.syn_queue = Ok(1);
}

/// What somebody who looked found that the threads of a process do.
fn found(now: &mut Snapshot, pid: u32, groups: &[(ThreadState, Option<Call>, &str, u64)]) {
    let groups = groups.iter().map(|&(state, call, wchan, count)| ThreadGroup {
        state,
        wchan: Some(wchan.into()),
        call,
        count,
    });
    let groups: Vec<ThreadGroup> = groups.collect();
    let total = groups.iter().map(|it| it.count).sum();
    let threads =
        Threads { at: now.at, total, looked_at: total, traced: false, frozen: Some(false), groups };
    Arc::make_mut(&mut now.threads).insert(Pid(pid), Ok(threads));
}

#[test]
fn a_queue_that_nobody_serves_where_nobody_has_looked() {
    insta::assert_snapshot!(story(&[STALLED], stalled));
}

#[test]
fn a_queue_whose_owner_is_stopped() {
    insta::assert_snapshot!(story(&[STALLED], |now| {
        stalled(now);
        found(now, 100, &[(ThreadState::Stopped, None, "do_signal_stop", 4)]);
    }));
}

#[test]
fn a_queue_whose_owner_has_all_its_threads_at_work() {
    insta::assert_snapshot!(story(&[STALLED], |now| {
        stalled(now);
        let pool = (ThreadState::Sleeping, Some(Call::Futex), "futex_wait_queue", 32);
        let one = (ThreadState::Sleeping, Some(Call::Read), "wait_woken", 1);
        found(now, 100, &[pool, one]);
    }));
}

/// A sentence that is told once in an alert is not told again.
#[test]
fn no_sentence_is_twice_in_a_story() {
    let stop = |now: &mut Snapshot| {
        stalled(now);
        found(now, 100, &[(ThreadState::Stopped, None, "do_signal_stop", 4)]);
    };
    for text in [story(&[STALLED], stop), story(&[], stop), story(&[STALLED], stalled)] {
        for once in ["is stopped by a signal", "kernel completes handshakes", "kill -CONT 100"] {
            assert!(text.matches(once).count() <= 1, "{once}: {text}");
        }
    }
}

#[test]
fn bursts_that_somaxconn_cuts_with_cookies_among_them() {
    let seen = "137 overflows in 300 s; 0 of 128 places taken now, full for 2 s";
    let fires = [("AcceptQueueOverflow", Severity::Warning, 0, seen)];
    insta::assert_snapshot!(story(&fires, |now| {
        now.namespaces[0].sysctls = Arc::new([("somaxconn", 128), ("tcp_syncookies", 1)].into());
        let it = &mut now.listeners[0];
        it.length_max = Ok(129);
        it.accept_wait = Ok(waits(&[300_000, 2_000_000]));
        it.since_accept = Ok(seconds(2));
        it.counters = Counters {
            drops: Ok(138),
            drops_by: DropsBy {
                accept_queue_full_syn: Ok(120),
                accept_queue_full_ack: Ok(17),
                syn_queue_full: Ok(0),
                other: Ok(1),
                unspecified: Err(Absent::NotOnThisKernel),
            },
            syncookies: Ok(12),
            established: Ok(5_000),
            accepted: Ok(5_000),
            ..it.counters
        };
    }));
}

#[test]
fn a_program_without_a_descriptor_left() {
    let seen = "9120 accepts failed with EMFILE in 5 s";
    let fires = [("AcceptErrors", Severity::Critical, 0, seen)];
    insta::assert_snapshot!(story(&fires, |now| {
        let epoll = (ThreadState::Sleeping, Some(Call::EpollWait), "ep_poll", 1);
        found(now, 100, &[epoll]);
        let it = &mut now.listeners[0];
        (it.members[0].length, it.length) = (20, 20);
        (it.stalled, it.members[0].stalled) = (Ok(true), Ok(true));
        it.length_max = Ok(20);
        (it.since_accept, it.members[0].waiting) = (Ok(seconds(9)), Ok(seconds(9)));
        (it.counters.established, it.counters.accepted) = (Ok(78), Ok(58));
        it.open = Ok(58);
        it.connections = Ok(Connections {
            accepted: 58,
            close_wait: 50,
            unread_bytes: 50,
            ..Connections::default()
        });
        now.processes = [(Pid(100), fixture::process("nginx", 64, 64))].into();
        let errors = [(("nginx".into(), Errno(24)), 9_120), (("nginx".into(), Errno::AGAIN), 3)];
        let accept = Ok(Arc::new(errors.into()));
        now.errors = Ok(CallErrors { accept, connect: Err(Absent::NotOnThisKernel) });
    }));
}

#[test]
fn a_listener_that_is_gone() {
    insta::assert_snapshot!(story(&[], |now| {
        let it = &mut now.listeners[0];
        it.members.clear();
        it.owners = Arc::default();
        it.workload = Arc::new(Workload {
            namespace: Some("shop".into()),
            pod: Some("web-0".into()),
            container: Some("nginx".into()),
            ..Workload::default()
        });
        it.limit = 0;
        it.counters.aborted_listener_closed = Ok(4);
        it.open = Ok(3);
        it.counters.established = Ok(104);
        it.counters.accepted = Ok(100);
        it.rates = Rates { established: Ok(0.0), accepted: Ok(0.0), drops: Ok(0.0) };
    }));
}

/// Of eight workers the sixth is stuck; `holders`: with a socket each, or all with all.
fn group(now: &mut Snapshot, holders: bool) {
    let it = &mut now.listeners[0];
    let member = it.members[0];
    let pid = |n: u32| Some(Pid(if holders { 100 + n } else { 100 }));
    let each = |n| Member { inode: Inode(800 + u64::from(n)), pid: pid(n), ..member };
    it.members = (0..8).map(each).collect();
    let stuck = &mut it.members[5];
    (stuck.length, stuck.stalled, stuck.waiting) = (129, Ok(true), Ok(seconds(75)));
    it.members[2].length = 1;
    it.owners = (100..108).map(Pid).collect();
    (it.length, it.limit, it.stalled) = (130, 1_024, Ok(true));
    it.length_max = Ok(131);
    it.since_accept = Ok(Nanos(3_000_000));
    it.rates = Rates { established: Ok(70.0), accepted: Ok(69.0), drops: Ok(3.0) };
    it.counters.established = Ok(9_000);
    it.counters.accepted = Ok(8_870);
    it.counters.drops = Ok(33);
    it.counters.drops_by.accept_queue_full_syn = Ok(33);
}

#[test]
fn a_group_with_a_member_that_is_stuck() {
    let seen = "member 6 (pid 105, inode 805) of 8: 129 of 128 places taken, nobody has accepted for \
                75 s; the other 7 accept";
    insta::assert_snapshot!(story(&[("ListenerStalled", Severity::Critical, 0, seen)], |now| {
        group(now, true);
        let lock = (ThreadState::Sleeping, Some(Call::Futex), "futex_wait_queue", 1);
        found(now, 105, &[lock]);
    }));
}

#[test]
fn a_group_whose_sockets_all_its_workers_hold() {
    insta::assert_snapshot!(story(&[], |now| group(now, false)));
}

/// Listen drops without a reason, and what the kernel counted in the namespace.
#[test]
fn where_all_drops_of_a_namespace_are_overflows_the_story_says_so() {
    #[track_caller]
    fn check(told: u64, rest: u64, [drops, overflows]: [u64; 2], expected: &str) {
        let text = story(&[], |now| {
            let netstat = [("ListenDrops", drops), ("ListenOverflows", overflows)];
            now.namespaces[0].netstat = Ok(Arc::new(netstat.into()));
            let counters = &mut now.listeners[0].counters;
            counters.drops = Ok(told + rest);
            counters.drops_by.accept_queue_full_syn = Ok(told);
            counters.drops_by.unspecified = Ok(rest);
        });
        assert!(text.contains(&format!("\n  {expected}")), "{expected}: {text}");
    }
    let counts = "as the kernel's counters of the network namespace have it.";
    let all = format!("All of them were overflows of the accept queue, {counts}");
    check(0, 1_226, [1_226, 1_226], &all);
    check(0, 1_226, [9_000, 9_000], &all);
    check(6, 1, [9, 9], &format!("The other was an overflow of the accept queue, {counts}"));
    let least = format!("at least 20 were overflows of the accept queue, {counts}");
    check(0, 30, [100, 90], &format!("Their reason is not told here; {least}"));
    check(6, 30, [100, 90], &format!("Of 30 the reason is not told here; {least}"));
    let guess = "Their reason is not told here; most often the accept queue was full.";
    check(0, 30, [100, 70], guess);
    check(0, 30, [100, 0], guess);
    // counters that say less than there was
    check(0, 30, [0, 0], guess);
}

#[test]
fn a_listener_that_is_gone_and_belongs_to_a_unit() {
    let todo = |unit: Option<&str>| {
        let text = story(&[], |now| {
            let it = &mut now.listeners[0];
            it.members.clear();
            it.open = Ok(1);
            it.comm = Some("python3".into());
            it.workload = Arc::new(Workload { unit: unit.map(Arc::from), ..Workload::default() });
        });
        text.rsplit_once("todo\n").expect("it is the last").1.to_owned()
    };
    let open = "  ss -tanp sport = :80 # who holds the 1 connection that is still open\n";
    let start = format!("{open}  # if clients should reach it, start python3 again\n");
    assert_eq!(start, todo(None));
    let status = "systemctl status 'a\\x2db.service' # if clients should reach it: why python3 does not listen";
    assert_eq!(format!("{open}  {status}\n"), todo(Some("a\\x2db.service")));
}

#[test]
fn without_ebpf_the_story_says_what_is_not_known() {
    insta::assert_snapshot!(story(&[], |now| {
        let it = &mut now.listeners[0];
        let no = Err(Absent::NoEbpf);
        (it.comm, it.owners) = (None, Arc::default());
        (it.members[0].length, it.length, it.length_max) = (7, 7, no);
        it.counters = Counters {
            established: no,
            accepted: no,
            syns: no,
            syncookies: no,
            drops: Ok(5),
            drops_by: DropsBy {
                accept_queue_full_syn: no,
                accept_queue_full_ack: no,
                syn_queue_full: no,
                other: no,
                unspecified: Ok(5),
            },
            ..it.counters
        };
        it.accept_wait = Err(Absent::NoEbpf);
        it.rates = Rates {
            established: Err(Absent::NoEbpf),
            accepted: Err(Absent::NoEbpf),
            drops: Ok(0.5),
        };
        (it.open, it.stalled, it.syn_queue) = (no, Err(Absent::NoEbpf), no);
    }));
}
