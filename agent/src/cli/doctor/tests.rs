use std::{io, sync::Arc};

use super::*;
use crate::{
    input::{Hook, Refused, Tier},
    sources::machine::{Capabilities, Cgroup, Lockdown, Machine, Privileges, Unknown},
};

const PIPE: Terminal = Terminal { size: None, color: false, redraws: false };
/// As root of a host has it.
const ALL: u64 = 0x1ff_ffff_ffff;
const ADMIN: u64 = 1 << 21;
const BPF_PERFMON: u64 = 0b11 << 38;
const OWNERS: u64 = 1 << 19 | 1 << 2;

const EPERM: &str = "Operation not permitted (os error 1)";
const ENOENT: &str = "No such file or directory (os error 2)";
const EACCES: &str = "Permission denied (os error 13)";

/// A machine on which everything works.
fn machine() -> Machine {
    Machine {
        kernel: Ok("6.12.0-1-amd64".into()),
        btf: Ok(Some(4_928_307)),
        privileges: privileges(ALL, ALL),
        initial_user_namespace: Ok(true),
        lockdown: Ok(Lockdown::None),
        lsm: Ok(vec!["lockdown".into(), "capability".into(), "bpf".into()]),
        tracefs: Ok(Some("/sys/kernel/tracing".into())),
        cgroup: Ok(Cgroup::V2),
        kprobes: Ok(true),
        locked_memory_limit: 8 << 20,
        unprivileged_bpf_disabled: Ok(2),
        perf_event_paranoid: Ok(3),
        bpf_jit_enable: Ok(1),
        bpf_stats_enabled: Ok(0),
    }
}

fn privileges(effective: u64, bounding: u64) -> Result<Privileges, Unknown> {
    let (effective, bounding) = (Capabilities(effective), Capabilities(bounding));
    Ok(Privileges { effective, bounding, seccomp_filter: false })
}

/// A machine of which little is known, since it hides its files.
fn hidden() -> Machine {
    let forbidden =
        |path| Unknown::Unreadable { path, source: io::ErrorKind::PermissionDenied.into() };
    Machine {
        btf: Ok(None),
        privileges: privileges(0, ADMIN),
        lockdown: Err(Unknown::NotMounted("securityfs")),
        lsm: Err(Unknown::NotMounted("securityfs")),
        tracefs: Ok(None),
        bpf_jit_enable: Err(forbidden("/proc/sys/net/core/bpf_jit_enable")),
        locked_memory_limit: u64::MAX,
        ..machine()
    }
}

fn hook(event: &'static str, tier: Tier, program: &'static str, why: &str) -> Hook {
    Hook { event, tier, program, why: why.into(), refused: Arc::default() }
}

fn refused(tier: Tier, program: &'static str, why: &str) -> Refused {
    Refused { tier, program, why: why.into() }
}

/// As on a kernel that has neither fentry nor kprobes.
fn hooks() -> Vec<Hook> {
    let refused =
        |program| [refused(Tier::Fentry, program, EPERM), refused(Tier::Kprobe, program, ENOENT)];
    let mut accept = refused("accept").to_vec();
    accept.push(self::refused(Tier::Tracepoint, "accept_exit", "accept_tracepoints is off"));
    vec![
        hook("established", Tier::Tracepoint, "state", ""),
        Hook {
            refused: accept.into(),
            ..hook("accept", Tier::Sampled, "established - length", "exact at quiet instants")
        },
        Hook { refused: refused("syn").into(), ..hook("syn", Tier::None, "", ENOENT) },
        hook("drop", Tier::Sampled, "sk_drops", "the reasons are not told apart"),
    ]
}

fn tried(hooks: impl Into<Vec<Hook>>) -> Tried {
    Tried { hooks: hooks.into(), ..Tried::default() }
}

fn unreadable(source: &'static str, why: &str) -> Tried {
    Tried { unreadable: BTreeMap::from([(source, why.to_owned())]), ..Tried::default() }
}

