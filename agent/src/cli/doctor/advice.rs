//! From facts and the kernel's answers to what would change them; pure.

use super::{
    LISTENERS, Tried, need,
    report::{Change, Finding},
};
use crate::{
    input::{Hook, Tier},
    sources::machine::{Capabilities, Capability, Lockdown, Machine, Privileges},
};

/// Before this version, maps count against `RLIMIT_MEMLOCK` (5.11, "bpf: Eliminate rlimit-based
/// memory accounting").
const NO_MEMLOCK: (u32, u32) = (5, 11);
/// The first version that has the instructions and the socket storage that the programs use.
const PROGRAMS: (u32, u32) = (5, 12);

/// A level that Debian and its kin add: from here on CAP_PERFMON is not enough ("security,perf:
/// Allow further restriction of perf_event_open").
const PARANOID: i64 = 3;

/// What a hook says that would serve if it were asked for.
const SWITCHED_OFF: &str = "accept_tracepoints is off";

const MOUNT: &str = "sudo mount -t tracefs tracefs /sys/kernel/tracing";

/// What stands in the way, and what would change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) what: String,
    /// Each by itself is enough. Empty: not known.
    pub(super) change: Vec<Change>,
}

/// An answer that says by itself what it means.
struct Rule {
    /// One of these is in it.
    says: &'static [&'static str],
    what: &'static str,
    change: &'static [(&'static str, &'static str)],
}

const RULES: [Rule; 7] = [
    Rule {
        says: &["no_ebpf"],
        what: "eBPF is switched off",
        change: &[("configuration", "no_ebpf = false")],
    },
    Rule {
        says: &[SWITCHED_OFF],
        what: "the tracepoints that see accept(2) return are switched off, since they slow every \
               system call of every process by some 30 ns",
        change: &[("configuration", "accept_tracepoints = true")],
    },
    Rule {
        says: &["not wanted", "switched off by tier"],
        what: "a tier is forced",
        change: &[("shell", "leave out --tier, BACKLOGD_TIER and the key tier")],
    },
    Rule {
        says: &["no BTF", "BTF of", "BTF cannot be used"],
        what: "the kernel does not describe its structures in /sys/kernel/btf/vmlinux",
        change: &[
            ("kernel configuration", "CONFIG_DEBUG_INFO_BTF=y"),
            ("container", "mount the host's /sys, read-only"),
        ],
    },
    // `arch_prepare_bpf_trampoline` (arch/x86/net/bpf_jit_comp.c)
    Rule {
        says: &["os error 524)", "ENOTSUPP"],
        what: "before Linux 6.6, x86-64 has no fentry for functions of more than six arguments",
        change: &[("kernel", "Linux 6.6 or newer")],
    },
    Rule {
        says: &["btf_trace_sk_data_ready"],
        what: "the tracepoint sk_data_ready is new in Linux 6.3",
        change: &[("kernel", "Linux 6.3 or newer")],
    },
    Rule {
        says: &["os error 12)"],
        what: "the kernel has no memory for the eBPF maps: a memory limit, most likely",
        change: &[("systemd unit", "MemoryMax=256M"), ("configuration", "slots = 1024")],
    },
];

/// What a refusal means on this machine: `why` is what stopped a hook of this tier. `None`: it is
/// not understood, or nothing is wrong.
pub(super) fn advise(machine: &Machine, tier: Tier, why: &str) -> Option<Advice> {
    let has = |text: &str| why.contains(text);
    if has(SWITCHED_OFF) && !matches!(machine.tracefs, Ok(Some(_))) {
        // one without the other does not help
        let how = format!("accept_tracepoints = true, and {MOUNT}");
        let what = "the tracepoints that see accept(2) return are switched off, since they slow every \
                    system call of every process by some 30 ns, and tracefs is not mounted";
        return Some(advice(what, [change("configuration and shell", &how)]));
    }
    if let Some(rule) = RULES.iter().find(|rule| rule.says.iter().any(|text| has(text))) {
        let change = rule.change.iter().map(|&(place, how)| change(place, how)).collect();
        return Some(Advice { what: rule.what.to_owned(), change });
    }
    let no_kprobes = matches!(machine.kprobes, Ok(false));
    if has("tracefs") {
        Some(tracefs(machine))
    } else if is_denied(why) {
        denied(machine, tier, why)
    } else if ["unknown BTF type", "in BTF", "has no field"].iter().any(|text| has(text)) {
        Some(advice(&format!("this build of the kernel lacks something: {why}"), []))
    } else if tier == Tier::Kprobe && no_kprobes {
        let options = "CONFIG_KPROBES=y CONFIG_KPROBE_EVENTS=y CONFIG_BPF_EVENTS=y";
        Some(advice("this kernel has no kprobes", [change("kernel configuration", options)]))
    } else if tier == Tier::Kprobe && has("os error 2)") {
        Some(advice("this build of the kernel has the function inlined, or under another name", []))
    } else if has("os error 22)") && is_older(machine, PROGRAMS) {
        let what = "this kernel is too old for the eBPF programs";
        Some(advice(what, [change("kernel", "Linux 5.12 or newer")]))
    } else {
        None
    }
}

