//! Without eBPF: the same gauges and drops, and nothing that cannot be known.

use std::{env, fs, os::unix::fs::PermissionsExt as _, process::Command};

use backlogd::input::Absent;

use crate::{
    agent::{Agent, find},
    namespace::{hide_btf, in_own_netns},
    overflow::check_full_queue,
};

#[track_caller]
fn check(agent: &mut Agent) {
    let (server, clients) = check_full_queue(agent);
    let snapshot = agent.look();
    let listener = find(&snapshot, server.addr);
    let counters = listener.counters;
    let unknown = [
        counters.established,
        counters.accepted,
        counters.closed,
        counters.aborted_listener_closed,
        counters.aborted_reset,
        listener.open,
    ];
    assert_eq!(unknown, [Err(Absent::NoEbpf); 6]);
    assert_eq!(snapshot.agent.slots, Err(Absent::NoEbpf));
    drop(clients);
}

#[test]
#[ignore = "kernel: needs root"]
fn without_ebpf_gauges_and_drops_are_the_same_and_the_rest_is_absent() {
    in_own_netns(|| check(&mut Agent::sampled()));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_kernel_that_does_not_describe_its_structures_gives_the_same_as_without_ebpf() {
    in_own_netns(|| {
        hide_btf();
        check(&mut Agent::refused());
    });
}

/// Set for the process that has no privilege.
const UNPRIVILEGED: &str = "BACKLOGD_TEST_UNPRIVILEGED";

#[test]
#[ignore = "kernel: needs root"]
fn an_unprivileged_user_gets_the_same_as_without_ebpf() {
    if env::var_os(UNPRIVILEGED).is_some() {
        // asks for eBPF, and is refused by the kernel
        return check(&mut Agent::refused());
    }
    in_own_netns(|| {
        // the build directory may be closed to others
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let copy = dir.path().join("kernel");
        fs::copy(env::current_exe().expect("this test"), &copy).expect("copy");
        let status = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
            .arg(&copy)
            .args(["--exact", "sampled::an_unprivileged_user_gets_the_same_as_without_ebpf"])
            .args(["--ignored", "--test-threads=1", "--nocapture"])
            .env(UNPRIVILEGED, "1")
            .status();
        assert!(status.expect("setpriv").success());
    });
}
