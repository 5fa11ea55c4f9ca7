//! What queues and handshakes show.

use super::*;
use crate::{
    detect::fixture::add,
    id::Pid,
    threads::{ThreadGroup, ThreadState, Threads},
};

#[test]
fn accept_that_is_slow_for_minutes_is_told_and_a_pause_is_not() {
    let mut world = World::new();
    world.check(10 * 60, &[], |world| accept_after(world, 0.01, 5));
    // a pause of three seconds in each minute
    let paused = |world: &mut World| {
        let wait = if second(world) % 60 < 3 { 2.0 } else { 0.01 };
        accept_after(world, wait, 5);
    };
    world.check(30 * 60, &[], paused);
    // a minute that is slow as a whole
    world.check(60, &[], |world| accept_after(world, 2.0, 5));
    world.check(10 * 60, &[], |world| accept_after(world, 0.01, 5));
    let told = world.check(5 * 60, &["SlowAccept"], |world| accept_after(world, 2.0, 5));
    let seen = &find(&told, "SlowAccept").at_raise.seen;
    assert!(seen.contains("longer than 0.5 s for accept in 5 min; 0 of 128 places"), "{seen}");
    world.check(12 * 60, &[], |world| accept_after(world, 0.01, 5));
    let unknown = world.run(1, |world| world.listener().accept_wait = Err(Absent::NotOnThisKernel));
    check_unknown(&unknown, "SlowAccept", Some(Absent::NotOnThisKernel));
}

#[test]
fn few_accepts_say_nothing() {
    let mut world = World::new();
    world.check(30 * 60, &[], |world| {
        if second(world).is_multiple_of(20) {
            accept_after(world, 9.0, 1);
        }
    });
}

fn overflow(world: &mut World, n: u64) {
    add(&mut world.listener().counters.drops_by.accept_queue_full_syn, n);
    add(&mut world.listener().counters.syns, n);
}

#[test]
fn a_single_drop_counts_where_syns_are_rare() {
    let mut world = World::new();
    world.check(10, &[], |world| {
        if second(world) == 40 {
            overflow(world, 1);
        }
    });
    // once there is a whole window
    world.check(280, &["AcceptQueueOverflow"], |_| {});
    let mut world = World::new();
    let busy = |world: &mut World| add(&mut world.listener().counters.syns, 5);
    world.check(400, &[], busy);
    world.check(1, &[], |world| overflow(world, 9));
    world.check(20 * 60, &[], busy);
}

#[test]
fn overflow_says_what_the_waits_and_the_limits_say() {
    #[track_caller]
    fn check(wait: f64, somaxconn: i64, cause: &str, mend: &str) {
        let mut world = World::new();
        sysctl(&mut world, "somaxconn", somaxconn);
        world.check(5 * 60, &[], |world| {
            accept_after(world, wait, if wait < 0.5 { 2 } else { 1 });
            add(&mut world.listener().counters.syns, 2);
        });
        let told = world.check(1, &["AcceptQueueOverflow"], |world| overflow(world, 300));
        let seen = "300 overflows in 300 s; 0 of 128 places taken now, full for 0 s";
        let got = &find(&told, "AcceptQueueOverflow").latest;
        assert_eq!(seen.split(" in ").next(), got.seen.split(" in ").next());
        assert_eq!((Some(cause), mend), (got.cause.as_deref(), &*got.mend));
        assert_eq!(Severity::Critical, find(&told, "AcceptQueueOverflow").severity);
    }
    check(
        0.01,
        128,
        "accept is fast, and bursts are larger than the queue: the limit of 128 is capped by \
         net.core.somaxconn = 128",
        "sysctl -w net.core.somaxconn=4096 # then restart the program: the limit is latched at \
         listen(2)",
    );
    check(
        0.01,
        4096,
        "accept is fast, and bursts are larger than the queue: the limit of 128 is the program's own: \
         net.core.somaxconn = 4096 allows more",
        "# raise `backlog=` of `listen`, 511 by default, to 1024, then restart the program: the limit is \
         latched at listen(2)",
    );
    check(
        0.4,
        128,
        "accept is too slow: a longer queue only turns drops into waiting",
        "# let the program accept faster: more workers or threads, or less work from one accept to the next",
    );
}

