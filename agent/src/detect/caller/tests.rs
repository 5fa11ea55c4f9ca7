//! Detections of this kind, by what they tell.

use std::sync::Arc;

use crate::{
    detect::{
        fixture::{World, find, process},
        phase::{Change, Lost},
    },
    id::Pid,
    input::{Absent, CloserLooks, FdKinds},
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
        "ls -l /proc/100/fd; prlimit --pid 100 --nofile=65536: (=65536:65536 where its hard limit is lower)",
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