/// EPERM; EACCES is also the verifier's word for a program that it does not like.
fn is_denied(why: &str) -> bool {
    ["os error 1)", "os error 13)"].iter().any(|code| why.contains(code))
}

/// What keeps a process from a hook that the kernel would have.
fn denied(machine: &Machine, tier: Tier, why: &str) -> Option<Advice> {
    if matches!(machine.initial_user_namespace, Ok(false)) {
        return Some(advice(
            "this is not the first user namespace: its capabilities do not count for eBPF",
            [
                change("shell", "run it as root of the host, not in a rootless container"),
                change("Kubernetes pod", "hostUsers: true"),
            ],
        ));
    }
    if let Some(advice) = lacking(machine, need::PROGRAM) {
        return Some(advice);
    }
    if why.contains("os error 13)") {
        let advice = paranoid(machine, tier);
        // else, for a program that is loaded, it is the verifier's answer
        if advice.is_some() || tier != Tier::Kprobe {
            return advice;
        }
    }
    match machine.lockdown {
        Ok(Lockdown::Confidentiality) if tier == Tier::Kprobe => {
            return Some(locked_down("kprobes"));
        }
        Err(_) if tier == Tier::Kprobe => return Some(perhaps_locked_down()),
        Ok(_) | Err(_) => {}
    }
    if why.contains("maps cannot be created") && is_older(machine, NO_MEMLOCK) {
        return Some(locked_memory());
    }
    if matches!(machine.privileges, Ok(Privileges { seccomp_filter: true, .. })) {
        return Some(advice(
            "a seccomp filter may refuse bpf(2) and perf_event_open(2) to this process",
            [
                change("Docker", "--security-opt seccomp=unconfined"),
                change(
                    "Kubernetes container",
                    "securityContext: {seccompProfile: {type: Unconfined}}",
                ),
                change("systemd unit", "SystemCallFilter=bpf perf_event_open"),
            ],
        ));
    }
    let refused = match tier {
        Tier::Fentry | Tier::Kprobe | Tier::Tracepoint => tier.name(),
        Tier::Sampled | Tier::None => "eBPF",
    };
    let what = format!(
        "this kernel refuses {refused} to a process that has the capabilities: a policy of its own, or of \
         a security module"
    );
    Some(advice(&what, [change("to find out", "sudo dmesg; sudo ausearch -m avc,bpf -ts recent")]))
}

/// Capabilities that are missing, and how a process comes by them.
fn lacking(machine: &Machine, wanted: &[Capability]) -> Option<Advice> {
    let Privileges { effective, bounding, .. } = *machine.privileges.as_ref().ok()?;
    let missing: Vec<_> = need::missing(wanted, effective).collect();
    if missing.is_empty() {
        return None;
    }
    let withheld: Vec<_> = need::missing(&missing, bounding).collect();
    let what = match &withheld[..] {
        [] => format!("this process lacks {}", names(&missing, " and ")),
        withheld => {
            let (missing, withheld) = (names(&missing, " and "), names(withheld, " and "));
            format!("this process lacks {missing}; its bounding set withholds {withheld}")
        }
    };
    let all = names(&missing, " ");
    let mut unit = format!("AmbientCapabilities={all}");
    if !withheld.is_empty() {
        unit += &format!("\nCapabilityBoundingSet={all}");
    }
    let add = names(&missing, ", ").replace("CAP_", "");
    let pod = format!("securityContext: {{runAsUser: 0, capabilities: {{add: [{add}]}}}}");
    let docker = add.split(", ").map(|name| format!(" --cap-add {name}")).collect::<String>();
    let mut ways = vec![
        change("systemd unit", &unit),
        change("Kubernetes container", &pod),
        change("Docker", &format!("--user 0{docker}")),
    ];
    // a file cannot give what the bounding set withholds
    if withheld.is_empty() {
        let file = names(&on_file(&missing, effective), ",").to_lowercase();
        ways.push(change("shell", &format!("sudo setcap {file}+ep \"$(command -v backlogd)\"")));
    }
    Some(Advice { what, change: ways })
}

