//! What this machine lets eBPF programs do.
//!
//! In: files of /proc and /sys. Out: [`Machine`]. Cost: 1 ms, once, for `doctor`; no sample needs
//! it. Not here: whether a hook works, which only trying tells (`ebpf/`), and what follows from a
//! fact (cli/doctor).

use std::{fs, io};

use rustix::process::{Resource, getrlimit};
use thiserror::Error;

use crate::sources::ebpf::btf;

const STATUS: &str = "/proc/self/status";
const UID_MAP: &str = "/proc/self/uid_map";
const MOUNTS: &str = "/proc/self/mounts";
const RELEASE: &str = "/proc/sys/kernel/osrelease";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const LSM: &str = "/sys/kernel/security/lsm";
/// The kind of perf event that a kprobe is attached by; without it there is none
/// (`perf_tp_register`, kernel/events/core.c).
pub(super) const KPROBE: &str = "/sys/bus/event_source/devices/kprobe/type";

/// A fact, or why it is not known.
pub type Fact<T> = Result<T, Unknown>;

/// Why a fact is not known.
#[derive(Debug, Error)]
pub enum Unknown {
    /// The file is missing or forbidden.
    #[error("{path}")]
    Unreadable {
        /// Which one.
        path: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The file says something else than kernels do.
    #[error("{path}: got {got:?}, expected {expected}")]
    Unexpected {
        /// Which one.
        path: &'static str,
        /// Its beginning.
        got: String,
        /// What kernels write.
        expected: &'static str,
    },
    /// Nobody mounted the file system that would tell.
    #[error("{0} is not mounted")]
    NotMounted(&'static str),
}

/// What was found.
#[derive(Debug)]
pub struct Machine {
    /// `uname -r`
    pub kernel: Fact<String>,
    /// Size of the kernel's BTF in bytes; `None`: it has none.
    pub btf: Fact<Option<u64>>,
    /// Of this process.
    pub privileges: Fact<Privileges>,
    /// Whether this process is in the first user namespace: capabilities of another one do not
    /// count for bpf(2) (`bpf_token_capable`, kernel/bpf/token.c).
    pub initial_user_namespace: Fact<bool>,
    /// What the kernel keeps even from root.
    pub lockdown: Fact<Lockdown>,
    /// Security modules, in their order.
    pub lsm: Fact<Vec<String>>,
    /// Where tracefs is; `None`: not mounted.
    pub tracefs: Fact<Option<String>>,
    /// Which cgroups.
    pub cgroup: Fact<Cgroup>,
    /// Whether programs can be attached to kprobes.
    pub kprobes: Fact<bool>,
    /// `RLIMIT_MEMLOCK` in bytes, soft; `u64::MAX` is unlimited. Limits maps before 5.11.
    pub locked_memory_limit: u64,
    /// `kernel.unprivileged_bpf_disabled`
    pub unprivileged_bpf_disabled: Fact<i64>,
    /// `kernel.perf_event_paranoid`
    pub perf_event_paranoid: Fact<i64>,
    /// `net.core.bpf_jit_enable`; there in the first network namespace alone.
    pub bpf_jit_enable: Fact<i64>,
    /// `kernel.bpf_stats_enabled`
    pub bpf_stats_enabled: Fact<i64>,
}

/// What a process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// In force.
    pub effective: Capabilities,
    /// The most it could ever have.
    pub bounding: Capabilities,
    /// Whether a seccomp filter looks at its system calls.
    pub seccomp_filter: bool,
}

/// A set of capabilities, one bit for each (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Whether this one is in the set.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u64) != 0
    }

    /// Whether the set allows what this one allows: CAP_SYS_ADMIN stands for CAP_BPF and
    /// CAP_PERFMON (`bpf_capable`, `perfmon_capable`, include/linux/capability.h).
    #[must_use]
    pub const fn allows(self, capability: Capability) -> bool {
        let by_admin = matches!(capability, Capability::Bpf | Capability::Perfmon);
        self.has(capability) || by_admin && self.has(Capability::SysAdmin)
    }
}

/// The capabilities that something here needs; the value is the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Reads files and folders whatever their mode.
    DacReadSearch = 2,
    /// Configures the network.
    NetAdmin = 12,
    /// Looks into processes of others.
    SysPtrace = 19,
    /// Almost everything.
    SysAdmin = 21,
    /// Raises limits.
    SysResource = 24,
    /// Looks into the kernel; since 5.8.
    Perfmon = 38,
    /// Loads programs and makes maps; since 5.8.
    Bpf = 39,
}

impl Capability {
    /// All of them, the most wanted first.
    pub const ALL: [Self; 7] = [
        Self::Bpf,
        Self::Perfmon,
        Self::SysPtrace,
        Self::DacReadSearch,
        Self::SysAdmin,
        Self::NetAdmin,
        Self::SysResource,
    ];

    /// As capabilities(7) has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// kernel_lockdown(7)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Off, or this kernel does not have it.
    None,
    /// The kernel cannot be changed.
    Integrity,
    /// Nor read.
    Confidentiality,
}

impl Lockdown {
    /// The kernel's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
        }
    }
}

/// Which cgroup hierarchies are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// None.
    None,
    /// Controllers one by one.
    V1,
    /// Both.
    Hybrid,
    /// The unified one alone.
    V2,
}