fn nobody() -> Daemon {
    let socket = Some("/run/backlogd/backlogd.sock".into());
    Daemon { socket, answers: false, why: Some("nobody listens there".into()) }
}

fn without_kprobes() -> Machine {
    Machine { kprobes: Ok(false), ..machine() }
}

#[test]
fn the_table_has_facts_events_and_findings() {
    let report = Report::new(nobody(), &without_kprobes(), &tried(hooks()));
    insta::assert_snapshot!("table", text::render(&report, &PIPE, false));
    insta::assert_snapshot!("wide", text::render(&report, &PIPE, true));
}

#[test]
fn json_has_all_there_is() {
    let report = Report::new(nobody(), &without_kprobes(), &tried(hooks()));
    insta::assert_snapshot!("json", out::json(&report).unwrap());
}

#[test]
fn what_is_not_known_is_null_and_says_why() {
    let error = "sock_diag cannot be opened: Protocol not supported (os error 93)";
    let report = Report::new(nobody(), &hidden(), &unreadable(LISTENERS, error));
    insta::assert_snapshot!("unknown_table", text::render(&report, &PIPE, false));
    insta::assert_snapshot!("unknown_yaml", out::yaml(&report).unwrap());
}

#[test]
fn the_verdict_is_of_what_is_lost() {
    #[track_caller]
    fn check(machine: &Machine, tried: &Tried, expected: Verdict) {
        let report = Report::new(nobody(), machine, tried);
        assert_eq!(report.verdict, expected, "{:#?}", report.findings);
    }
    let works = hook("established", Tier::Tracepoint, "state", "");
    let denied = refused(Tier::Fentry, "syn", EPERM);
    let second_best =
        Hook { refused: [denied].into(), ..hook("syn", Tier::Kprobe, "syn_kprobe", "") };
    let strange = hook("syn", Tier::None, "", "the moon is full");
    let sampled = hook("drop", Tier::Sampled, "sk_drops", "the reasons are not told apart");
    let fine = [works.clone(), second_best, sampled.clone()];
    check(&machine(), &tried(fine), Verdict::Fine);
    check(&machine(), &tried([works.clone(), strange.clone()]), Verdict::Degraded);
    check(&machine(), &tried([strange, sampled]), Verdict::NoEbpf);
    check(&machine(), &unreadable(LISTENERS, "no such module"), Verdict::Unusable);
    let blind = Machine { privileges: privileges(BPF_PERFMON, ALL), ..machine() };
    check(&blind, &tried([works.clone()]), Verdict::Degraded);
    let slow = Machine { bpf_jit_enable: Ok(0), ..machine() };
    check(&slow, &tried([works.clone()]), Verdict::Degraded);
    let owners = Tried { hooks: vec![works.clone()], ..unreadable("owners", "some are hidden") };
    check(&machine(), &owners, Verdict::Degraded);
    check(&blind, &owners, Verdict::Degraded);
    let netstat = Tried { hooks: vec![works], ..unreadable("netstat", "no such file") };
    check(&machine(), &netstat, Verdict::Degraded);
}

/// Expects the beginning of what is said, and the first thing to change; nothing for `None`.
#[track_caller]
fn check(machine: &Machine, tier: Tier, why: &str, expected: Option<(&str, &str)>) {
    let advice = advice::advise(machine, tier, why);
    match (&advice, expected) {
        (None, None) => {}
        (Some(advice), Some((what, how))) => {
            assert!(advice.what.starts_with(what), "{tier:?} {why}: {advice:?}");
            let first = advice.change.first().map_or("", |change| &change.how);
            assert!(first.starts_with(how), "{tier:?} {why}: {advice:?}");
        }
        _ => panic!("{tier:?} {why}: {advice:?}, expected {expected:?}"),
    }
}

