//! What `doctor` found, as it is printed: types with serde and JSON Schema (docs/schema). Keys are
//! snake_case, units in the name; what is not known is null, and `absent` says why.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{LISTENERS, Tried, advice, need};
use crate::{
    error,
    input::{self, Tier},
    sources::machine::{self, Capabilities, Capability, Cgroup, Fact, Lockdown},
};

/// The value of `schema_version`.
pub const SCHEMA_VERSION: u32 = 1;

/// All of `doctor -o json`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Report {
    /// Version of this form.
    pub schema_version: u32,
    /// In one word.
    pub verdict: Verdict,
    /// Whether a daemon runs already.
    pub daemon: Daemon,
    /// Kernel, and what this process may do.
    pub machine: Machine,
    /// How each event is obtained; empty when the sources cannot be opened.
    pub hooks: Vec<Hook>,
    /// The least that each way of getting numbers needs.
    pub needs: Vec<Need>,
    /// What is in the way, and what would change it.
    pub findings: Vec<Finding>,
}

/// How well the agent would work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is lost.
    Fine,
    /// Something is: the findings say what.
    Degraded,
    /// No eBPF program runs: sampled numbers alone.
    NoEbpf,
    /// Not even those.
    Unusable,
}

/// The daemon on this host.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Daemon {
    /// Where it was asked.
    pub socket: Option<String>,
    /// Whether it answered.
    pub answers: bool,
    /// Why not.
    pub why: Option<String>,
}

/// Facts about the machine and this process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Machine {
    /// `uname -r`
    pub kernel: Option<String>,
    /// Size of /sys/kernel/btf/vmlinux; 0: the kernel has none.
    pub btf_bytes: Option<u64>,
    /// Of those that matter here, the capabilities in force.
    pub capabilities: Option<Vec<String>>,
    /// Of those that matter here, the capabilities that are not in the bounding set: no setting
    /// of the process itself brings them back.
    pub capabilities_withheld: Option<Vec<String>>,
    /// Whether a seccomp filter looks at this process's system calls.
    pub seccomp_filter: Option<bool>,
    /// Whether this is the first user namespace, the only one whose capabilities count for eBPF.
    pub initial_user_namespace: Option<bool>,
    /// `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// Security modules.
    pub lsm: Option<Vec<String>>,
    /// Whether tracefs is mounted.
    pub tracefs_mounted: Option<bool>,
    /// Where it is; null when it is not mounted.
    pub tracefs: Option<String>,
    /// `v2`, `hybrid`, `v1` or `none`.
    pub cgroup: Option<String>,
    /// Whether programs can be attached to kprobes.
    pub kprobes: Option<bool>,
    /// `RLIMIT_MEMLOCK`, soft; 18446744073709551615 is unlimited.
    pub locked_memory_limit_bytes: u64,
    /// `kernel.unprivileged_bpf_disabled`
    pub unprivileged_bpf_disabled: Option<i64>,
    /// `kernel.perf_event_paranoid`
    pub perf_event_paranoid: Option<i64>,
    /// `net.core.bpf_jit_enable`
    pub bpf_jit_enable: Option<i64>,
    /// `kernel.bpf_stats_enabled`
    pub bpf_stats_enabled: Option<i64>,
    /// Why fields are null.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: BTreeMap<&'static str, String>,
}

/// How an event is obtained.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Hook {
    /// The event.
    pub event: String,
    /// `fentry`, `kprobe`, `tracepoint`, `sampled` or `none`.
    pub tier: String,
    /// The program, or what stands for it; empty for none.
    pub program: String,
    /// Why there is no better one; empty when there is nothing to say.
    pub why: String,
    /// What was tried before, best first.
    pub refused: Vec<Refused>,
}

/// A hook that this kernel did not take.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Refused {
    /// Its tier.
    pub tier: String,
    /// The program.
    pub program: String,
    /// What the kernel answered, or what it lacks.
    pub why: String,
}

/// The least that one way of getting numbers needs.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Need {
    /// Its tier; null for what is beside the tiers.
    pub tier: Option<&'static str>,
    /// What it gives.
    pub gives: &'static str,
    /// Capabilities, all of them. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as it does
    /// before Linux 5.8.
    pub capabilities: Vec<&'static str>,
    /// Of these, what this process lacks; null: not known.
    pub missing: Option<Vec<&'static str>>,
    /// What else; empty for nothing.
    pub also: &'static str,
}

/// Something in the way.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Finding {
    /// What it is.
    pub what: String,
    /// Events that are sampled or absent because of it.
    pub events: Vec<String>,
    /// What is lost by that.
    pub lost: Vec<String>,
    /// What would change it, each by itself; empty: not known.
    pub change: Vec<Change>,
}

/// One way to change something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Change {
    /// Where: `shell`, `systemd unit`, `kernel configuration`, …
    pub place: &'static str,
    /// The command or the setting.
    pub how: String,
}

