use proptest::prelude::*;

use super::*;
use crate::error;

const STATUS_TEXT: &str = include_str!("../../../tests/fixtures/proc/status");
const MOUNTS_HYBRID: &str = include_str!("../../../tests/fixtures/proc/mounts");
const MOUNTS_V2: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n\
                         securityfs /sys/kernel/security securityfs rw 0 0\n\
                         tracefs /a\\040b tracefs rw 0 0\n";

#[test]
fn this_machine_has_a_name_and_privileges() {
    let machine = read();
    assert!(machine.kernel.unwrap().starts_with(|c: char| c.is_ascii_digit()));
    let Privileges { effective, bounding, .. } = machine.privileges.unwrap();
    assert_eq!(effective.0 & !bounding.0, 0, "{effective:?} {bounding:?}");
    assert!(machine.cgroup.is_ok() && machine.tracefs.is_ok() && machine.kprobes.is_ok());
}

#[test]
fn privileges_are_three_lines_of_the_status() {
    #[track_caller]
    fn check(text: &str, expected: Result<(u64, u64, bool), &str>) {
        let got = parse_status(text).map_err(|err| error::chain(&err));
        let expected = expected.map_err(str::to_owned);
        assert_eq!(got.map(|p| (p.effective.0, p.bounding.0, p.seccomp_filter)), expected);
    }
    check(STATUS_TEXT, Ok((0xc0_0008_0004, 0x1ff_feff_ffff, true)));
    check("CapEff:\t0\nCapBnd:\t0\n", Ok((0, 0, false)));
    let expected = "expected CapEff and CapBnd in hexadecimal";
    check("CapEff:\t0\n", Err(&format!("/proc/self/status: got \"\", {expected}")));
    check("CapEff:\tx\nCapBnd:\t0\n", Err(&format!("/proc/self/status: got \"x\", {expected}")));
}

#[test]
fn a_capability_is_a_bit_and_the_admin_has_two_more() {
    #[track_caller]
    fn check(set: u64, has: &[&str], allows: &[&str]) {
        let names = |test: fn(Capabilities, Capability) -> bool| -> Vec<_> {
            let all = Capability::ALL.into_iter();
            all.filter(|c| test(Capabilities(set), *c)).map(Capability::name).collect()
        };
        assert_eq!(names(Capabilities::has), has, "{set:x}");
        assert_eq!(names(Capabilities::allows), allows, "{set:x}");
    }
    let four = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];
    check(0xc0_0008_0004, &four, &four);
    check(1 << 21, &["CAP_SYS_ADMIN"], &["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN"]);
    let limits = ["CAP_NET_ADMIN", "CAP_SYS_RESOURCE"];
    check(1 << 12 | 1 << 24, &limits, &limits);
    check(0, &[], &[]);
}

#[test]
fn the_first_user_namespace_maps_everything_to_itself() {
    #[track_caller]
    fn check(text: &str, expected: Option<bool>) {
        assert_eq!(parse_uid_map(text).ok(), expected, "{text:?}");
    }
    check("         0          0 4294967295\n", Some(true));
    check("         0       1000          1\n", Some(false));
    check("0 0 4294967295\n1 1 1\n", Some(false));
    check("", Some(false));
    check("0 0 all\n", None);
}

#[test]
fn the_lockdown_level_is_in_brackets() {
    #[track_caller]
    fn check(text: &str, expected: Option<Lockdown>) {
        assert_eq!(parse_lockdown(text).ok(), expected, "{text:?}");
    }
    check("[none] integrity confidentiality\n", Some(Lockdown::None));
    check("none [integrity] confidentiality\n", Some(Lockdown::Integrity));
    check("none integrity [confidentiality]\n", Some(Lockdown::Confidentiality));
    check("none integrity confidentiality\n", None);
    check("[paranoid]\n", None);
    check("", None);
}

#[test]
fn security_modules_are_separated_by_commas() {
    assert_eq!(parse_lsm("lockdown,capability,bpf\n"), ["lockdown", "capability", "bpf"]);
    assert_eq!(parse_lsm("\n"), [""; 0]);
}

#[test]
fn mounts_tell_where_tracefs_is_and_which_cgroups() {
    #[track_caller]
    fn check(text: &str, tracefs: Option<&str>, cgroup: Cgroup) {
        assert_eq!(parse_tracefs(text).as_deref(), tracefs, "{text:?}");
        assert_eq!(parse_cgroup(text), cgroup, "{text:?}");
    }
    check(MOUNTS_HYBRID, Some("/sys/kernel/tracing"), Cgroup::Hybrid);
    check(MOUNTS_V2, Some("/a\\040b"), Cgroup::V2);
    let below = "debugfs /sys/kernel/debug debugfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0";
    check(below, Some("/sys/kernel/debug/tracing"), Cgroup::V1);
    check("tracefs cgroup\n\n", None, Cgroup::None);
}

#[test]
fn what_is_not_known_says_why() {
    let why = error::chain(&number("/proc/sys/nothing").unwrap_err());
    assert_eq!(why, "/proc/sys/nothing: No such file or directory (os error 2)");
    let why = error::chain(&number("/proc/version").unwrap_err());
    assert!(why.starts_with("/proc/version: got \"Linux version "), "{why}");
    assert!(why.ends_with(", expected a whole number"), "{why}");
}

proptest! {
    #[test]
    fn random_text_never_panics(text in "\\PC*") {
        let _ = (parse_status(&text), parse_uid_map(&text), parse_lockdown(&text));
        let _ = (parse_lsm(&text), parse_tracefs(&text), parse_cgroup(&text));
    }
}
