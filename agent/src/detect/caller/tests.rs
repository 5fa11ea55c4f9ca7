//! Detections of this kind, by what they tell.

use std::sync::Arc;

use crate::{
    detect::{
        fixture::{World, find, listener, process},
        phase::{Change, Lost, Severity},
    },
    id::Pid,
    input::{Absent, CloserLooks, FdKinds},
    threads::{ThreadGroup, ThreadState, Threads},
};

fn at_its_limit(world: &mut World) {
    let mut nginx = process("nginx", 1_024, 1_024);
    nginx.now.fd_kinds = Some(FdKinds { sockets: 900, files: 124, ..FdKinds::default() });
    world.now.processes.insert(Pid(100), nginx);
}

#[test]
fn an_accept_loop_without_descriptors_is_told_within_five_seconds_and_clears_by_itself() {
    let mut world = World::new();
    at_its_limit(&mut world);
    world.listener().length = 5;
    // the first errors come right after a look
    world.check(3, &[], |world| world.fail("accept", "nginx", libc::EMFILE, 5_000));
    let told = world.check(1, &["AcceptErrors"], |world| {
        world.fail("accept", "nginx", libc::EMFILE, 5_000);
        world.listener().stalled = Ok(true);
    });
    let alert = find(&told, "AcceptErrors");
    let evidence = &alert.latest;
    assert_eq!(
        "EMFILE from accept: 15000 in 3 s, 5000 each second, a busy loop; \
         5 of 128 places taken at 0.0.0.0:80",
        evidence.seen
    );
    assert_eq!(
        Some("1024 of 1024 descriptors of pid 100 are open; 900 are sockets"),
        evidence.cause.as_deref()
    );
    assert_eq!(
        "ls -l /proc/100/fd; prlimit --pid 100 --nofile=65536: || prlimit --pid 100 --nofile=65536:65536",
        evidence.mend
    );
    assert_eq!([Pid(100)], *alert.subject.pids);
    // a stall and a full process are the same thing
    assert_eq!(Some("AcceptErrors"), find(&told, "ListenerStalled").inhibited_by);
    assert_eq!(Some("AcceptErrors"), find(&told, "ProcessFdsNearLimit").inhibited_by);
    let open = |world: &mut World| {
        world.listener().stalled = Ok(false);
        world.now.processes.insert(Pid(100), process("nginx", 10, 1_024));
    };
    world.check(33, &["AcceptErrors"], open);
    world.check(2, &[], open);
}

#[test]
fn another_process_of_the_same_name_is_not_the_one_without_descriptors() {
    let mut world = World::new();
    world.now.processes.insert(Pid(200), process("nginx", 1_024, 1_024));
    let told = world.run(6, |world| {
        world.fail("accept", "nginx", libc::EMFILE, 50);
        world.listener().stalled = Ok(true);
    });
    let errors = find(&told, "AcceptErrors");
    assert_eq!([Pid(200)], *errors.subject.pids);
    assert!(!errors.latest.seen.contains("0.0.0.0:80"), "{errors:?}");
    assert_eq!(None, find(&told, "ListenerStalled").inhibited_by);
}

/// Another process named nginx, with a listener of its own.
fn neighbour(world: &mut World, pid: u32, port: u16, (open, max): (u64, u64)) {
    world.now.processes.insert(Pid(pid), process("nginx", open, max));
    let mut it = listener(port);
    it.owners = Arc::new([Pid(pid)]);
    it.members[0].pid = Some(Pid(pid));
    world.now.listeners.push(it);
}

fn fails(world: &mut World) {
    world.fail("accept", "nginx", libc::EMFILE, 5_000);
}

fn stall(world: &mut World, port: u16, length: u64) {
    let it = world.now.listeners.iter_mut().find(|it| it.key.port == port).expect("there");
    (it.length, it.stalled, it.members[0].stalled) = (length, Ok(true), Ok(true));
}

#[test]
fn all_processes_of_that_name_without_descriptors_are_named_the_likeliest_first() {
    let mut world = World::new();
    world.now.processes.insert(Pid(100), process("nginx", 1_024, 1_024));
    for (pid, port) in [(200, 82), (300, 83), (400, 84), (500, 85)] {
        neighbour(&mut world, pid, port, (64, 64));
    }
    neighbour(&mut world, 600, 86, (6, 64));
    let found = |state| {
        let group = ThreadGroup { state, wchan: None, call: None, count: 1 };
        let groups = vec![group];
        let at = crate::time::Monotonic(1);
        Ok(Threads { at, total: 1, looked_at: 1, traced: false, frozen: Some(false), groups })
    };
    let threads =
        [(Pid(300), found(ThreadState::Running)), (Pid(500), found(ThreadState::Stopped))];
    world.now.threads = Arc::new(threads.into());
    let told = world.check(6, &["AcceptErrors"], |world| {
        fails(world);
        for (port, length) in [(80, 1), (83, 2), (84, 3), (85, 9)] {
            stall(world, port, length);
        }
    });
    let alert = find(&told, "AcceptErrors");
    assert_eq!([100, 200, 300, 400, 500].map(Pid), *alert.subject.pids);
    let evidence = &alert.latest;
    assert_eq!(
        Some(
            "64 of 64 descriptors of pid 300 (0.0.0.0:83) are open; 64 of 64 of pid 400 (0.0.0.0:84); 1024 of \
             1024 of pid 100 (0.0.0.0:80); and 2 more processes are full"
        ),
        evidence.cause.as_deref()
    );
    for pid in [300, 400, 100] {
        let mend = format!("ls -l /proc/{pid}/fd; prlimit --pid {pid} --nofile=65536: ");
        assert!(evidence.mend.contains(&mend), "{evidence:?}");
    }
    let seen = "; 1 of 128 places taken at 0.0.0.0:80; 2 of 128 places taken at 0.0.0.0:83; 3 of 128 places \
                taken at 0.0.0.0:84; 9 of 128 places taken at 0.0.0.0:85";
    assert!(evidence.seen.ends_with(seen), "{evidence:?}");
    assert_eq!(Some(&("length", 15.0)), evidence.values.iter().find(|it| it.0 == "length"));
}