/// setcap(8) replaces what a file had: so the missing ones, those that are there, and those that
/// an earlier finding may have asked for.
fn on_file(missing: &[Capability], effective: Capabilities) -> Vec<Capability> {
    let all = [need::PROGRAM, need::OWNERS].concat();
    let last = all.iter().rposition(|capability| missing.contains(capability));
    let wanted =
        |&(n, capability): &(usize, Capability)| Some(n) <= last || effective.has(capability);
    all.into_iter().enumerate().filter(wanted).map(|(_, capability)| capability).collect()
}

fn names(capabilities: &[Capability], separator: &str) -> String {
    let names: Vec<_> = capabilities.iter().map(|capability| capability.name()).collect();
    names.join(separator)
}

/// Perf events are what kprobes and plain tracepoints are attached by.
fn paranoid(machine: &Machine, tier: Tier) -> Option<Advice> {
    let level = *machine.perf_event_paranoid.as_ref().ok()?;
    let Privileges { effective, .. } = *machine.privileges.as_ref().ok()?;
    let by_perf = matches!(tier, Tier::Kprobe | Tier::Tracepoint);
    if !by_perf || level < PARANOID || effective.has(Capability::SysAdmin) {
        return None;
    }
    let what =
        format!("with kernel.perf_event_paranoid = {level}, perf events are for CAP_SYS_ADMIN");
    let lower = "sudo sysctl kernel.perf_event_paranoid=2";
    Some(advice(
        &what,
        [change("shell", lower), change("systemd unit", "AmbientCapabilities=CAP_SYS_ADMIN")],
    ))
}

fn perhaps_locked_down() -> Advice {
    let look = "sudo mount -t securityfs securityfs /sys/kernel/security; backlogd doctor";
    advice(
        "this kernel refuses kprobes, by lockdown perhaps: its level is not known",
        [change("to find out", look)],
    )
}

fn tracefs(machine: &Machine) -> Advice {
    if matches!(machine.lockdown, Ok(Lockdown::Confidentiality)) {
        return locked_down("tracefs");
    }
    let mount = change("shell", MOUNT);
    match &machine.tracefs {
        Ok(Some(point)) => advice(
            &format!("tracefs at {point} is for root alone"),
            [
                change("systemd unit", "AmbientCapabilities=CAP_DAC_READ_SEARCH"),
                change("Kubernetes container", "securityContext.runAsUser: 0"),
            ],
        ),
        Ok(None) | Err(_) => advice("tracefs is not mounted", [mount]),
    }
}

fn locked_down(what: &str) -> Advice {
    let what = format!("lockdown=confidentiality forbids {what}");
    advice(&what, [change("kernel command line", "lockdown=integrity")])
}

fn locked_memory() -> Advice {
    advice(
        "before Linux 5.11 the maps count as locked memory, and the limit is too low",
        [change("systemd unit", "LimitMEMLOCK=infinity"), change("shell", "ulimit -l unlimited")],
    )
}