#[test]
fn without_a_hook_for_syns_the_share_is_of_those_that_are_known_to_have_come() {
    #[track_caller]
    fn check(established: u64, drops: u64, expected: Severity) {
        let mut world = World::new();
        sysctl(&mut world, "somaxconn", 4096);
        world.listener().counters.syns = Err(Absent::NotOnThisKernel);
        world.check(5 * 60, &[], |world| accept_after(world, 0.01, established));
        let told = world.check(1, &["AcceptQueueOverflow"], |world| {
            add(&mut world.listener().counters.drops_by.accept_queue_full_syn, drops);
        });
        assert_eq!(expected, find(&told, "AcceptQueueOverflow").severity, "{drops}");
    }
    check(10, 25, Severity::Warning);
    check(10, 40, Severity::Critical);
    check(0, 10, Severity::Critical);
}

#[test]
fn overflow_says_what_mends_it_also_where_few_accepts_tell_nothing() {
    let mut world = World::new();
    sysctl(&mut world, "somaxconn", 128);
    world.check(5, &[], |_| {});
    let told = world.check(1, &["AcceptQueueOverflow"], |world| {
        overflow(world, 30);
        world.listener().counters.full = Nanos(400_000_000);
    });
    check_text(
        &told,
        "AcceptQueueOverflow",
        "30 overflows in 40 s; 0 of 128 places taken now",
        Some(
            "the limit of 128 is capped by net.core.somaxconn = 128; whether accept is fast enough is not known",
        ),
        "sysctl -w net.core.somaxconn=4096 # if the program keeps up with accept, then restart the program: the \
         limit is latched at listen(2); else let the program accept faster: more workers or threads, or less \
         work from one accept to the next",
    );
    let told = world.check(1, &["AcceptQueueOverflow"], |world| {
        world.listener().counters.full = Nanos(2_400_000_000);
    });
    let seen = &find(&told, "AcceptQueueOverflow").latest.seen;
    assert!(seen.ends_with("0 of 128 places taken now, full for 2 s"), "{seen}");
}

#[test]
fn a_burst_that_overflows_again_and_again_wants_a_larger_backlog() {
    let mut world = World::new();
    sysctl(&mut world, "somaxconn", 128);
    let bursts = |world: &mut World| {
        accept_after(world, 0.01, 2);
        add(&mut world.listener().counters.syns, 2);
        if second(world).is_multiple_of(1_200) {
            overflow(world, 40);
        }
    };
    // two in forty minutes
    let verdicts = world.run(2_500, bursts);
    assert!(verdicts.alerts.iter().all(|it| it.about.name != "ListenBacklogTooSmall"));
    let told = world.run(1_800, bursts);
    check_text(
        &told,
        "ListenBacklogTooSmall",
        "120 overflows in 3 of the last 15 spans of five minutes; accept is fast",
        Some("the limit of 128 is capped by net.core.somaxconn = 128"),
        "sysctl -w net.core.somaxconn=4096 # then restart the program: the limit is latched at listen(2)",
    );
    world.check(3 * 3_600, &[], |world| accept_after(world, 0.01, 2));
}

#[test]
fn a_queue_that_is_nearly_full_for_ten_minutes_is_told() {
    let fill = |length| move |world: &mut World| world.listener().length_max = Ok(length);
    let mut world = World::new();
    world.check(9 * 60, &[], fill(110));
    world.check(9 * 60, &[], fill(20));
    let told = world.check(11 * 60, &["AcceptQueueNearLimit"], fill(110));
    check_text(
        &told,
        "AcceptQueueNearLimit",
        "110 of 128 places were taken at the highest; fullest member now: 0 %",
        None,
        "backlogd explain 80",
    );
    world.check(20 * 60, &["AcceptQueueNearLimit"], fill(90));
    world.check(11 * 60, &[], fill(70));
    // a short queue is full by every burst
    world.listener().limit = 8;
    world.check(20 * 60, &[], fill(9));
    let unknown = world.run(1, |world| world.listener().length_max = Err(Absent::NoEbpf));
    check_unknown(&unknown, "AcceptQueueNearLimit", Some(Absent::NoEbpf));
}