#[test]
fn while_descriptors_are_closed_others_of_that_name_are_not_taken_for_the_cause() {
    let mut world = World::new();
    at_its_limit(&mut world);
    neighbour(&mut world, 200, 81, (6, 64));
    world.check(6, &["AcceptErrors"], fails);
    let told = world.check(10, &["AcceptErrors", "ListenerStalled"], |world| {
        world.now.processes.insert(Pid(100), process("nginx", 10, 1_024));
        stall(world, 81, 3);
    });
    assert_eq!([Pid(100)], *find(&told, "AcceptErrors").subject.pids);
    assert_eq!([Pid(200)], *find(&told, "ListenerStalled").subject.pids);
}

#[test]
fn a_listener_that_is_gone_is_not_the_one_of_another_process_of_that_name() {
    let mut world = World::new();
    world.now.processes.insert(Pid(200), process("nginx", 64, 64));
    world.check(6, &["ListenerStalled"], |world| stall(world, 80, 3));
    world.check(4, &["AcceptErrors", "ListenerStalled"], fails);
    let gone = |world: &mut World| {
        fails(world);
        world.now.processes.remove(&Pid(100));
        let it = world.listener();
        it.members.clear();
        (it.owners, it.length, it.stalled) = (Arc::default(), 0, Ok(false));
    };
    let told = world.check(4, &["AcceptErrors", "ListenerStalled"], gone);
    assert_eq!([Pid(100)], *find(&told, "ListenerStalled").subject.pids);
    let over = world.check(2, &["AcceptErrors"], gone);
    let ends: Vec<_> = over.changes.iter().map(|(change, it)| (*change, it.about.name)).collect();
    assert_eq!(vec![(Change::Cleared, "ListenerStalled")], ends);
}

#[test]
fn where_no_hook_sees_accept_fail_the_stall_alone_is_told_with_its_cause() {
    let mut world = World::new();
    at_its_limit(&mut world);
    let blind = |world: &mut World| {
        world.now.errors.as_mut().expect("there").accept = Err(Absent::NotOnThisKernel);
        stall(world, 80, 5);
    };
    let told = world.check(200, &["ListenerStalled"], blind);
    let alert = find(&told, "ListenerStalled");
    assert_eq!(Severity::Critical, alert.severity);
    assert_eq!(
        Some("pid 100 has no descriptor left for accept: 1024 of 1024 are open"),
        alert.latest.cause.as_deref()
    );
    assert_eq!(Some("ListenerStalled"), find(&told, "ProcessFdsNearLimit").inhibited_by);
    // at once, and for that reason alone
    let mut world = World::new();
    at_its_limit(&mut world);
    let told = world.check(1, &["ListenerStalled"], blind);
    assert_eq!(Severity::Critical, find(&told, "ListenerStalled").severity);
    let mut world = World::new();
    let told = world.check(1, &["ListenerStalled"], blind);
    assert_eq!(Severity::Warning, find(&told, "ListenerStalled").severity);
}

#[test]
fn a_stall_that_is_no_more_than_a_warning_does_not_hide_that_descriptors_run_out() {
    let mut world = World::new();
    world.now.processes.insert(Pid(100), process("nginx", 1_000, 1_024));
    world.check(150, &["ProcessFdsNearLimit"], |_| {});
    world.check(5, &["ProcessFdsNearLimit", "ListenerStalled"], |world| stall(world, 80, 3));
}