fn is_older(machine: &Machine, version: (u32, u32)) -> bool {
    let running = machine.kernel.as_ref().ok().and_then(|release| {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    running.is_some_and(|running| running < version)
}

fn advice<const N: usize>(what: &str, change: [Change; N]) -> Advice {
    Advice { what: what.to_owned(), change: change.into() }
}

fn change(place: &'static str, how: &str) -> Change {
    Change { place, how: how.to_owned() }
}

/// All that is in the way, each once, in the order in which events meet it.
pub(super) fn findings(machine: &Machine, tried: &Tried) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (&source, why) in &tried.unreadable {
        match source {
            LISTENERS => {
                let what = format!("the listeners cannot be read: {why}");
                let advice = advice(&what, [change("shell", "sudo modprobe tcp_diag")]);
                add(&mut findings, advice, None, "every number");
            }
            // said below, with what would change it
            "owners" | "processes" => {}
            "namespaces" => {
                let ways = [
                    change("systemd unit", "AmbientCapabilities=CAP_SYS_ADMIN CAP_SYS_PTRACE"),
                    change("configuration", "own_netns_only = true"),
                ];
                let advice = advice("other network namespaces cannot be entered", ways);
                add(&mut findings, advice, None, "listeners of other namespaces");
            }
            source => {
                let advice = advice(&format!("{source} cannot be read: {why}"), []);
                add(&mut findings, advice, None, "what comes from there");
            }
        }
    }
    tried.hooks.iter().for_each(|hook| judge(machine, hook, &mut findings));
    if matches!(machine.bpf_jit_enable, Ok(0)) {
        let way = change("shell", "sudo sysctl net.core.bpf_jit_enable=1");
        let advice = advice("eBPF programs are interpreted, not compiled", [way]);
        add(&mut findings, advice, None, "time: each event costs the host several times as much");
    }
    if let Some(advice) = lacking(machine, need::OWNERS) {
        add(&mut findings, advice, None, "the owners of listeners that run as another user");
    } else if tried.unreadable.keys().any(|source| matches!(*source, "owners" | "processes")) {
        let what = "some processes cannot be looked into although the capabilities are there";
        let way = change("security module", "let backlogd look into other processes");
        add(&mut findings, advice(what, [way]), None, "the owners of their listeners");
    }
    findings
}

/// What keeps an event from a hook, if it has none. Where one of the programs serves it, nothing is
/// lost, whatever was tried before.
fn judge(machine: &Machine, hook: &Hook, findings: &mut Vec<Finding>) {
    match hook.tier {
        Tier::Fentry | Tier::Kprobe | Tier::Tracepoint => return,
        Tier::Sampled | Tier::None => {}
    }
    let (lost, event) = (lost(hook.event), Some(hook.event));
    let refused = hook.refused.iter().map(|refused| (refused.tier, &refused.why));
    let advised: Vec<_> = refused
        .chain([(hook.tier, &hook.why)])
        .filter_map(|(tier, why)| advise(machine, tier, why))
        .collect();
    // a sampled event that nothing was tried for is as good as it gets
    if advised.is_empty() && (hook.tier == Tier::None || !hook.refused.is_empty()) {
        let mut reasons = hook.refused.iter().map(|refused| &refused.why).chain([&hook.why]);
        let reason = reasons.rfind(|why| !why.is_empty()).map_or("no reason", |why| why);
        let what = format!("refused, and nothing is known that would change it: {reason}");
        add(findings, Advice { what, change: Vec::new() }, event, lost);
    }
    for advice in advised {
        add(findings, advice, event, lost);
    }
}

/// Joins what has the same cause.
fn add(findings: &mut Vec<Finding>, advice: Advice, event: Option<&str>, lost: &str) {
    let same = findings.iter().position(|finding| finding.what == advice.what);
    let at = same.unwrap_or_else(|| {
        let Advice { what, change } = advice;
        findings.push(Finding { what, events: Vec::new(), lost: Vec::new(), change });
        findings.len() - 1
    });
    let finding = &mut findings[at];
    finding.events.extend(event.map(str::to_owned));
    if !finding.lost.iter().any(|said| said == lost) {
        finding.lost.push(lost.to_owned());
    }
}

/// What is not known of an event without a hook.
fn lost(event: &str) -> &'static str {
    match event {
        "listen" => "listeners that come and go between two samples",
        "established" => "how many handshakes completed",
        "enqueue" => "peaks of the queue between two samples",
        "accept" => "how long connections waited; accepted is exact at quiet instants alone",
        "accept_error" => "which accept(2) failed, and with which error",
        "connect_error" => "which connect(2) failed, and with which error",
        "reset" => "connections reset while queued",
        "close" => "how many connections are open, and for how long",
        "adopt" => "listeners and connections from before the agent",
        "census" => "ends of connections that no program saw",
        "syn_queue" => "the length of the SYN queue",
        "syn" => "how many SYNs reached a listener",
        "syn_cookie" => "how many SYNs got a cookie",
        "discard" => "connections thrown away with their listener",
        "ack_drop" => "which drops came at the last ACK of a handshake",
        _ => "which drops came at the SYN, and for which queue",
    }
}