impl Report {
    /// Draws the conclusions.
    #[must_use]
    pub fn new(daemon: Daemon, machine: &machine::Machine, tried: &Tried) -> Self {
        let findings = advice::findings(machine, tried);
        let runs = |hook: &input::Hook| match hook.tier {
            Tier::Fentry | Tier::Kprobe | Tier::Tracepoint => true,
            Tier::Sampled | Tier::None => false,
        };
        let verdict = if tried.unreadable.contains_key(LISTENERS) {
            Verdict::Unusable
        } else if !tried.hooks.iter().any(runs) {
            Verdict::NoEbpf
        } else if findings.is_empty() {
            Verdict::Fine
        } else {
            Verdict::Degraded
        };
        let effective = machine.privileges.as_ref().ok().map(|privileges| privileges.effective);
        Self {
            schema_version: SCHEMA_VERSION,
            verdict,
            daemon,
            machine: Machine::new(machine),
            hooks: tried.hooks.iter().map(Hook::new).collect(),
            needs: need::NEEDS.iter().map(|need| Need::new(need, effective)).collect(),
            findings,
        }
    }
}

impl Machine {
    fn new(machine: &machine::Machine) -> Self {
        let mut absent = BTreeMap::new();
        let tracefs = note(&mut absent, "tracefs_mounted", &machine.tracefs);
        let mut privileges = |field| note(&mut absent, field, &machine.privileges);
        let effective = privileges("capabilities").map(|privileges| privileges.effective);
        let bounding = privileges("capabilities_withheld").map(|privileges| privileges.bounding);
        let filter = privileges("seccomp_filter").map(|privileges| privileges.seccomp_filter);
        let names = |test: &dyn Fn(Capability) -> bool| {
            let all = Capability::ALL.into_iter().filter(|capability| test(*capability));
            all.map(|capability| capability.name().to_owned()).collect()
        };
        Self {
            kernel: note(&mut absent, "kernel", &machine.kernel),
            btf_bytes: note(&mut absent, "btf_bytes", &machine.btf).map(Option::unwrap_or_default),
            capabilities: effective.map(|set| names(&|capability| set.has(capability))),
            capabilities_withheld: bounding.map(|set| names(&|capability| !set.has(capability))),
            seccomp_filter: filter,
            initial_user_namespace: note(
                &mut absent,
                "initial_user_namespace",
                &machine.initial_user_namespace,
            ),
            lockdown: note(&mut absent, "lockdown", &machine.lockdown)
                .map(|level| Lockdown::name(level).to_owned()),
            lsm: note(&mut absent, "lsm", &machine.lsm),
            tracefs_mounted: tracefs.as_ref().map(Option::is_some),
            tracefs: tracefs.flatten(),
            cgroup: note(&mut absent, "cgroup", &machine.cgroup)
                .map(|version| Cgroup::name(version).to_owned()),
            kprobes: note(&mut absent, "kprobes", &machine.kprobes),
            locked_memory_limit_bytes: machine.locked_memory_limit,
            unprivileged_bpf_disabled: note(
                &mut absent,
                "unprivileged_bpf_disabled",
                &machine.unprivileged_bpf_disabled,
            ),
            perf_event_paranoid: note(
                &mut absent,
                "perf_event_paranoid",
                &machine.perf_event_paranoid,
            ),
            bpf_jit_enable: note(&mut absent, "bpf_jit_enable", &machine.bpf_jit_enable),
            bpf_stats_enabled: note(&mut absent, "bpf_stats_enabled", &machine.bpf_stats_enabled),
            absent,
        }
    }
}

/// The value; notes why there is none.
fn note<T: Clone>(
    absent: &mut BTreeMap<&'static str, String>,
    field: &'static str,
    fact: &Fact<T>,
) -> Option<T> {
    match fact {
        Ok(value) => Some(value.clone()),
        Err(err) => {
            absent.insert(field, error::chain(err));
            None
        }
    }
}

impl Hook {
    fn new(hook: &input::Hook) -> Self {
        let refused = |refused: &input::Refused| Refused {
            tier: refused.tier.name().to_owned(),
            program: refused.program.to_owned(),
            why: refused.why.to_string(),
        };
        Self {
            event: hook.event.to_owned(),
            tier: hook.tier.name().to_owned(),
            program: hook.program.to_owned(),
            why: hook.why.to_string(),
            refused: hook.refused.iter().map(refused).collect(),
        }
    }
}

impl Need {
    fn new(need: &need::Need, effective: Option<Capabilities>) -> Self {
        let missing =
            |effective| need::missing(need.capabilities, effective).map(Capability::name).collect();
        Self {
            tier: need.tier.map(Tier::name),
            gives: need.gives,
            capabilities: need.capabilities.iter().map(|capability| capability.name()).collect(),
            missing: effective.map(missing),
            also: need.also,
        }
    }
}