#[test]
fn an_answer_that_speaks_for_itself_has_its_own_advice() {
    let machine = &machine();
    let cases = [
        (Tier::None, "switched off by no_ebpf", "eBPF is switched off", "no_ebpf = false"),
        (
            Tier::Tracepoint,
            "accept_tracepoints is off",
            "the tracepoints that see",
            "accept_tracepoints = true",
        ),
        (Tier::Fentry, "not wanted: tier tracepoint", "a tier is forced", "leave out --tier"),
        (
            Tier::None,
            "no BTF: /sys/kernel/btf/vmlinux: No such file or directory (os error 2)",
            "the kernel does not describe",
            "CONFIG_DEBUG_INFO_BTF=y",
        ),
        (Tier::None, "BTF of 0 bytes is broken at byte 0", "the kernel does not", "CONFIG_DEBUG"),
        (Tier::Fentry, "ENOTSUPP (524)", "before Linux 6.6", "Linux 6.6"),
        (Tier::Fentry, "Unknown error 524 (os error 524)", "before Linux 6.6", "Linux 6.6"),
        (
            Tier::Tracepoint,
            "unknown BTF type `btf_trace_sk_data_ready`",
            "the tracepoint sk_data_ready is new",
            "Linux 6.3",
        ),
        (
            Tier::Fentry,
            "no function tcp_v6_syn_recv_sock in BTF",
            "this build of the kernel lacks something: no function tcp_v6_syn_recv_sock",
            "",
        ),
        (Tier::None, "this kernel has no field sock.sk_drops", "this build of the kernel", ""),
        (Tier::Kprobe, ENOENT, "this build of the kernel has the function inlined", ""),
        (
            Tier::None,
            "eBPF maps cannot be created: Cannot allocate memory (os error 12)",
            "the kernel has no memory",
            "MemoryMax",
        ),
    ];
    for (tier, why, what, how) in cases {
        check(machine, tier, why, Some((what, how)));
    }
    for why in ["", "exact at every quiet instant", "Invalid argument (os error 22)"] {
        check(machine, Tier::Sampled, why, None);
    }
    let options = Some(("this kernel has no kprobes", "CONFIG_KPROBES=y CONFIG_KPROBE_EVENTS=y"));
    check(&without_kprobes(), Tier::Kprobe, ENOENT, options);
    let old = Machine { kernel: Ok("5.10.0-35-amd64".into()), ..self::machine() };
    let too_old = Some(("this kernel is too old", "Linux 5.12"));
    check(&old, Tier::Tracepoint, "Invalid argument (os error 22)", too_old);
}

#[test]
fn a_refusal_is_explained_by_what_the_process_lacks() {
    let with =
        |effective, bounding| Machine { privileges: privileges(effective, bounding), ..machine() };
    let ambient = "AmbientCapabilities=CAP_BPF CAP_PERFMON";
    let both = "this process lacks CAP_BPF and CAP_PERFMON";
    for tier in [Tier::Fentry, Tier::Kprobe, Tier::Tracepoint, Tier::None] {
        for why in [EPERM, EACCES] {
            check(&with(0, ALL), tier, why, Some((both, ambient)));
        }
    }
    let withheld = "this process lacks CAP_BPF and CAP_PERFMON; its bounding set withholds CAP_PER";
    let perfmon = 1 << 38;
    check(&with(0, ALL & !perfmon & !ADMIN), Tier::Fentry, EPERM, Some((withheld, ambient)));
    let only = ("this process lacks CAP_PERFMON", "AmbientCapabilities=CAP_PERFMON");
    check(&with(1 << 39, ALL), Tier::Fentry, EPERM, Some(only));
    check(
        &with(ADMIN, ALL),
        Tier::Fentry,
        EPERM,
        Some(("this kernel refuses fentry to", "sudo dmesg")),
    );

    let rootless = Machine { initial_user_namespace: Ok(false), ..machine() };
    check(&rootless, Tier::Fentry, EPERM, Some(("this is not the first user", "run it as root")));
    let filtered = Privileges { seccomp_filter: true, ..machine().privileges.unwrap() };
    let filtered = Machine { privileges: Ok(filtered), ..machine() };
    check(&filtered, Tier::Fentry, EPERM, Some(("a seccomp filter", "--security-opt")));
}