#[test]
fn handshakes_without_an_accept_are_told() {
    let probe = |world: &mut World| {
        if second(world).is_multiple_of(30) {
            let counters = &mut world.listener().counters;
            add(&mut counters.established, 1);
            add(&mut counters.aborted_listener_closed, 1);
        }
    };
    let mut world = World::new();
    let told = world.check(6 * 60, &["NobodyAccepts"], probe);
    check_text(
        &told,
        "NobodyAccepts",
        "10 handshakes in 304 s and no accept; 0 connections wait",
        Some("10 were reset unaccepted: the program closed its listening socket"),
        "backlogd explain 80",
    );
    world.check(1, &[], |world| accept_after(world, 0.01, 1));
    // systemd starts the service when it likes
    let mut world = World::new();
    world.listener().owners = Arc::new([Pid(1)]);
    world.check(8 * 60, &[], probe);
    let unknown = world.run(1, |world| world.listener().counters.accepted = Err(Absent::NoSlot));
    check_unknown(&unknown, "NobodyAccepts", Some(Absent::NoSlot));
}

/// A group of which one member is stuck for `seconds`.
fn stall(world: &mut World, members: usize, seconds: u64) {
    let listener = world.listener();
    let one = Member { limit: 16, ..listener.members[0] };
    listener.members = (0..members)
        .map(|i| Member {
            pid: Some(Pid(100 + u32::try_from(i).expect("few"))),
            inode: crate::id::Inode(500 + i as u64),
            ..one
        })
        .collect();
    listener.owners = listener.members.iter().filter_map(|it| it.pid).collect();
    let stuck = members.min(3) - 1;
    listener.members[stuck].length = 17;
    listener.members[stuck].waiting = Ok(super::super::super::rule::seconds(seconds));
    listener.members[stuck].stalled = Ok(true);
    (listener.length, listener.stalled) = (17, Ok(true));
    listener.since_accept = Ok(Nanos(1));
}

fn look_at(world: &mut World, pid: u32, state: ThreadState) {
    let groups = vec![ThreadGroup { state, wchan: None, call: None, count: 1 }];
    let at = world.now.at;
    let threads = Threads { at, total: 1, looked_at: 1, traced: false, frozen: None, groups };
    Arc::make_mut(&mut world.now.threads).insert(Pid(pid), Ok(threads));
}

#[test]
fn the_stuck_member_of_a_group_is_named() {
    let mut world = World::new();
    let told = world.check(1, &["ListenerStalled"], |world| {
        stall(world, 8, 12);
        look_at(world, 102, ThreadState::Stopped);
    });
    check_text(
        &told,
        "ListenerStalled",
        "member 3 (pid 102, inode 502) of 8: 17 of 16 places taken, nobody has accepted for 12 s; the \
         other 7 accept",
        Some("pid 102 is stopped by a signal"),
        "kill -CONT 102",
    );
    assert_eq!(Severity::Warning, find(&told, "ListenerStalled").severity);
    let told = world.check(1, &["ListenerStalled"], |world| stall(world, 8, 61));
    assert_eq!(Severity::Critical, find(&told, "ListenerStalled").severity);
    world.check(10, &[], |world| world.listener().stalled = Ok(false));
}

#[test]
fn a_stall_is_told_by_what_is_known_of_it() {
    let mut world = World::new();
    let told = world.check(1, &["ListenerStalled"], |world| stall(world, 1, 4));
    check_text(
        &told,
        "ListenerStalled",
        "pid 100: 17 of 16 places taken, nobody has accepted for 4 s",
        None,
        "backlogd explain 80",
    );
    let told =
        world.check(1, &["ListenerStalled"], |world| look_at(world, 100, ThreadState::Traced));
    assert_eq!(Severity::Info, find(&told, "ListenerStalled").severity);
    // systemd alone: it has ninety seconds to start the service
    let mut world = World::new();
    let activate = |after| {
        move |world: &mut World| {
            stall(world, 1, after);
            world.listener().owners = Arc::new([Pid(1)]);
        }
    };
    world.check(1, &[], activate(89));
    world.check(1, &["ListenerStalled"], activate(90));
}