impl Cgroup {
    /// In one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        }
    }
}

/// Looks at all of it.
#[must_use]
pub fn read() -> Machine {
    Machine {
        kernel: text(RELEASE).map(|text| text.trim().to_owned()),
        btf: read_btf(),
        privileges: text(STATUS).and_then(|text| parse_status(&text)),
        initial_user_namespace: text(UID_MAP).and_then(|text| parse_uid_map(&text)),
        lockdown: read_lockdown(),
        lsm: read_security(LSM).map(|text| parse_lsm(text.as_deref().unwrap_or_default())),
        tracefs: text(MOUNTS).map(|text| parse_tracefs(&text)),
        cgroup: text(MOUNTS).map(|text| parse_cgroup(&text)),
        kprobes: exists(KPROBE),
        locked_memory_limit: getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX),
        unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
        bpf_jit_enable: number("/proc/sys/net/core/bpf_jit_enable"),
        bpf_stats_enabled: number("/proc/sys/kernel/bpf_stats_enabled"),
    }
}

fn text(path: &'static str) -> Fact<String> {
    fs::read_to_string(path).map_err(|source| Unknown::Unreadable { path, source })
}

fn number(path: &'static str) -> Fact<i64> {
    let text = text(path)?;
    text.trim().parse().map_err(|_| unexpected(path, &text, "a whole number"))
}

fn exists(path: &'static str) -> Fact<bool> {
    fs::exists(path).map_err(|source| Unknown::Unreadable { path, source })
}

fn read_btf() -> Fact<Option<u64>> {
    match fs::metadata(btf::PATH) {
        Ok(file) => Ok(Some(file.len())),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Unknown::Unreadable { path: btf::PATH, source }),
    }
}

/// A file of securityfs. `None`: the kernel is without the module that makes it.
fn read_security(path: &'static str) -> Fact<Option<String>> {
    match text(path) {
        Ok(text) => Ok(Some(text)),
        Err(Unknown::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let is_mounted = mounts(&text(MOUNTS)?).any(|(_, kind)| kind == "securityfs");
            if is_mounted { Ok(None) } else { Err(Unknown::NotMounted("securityfs")) }
        }
        Err(err) => Err(err),
    }
}

fn read_lockdown() -> Fact<Lockdown> {
    read_security(LOCKDOWN)?.map_or(Ok(Lockdown::None), |text| parse_lockdown(&text))
}

/// `proc_pid_status` (fs/proc/array.c)
fn parse_status(text: &str) -> Fact<Privileges> {
    let value = |key| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let set = |key| {
        let set = value(key).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        set.map(Capabilities).ok_or_else(|| {
            unexpected(STATUS, value(key).unwrap_or_default(), "CapEff and CapBnd in hexadecimal")
        })
    };
    Ok(Privileges {
        effective: set("CapEff:")?,
        bounding: set("CapBnd:")?,
        // SECCOMP_MODE_FILTER; without the line the kernel has no seccomp
        seccomp_filter: value("Seccomp:") == Some("2"),
    })
}

/// The first user namespace maps every id to itself (`init_user_ns`, kernel/user.c).
fn parse_uid_map(text: &str) -> Fact<bool> {
    let lines: Result<Vec<Vec<u32>>, _> = text
        .lines()
        .map(|line| line.split_whitespace().map(str::parse).collect::<Result<_, _>>())
        .collect();
    match lines {
        Ok(lines) => Ok(lines == [[0, 0, u32::MAX]]),
        Err(_) => Err(unexpected(UID_MAP, text, "whole numbers")),
    }
}

/// `none [integrity] confidentiality` (`lockdown_read`, security/lockdown/lockdown.c)
fn parse_lockdown(text: &str) -> Fact<Lockdown> {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match word {
        Some("none") => Ok(Lockdown::None),
        Some("integrity") => Ok(Lockdown::Integrity),
        Some("confidentiality") => Ok(Lockdown::Confidentiality),
        Some(_) | None => Err(unexpected(LOCKDOWN, text, "a level in brackets")),
    }
}

/// `lockdown,capability,bpf` (`lsm_read`, security/inode.c)
fn parse_lsm(text: &str) -> Vec<String> {
    text.trim().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Mount point and type of each line; spaces and the like are octal in them, as `\040`
/// (`mangle`, fs/proc_namespace.c).
fn mounts(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    })
}

/// debugfs has it below it, mounted when somebody looks (`trace_automount`, kernel/trace/trace.c).
fn parse_tracefs(text: &str) -> Option<String> {
    let find = |wanted| mounts(text).find(|(_, kind)| *kind == wanted).map(|(point, _)| point);
    let below = || find("debugfs").map(|point| format!("{point}/tracing"));
    find("tracefs").map(str::to_owned).or_else(below)
}

fn parse_cgroup(text: &str) -> Cgroup {
    let has = |wanted| mounts(text).any(|(_, kind)| kind == wanted);
    match (has("cgroup"), has("cgroup2")) {
        (false, false) => Cgroup::None,
        (true, false) => Cgroup::V1,
        (true, true) => Cgroup::Hybrid,
        (false, true) => Cgroup::V2,
    }
}

fn unexpected(path: &'static str, got: &str, expected: &'static str) -> Unknown {
    Unknown::Unexpected { path, got: got.chars().take(60).collect(), expected }
}

#[cfg(test)]
mod tests;