#[test]
fn a_refusal_is_explained_by_what_the_kernel_keeps() {
    let locked = Machine { lockdown: Ok(Lockdown::Confidentiality), ..machine() };
    let kprobes = Some(("lockdown=confidentiality forbids kprobes", "lockdown=integrity"));
    check(&locked, Tier::Kprobe, EPERM, kprobes);
    let tracefs = Some(("lockdown=confidentiality forbids tracefs", "lockdown=integrity"));
    check(&locked, Tier::Tracepoint, "tracefs not found", tracefs);
    check(&locked, Tier::Fentry, EPERM, Some(("this kernel refuses fentry", "sudo dmesg")));
    // the verifier's word; for a kprobe perf_event_open(2) says it
    check(&machine(), Tier::Tracepoint, EACCES, None);
    check(&machine(), Tier::Kprobe, EACCES, Some(("this kernel refuses kprobe", "sudo dmesg")));

    let unknown = Machine { lockdown: Err(Unknown::NotMounted("securityfs")), ..machine() };
    let perhaps = Some(("this kernel refuses kprobes, by lockdown perhaps", "sudo mount -t secu"));
    check(&unknown, Tier::Kprobe, EPERM, perhaps);

    let without_admin = privileges(ALL & !ADMIN, ALL);
    let paranoid = Machine { privileges: without_admin, perf_event_paranoid: Ok(3), ..machine() };
    let lower = Some(("with kernel.perf_event_paranoid = 3", "sudo sysctl kernel.perf_event_par"));
    check(&paranoid, Tier::Kprobe, EACCES, lower);
    check(&paranoid, Tier::Tracepoint, EACCES, lower);
    let policy = Some(("this kernel refuses tracepoint", "sudo dmesg"));
    check(&paranoid, Tier::Tracepoint, EPERM, policy);
    check(&paranoid, Tier::Fentry, EPERM, Some(("this kernel refuses fentry", "sudo dmesg")));
    let mild = Machine { perf_event_paranoid: Ok(2), ..paranoid };
    check(&mild, Tier::Kprobe, EPERM, Some(("this kernel refuses kprobe", "sudo dmesg")));

    let unmounted = Machine { tracefs: Ok(None), ..machine() };
    let mount =
        Some(("tracefs is not mounted", "sudo mount -t tracefs tracefs /sys/kernel/tracing"));
    check(&unmounted, Tier::Tracepoint, "tracefs is not mounted", mount);
    let reader =
        Some(("tracefs at /sys/kernel/tracing is for root", "AmbientCapabilities=CAP_DAC"));
    check(&machine(), Tier::Tracepoint, "tracefs not found", reader);

    let old = Machine { kernel: Ok("5.10.0-35-amd64".into()), ..machine() };
    let maps = "eBPF maps cannot be created: Operation not permitted (os error 1)";
    check(&old, Tier::None, maps, Some(("before Linux 5.11", "LimitMEMLOCK=infinity")));
    check(&machine(), Tier::None, maps, Some(("this kernel refuses eBPF", "sudo dmesg")));
}

#[test]
fn commands_of_two_findings_do_not_undo_each_other() {
    #[track_caller]
    fn check(effective: u64, expected: &[&str]) {
        let machine = Machine { privileges: privileges(effective, ALL), ..machine() };
        let denied = hook("established", Tier::None, "", EPERM);
        let report = Report::new(nobody(), &machine, &tried([denied]));
        let changes = report.findings.iter().flat_map(|finding| &finding.change);
        let files: Vec<_> = changes
            .filter_map(|change| change.how.strip_prefix("sudo setcap ")?.split('+').next())
            .collect();
        assert_eq!(files, expected, "{effective:x}");
    }
    let all = "cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search";
    check(0, &["cap_bpf,cap_perfmon", all]);
    check(1 << 39, &["cap_bpf,cap_perfmon", all]);
    check(OWNERS, &[all]);
    check(BPF_PERFMON, &[all]);
}