#[test]
fn what_is_seen_for_some_seconds_of_a_minute_alone_holds_while_nobody_accepts() {
    let mut world = World::new();
    at_its_limit(&mut world);
    let look = |is_on| Ok(CloserLooks { count: 1, is_on });
    world.run(5, |world| {
        world.listener().length = 5;
        world.listener().stalled = Ok(true);
        world.now.agent.closer_looks = look(true);
        world.fail("accept", "nginx", libc::EMFILE, 50);
    });
    world.check(120, &["AcceptErrors"], |world| world.now.agent.closer_looks = look(false));
    world.check(60, &["AcceptErrors"], |world| world.listener().stalled = Ok(false));
    // what it said better is told from then on
    let verdicts = world.check(1, &["ProcessFdsNearLimit"], |_| {});
    let lost = Change::Lost(Lost::Unknown(Absent::TooEarly));
    assert!(verdicts.changes.iter().any(|it| it.0 == lost && it.1.about.name == "AcceptErrors"));
    // quiet for want of a look is not fine
    assert!(verdicts.unknown.iter().any(|it| it.alert == "AcceptErrors"));
}

#[test]
fn a_loop_that_waits_a_second_after_an_error_is_told_as_well() {
    let mut world = World::new();
    world.check(3, &[], |world| world.fail("accept", "worker-1", libc::ENFILE, 1));
    let told = world.check(2, &["AcceptErrors"], |world| {
        world.fail("accept", "worker-1", libc::ENFILE, 1);
    });
    let evidence = &find(&told, "AcceptErrors").latest;
    assert_eq!("ENFILE from accept: 4 in 4 s, 1 each second", evidence.seen);
    assert_eq!(Some("1000 of 1000000 files of this host are open"), evidence.cause.as_deref());
}

#[test]
fn what_is_no_fault_or_a_single_burst_is_quiet() {
    #[track_caller]
    fn check(name: &str, errors: &[i32], seconds: u64) {
        let mut world = World::new();
        world.check(seconds, &[], |world| {
            errors.iter().for_each(|&errno| world.fail("accept", "nginx", errno, 100));
        });
        let verdicts = world.check(10, &[], |_| {});
        assert!(verdicts.unknown.iter().all(|it| it.alert != "AcceptErrors"), "{name}");
    }
    let harmless = [libc::EAGAIN, libc::EINTR, libc::ECONNABORTED, libc::EINVAL, libc::EPERM];
    check("harmless", &harmless, 120);
    check("burst", &[libc::EMFILE], 2);
}

#[test]
fn a_thread_with_a_name_of_its_own_is_that_of_the_full_process() {
    let mut world = World::new();
    at_its_limit(&mut world);
    let told = world.run(5, |world| world.fail("accept", "tokio-worker", libc::EMFILE, 10));
    let alert = find(&told, "AcceptErrors");
    assert_eq!(
        ("tokio-worker", [Pid(100)].as_slice()),
        (&*alert.subject.name, &*alert.subject.pids)
    );
}

#[test]
fn without_a_hook_it_is_unknown() {
    let mut world = World::new();
    let verdicts = world.check(1, &[], |world| {
        world.now.errors.as_mut().expect("there").accept = Err(Absent::NotOnThisKernel);
    });
    let unknown = |name: &str| verdicts.unknown.iter().find(|it| it.alert == name);
    assert_eq!(Some(Absent::NotOnThisKernel), unknown("AcceptErrors").map(|it| it.why));
    assert_eq!(None, unknown("ConnectAddressesExhausted"));
    let verdicts = world.check(1, &[], |world| world.now.errors = Err(Absent::NoEbpf));
    assert!(verdicts.unknown.iter().any(|it| it.alert == "ConnectAddressesExhausted"));
}

fn refused(world: &mut World) {
    world.fail("connect", "curl", libc::EADDRNOTAVAIL, 200);
}

#[test]
fn exhausted_ports_are_told_with_the_destination() {
    let mut world = World::new();
    Arc::make_mut(&mut world.now.namespaces[0].sysctls).insert("tcp_tw_reuse", 2);
    let told = world.check(20, &["ConnectAddressesExhausted"], |world| {
        refused(world);
        world.read_table(12, 28_220, 28_232);
    });
    let evidence = &find(&told, "ConnectAddressesExhausted").latest;
    assert!(
        evidence.seen.ends_with(
            "28232 of 28232 local ports of 192.0.2.9 are in use towards 192.0.2.1:443: \
             28220 in TIME_WAIT, 12 open"
        ),
        "{evidence:?}"
    );
    assert_eq!("sysctl -w net.ipv4.tcp_tw_reuse=1", evidence.mend);
    let cause = evidence.cause.as_deref().unwrap_or_default();
    assert!(cause.ends_with("net.ipv4.tcp_tw_reuse is 2"), "{cause}");
    // said better than by these
    let by = |name| find(&told, name).inhibited_by;
    assert_eq!(Some("ConnectAddressesExhausted"), by("EphemeralPortsNearLimit"));
    world.check(300, &[], |world| world.read_table(12, 0, 28_232));
}

#[test]
fn addresses_that_are_not_there_are_no_exhausted_ports() {
    let mut world = World::new();
    let verdicts = world.check(60, &[], refused);
    assert!(verdicts.unknown.iter().any(|it| it.alert == "ConnectAddressesExhausted"));
    let verdicts = world.check(60, &[], |world| {
        refused(world);
        world.read_table(100, 10, 28_232);
    });
    assert!(verdicts.unknown.iter().all(|it| it.alert != "ConnectAddressesExhausted"));
}