/// What SYNs do each second for a while, and what is told then.
#[track_caller]
fn check_syns(cookies: i64, seconds: u64, each: [u64; 5], expected: &[&str]) -> Verdicts {
    let mut world = World::new();
    sysctl(&mut world, "tcp_syncookies", cookies);
    sysctl(&mut world, "tcp_max_syn_backlog", 512);
    let [syns, established, cookies, refused, overflows] = each;
    world.check(seconds, expected, |world| {
        let counters = &mut world.listener().counters;
        add(&mut counters.syns, syns);
        add(&mut counters.syncookies, cookies);
        add(&mut counters.drops_by.syn_queue_full, refused);
        add(&mut counters.drops_by.accept_queue_full_syn, overflows);
        accept_after(world, 0.01, established);
    })
}

#[test]
fn a_flood_is_told_from_a_crowd() {
    let told = check_syns(1, 60, [1_000, 20, 900, 0, 0], &["SynFlood"]);
    check_text(
        &told,
        "SynFlood",
        "1000 SYNs/s, 900/s of them answered with a cookie, and 20 handshakes/s complete",
        Some("tcp_syncookies is on: clients are still served"),
        "ss -tan state syn-recv sport = :80",
    );
    let told = check_syns(0, 60, [1_000, 5, 0, 950, 0], &["SynFlood"]);
    check_text(
        &told,
        "SynFlood",
        "1000 SYNs/s, 950/s of them dropped for want of room, and 5 handshakes/s complete",
        Some("tcp_syncookies = 0: clients are refused with the rest"),
        "sysctl -w net.ipv4.tcp_syncookies=1",
    );
    // a crowd completes what it begins, or overflows the accept queue
    check_syns(1, 60, [1_000, 900, 900, 0, 0], &[]);
    check_syns(1, 60, [1_000, 200, 900, 0, 700], &["AcceptQueueOverflow"]);
    // too few, or too short
    check_syns(1, 60, [12, 1, 9, 0, 0], &[]);
    check_syns(1, 25, [1_000, 20, 900, 0, 0], &[]);
}

#[test]
fn a_syn_queue_that_overflows_is_told_where_no_cookies_are_sent() {
    let told = check_syns(0, 20, [10, 9, 0, 1, 0], &["SynQueueOverflow"]);
    check_text(
        &told,
        "SynQueueOverflow",
        "20 of 200 SYNs found no room in the SYN queue in 54 s; 0 in it now; 180 handshakes completed",
        Some(
            "tcp_syncookies = 0, and the queue holds no more than the accept-queue limit, 128, \
             tcp_max_syn_backlog = 512",
        ),
        "sysctl -w net.ipv4.tcp_syncookies=1",
    );
    check_syns(0, 9, [10, 9, 0, 1, 0], &[]);
    let mut world = World::new();
    let unknown = world.run(1, |world| {
        world.listener().counters.drops_by.syn_queue_full = Err(Absent::NotOnThisKernel);
    });
    check_unknown(&unknown, "SynQueueOverflow", Some(Absent::NotOnThisKernel));
    // cookies are sent, and known
    check_unknown(&unknown, "SynFlood", None);
    sysctl(&mut world, "tcp_syncookies", 0);
    check_unknown(&world.run(1, |_| {}), "SynFlood", Some(Absent::NotOnThisKernel));
}

#[test]
fn cookies_for_minutes_are_told_and_a_burst_is_not() {
    let told = check_syns(1, 200, [20, 19, 5, 0, 0], &["SynCookies"]);
    let cookies = find(&told, "SynCookies");
    assert_eq!(Severity::Info, cookies.severity);
    assert_eq!(
        Some("the limit of 128 is too small for these bursts"),
        cookies.latest.cause.as_deref()
    );
    check_syns(1, 70, [500, 450, 400, 0, 0], &[]);
    // each SYN is answered so
    check_syns(2, 600, [20, 19, 20, 0, 0], &[]);
    check_syns(1, 600, [20, 20, 0, 0, 0], &[]);
}
