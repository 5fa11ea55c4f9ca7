//! The JSON of `/api/v1` and of `-o json`: the stable form of a snapshot.
//!
//! In: [`Snapshot`]. Out: types with serde and JSON Schema (docs/schema). Keys are snake_case,
//! units base units. What is not known is null, and the `absent` map beside it says why, by the
//! field's name. Fields are added freely; a change of meaning raises [`SCHEMA_VERSION`].
//! Long because it is a flat list of types.

mod duration;
mod event;
mod listener;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    duration::Durations,
    event::{Event, Task},
    listener::{Aborted, DropsByReason, Listener, Member, RatesPerSecond, address},
};
use super::metrics::{COMMIT, call};
use crate::{
    errno::Errno,
    id::Pid,
    input::{self, Absent, ErrorCounts, Known},
    model::snapshot::{self, Snapshot},
};

/// The value of `schema_version`.
pub const SCHEMA_VERSION: u32 = 1;

/// Why fields are null, by name; `a.b` is field b of object a.
pub type AbsentFields = BTreeMap<String, Absent>;

/// Who took the sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The running daemon.
    Daemon,
    /// The command itself.
    Standalone,
}

/// `/api/v1/listeners`: the listeners of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Listeners {
    /// Version of this form.
    pub schema_version: u32,
    /// When the sample was taken, in seconds since 1970.
    pub unix_time_seconds: f64,
    /// Who took it.
    pub source: Source,
    /// Time since the previous sample; null in the first.
    pub interval_seconds: Option<f64>,
    /// By netns, address and port.
    pub listeners: Vec<Listener>,
}

/// `/api/v1/snapshot`: all that is known of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotDocument {
    /// The listeners, and which sample this is.
    #[serde(flatten)]
    pub listeners: Listeners,
    /// Network namespaces.
    pub namespaces: Vec<Namespace>,
    /// Processes that own listeners.
    pub processes: Vec<Process>,
    /// Host totals.
    pub host: Host,
    /// System calls that failed, since the agent started.
    pub errors: Errors,
    /// How each event is obtained on this kernel.
    pub hooks: Vec<Hook>,
    /// The agent itself.
    pub agent: Agent,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Namespace {
    /// Its inode number.
    pub netns: u32,
    /// The kernel's own counters, by field.
    pub netstat: Option<BTreeMap<String, u64>>,
    /// Sysctls that explain a limit, by short name.
    pub sysctls: BTreeMap<String, i64>,
    /// Handshakes that the kernel counted and no program saw.
    pub lost_in_kernel: Option<u64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// A process that owns listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its process id, in the agent's PID namespace.
    pub pid: u32,
    /// Its name; null when it went away before it could be read.
    pub comm: Option<String>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// Soft limit of descriptors; 18446744073709551615 is unlimited.
    pub max_fds: Option<u64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// Host totals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Open files.
    pub open_fds: Option<u64>,
    /// Most open files.
    pub max_fds: Option<u64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// How an event is obtained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    pub refused: Vec<RefusedHook>,
}

/// A hook that this kernel did not take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedHook {
    /// `fentry`, `kprobe` or `tracepoint`.
    pub tier: String,
    /// The program.
    pub program: String,
    /// What the kernel answered, or what it lacks.
    pub why: String,
}

/// System calls that failed; null where no hook sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Errors {
    /// accept, without `EAGAIN`.
    pub accept: Option<Vec<FailedCalls>>,
    /// accept that found an empty queue (`EAGAIN`), by name of the calling task.
    pub accept_would_block: Option<BTreeMap<String, u64>>,
    /// connect on TCP sockets.
    pub connect: Option<Vec<FailedCalls>>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// Failed calls of one task name with one error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailedCalls {
    /// Name of the calling task.
    pub comm: String,
    /// The error's name, or its number.
    pub errno: String,
    /// How many.
    pub count: u64,
}

/// The agent's account of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// The commit it was built from, or `unknown`.
    pub commit: String,
    /// Samples since it started.
    pub samples: u64,
    /// Listener records in use.
    pub slots_used: Option<u32>,
    /// Listener records there are.
    pub slots_capacity: Option<u32>,
    /// Listening sockets that found no record.
    pub no_slot: Option<u64>,
    /// Events of a record that had been given away.
    pub stale: Option<u64>,
    /// Entries that a map of the programs had no room for.
    pub map_full: Option<u64>,
    /// Runs that the kernel skipped.
    pub missed: Vec<Missed>,
    /// Runs of each program; empty while the kernel's BPF statistics are off.
    pub runs: Vec<Run>,
    /// How long each source took, by source.
    pub durations: BTreeMap<String, Histogram>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// Runs of a program that the kernel skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Missed {
    /// The event.
    pub event: String,
    /// The program.
    pub program: String,
    /// How many.
    pub count: u64,
}

/// Runs of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The program.
    pub program: String,
    /// How many.
    pub count: u64,
    /// Time spent in it.
    pub seconds: f64,
}

/// Observations by size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum_seconds: f64,
    /// How many were at most so long; not cumulative, the last bound is null: no bound.
    pub buckets: Vec<Bucket>,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bucket {
    /// Its upper bound; null: none.
    pub le_seconds: Option<f64>,
    /// Observations above the previous bound and not above this one.
    pub count: u64,
}

impl Listeners {
    /// The listeners of a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot, source: Source) -> Self {
        let listeners = snapshot.listeners.iter();
        Self {
            schema_version: SCHEMA_VERSION,
            unix_time_seconds: Duration::from_nanos(snapshot.unix_time.0).as_secs_f64(),
            source,
            interval_seconds: snapshot.interval.ok().map(crate::time::Nanos::as_seconds),
            listeners: listeners.map(|l| Listener::new(l, &snapshot.processes)).collect(),
        }
    }
}

impl SnapshotDocument {
    /// All of a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot, source: Source) -> Self {
        let processes = snapshot.processes.iter();
        Self {
            listeners: Listeners::new(snapshot, source),
            namespaces: snapshot.namespaces.iter().map(Namespace::new).collect(),
            processes: processes.map(|(&pid, p)| Process::new(pid, Some(&p.now))).collect(),
            host: Host::new(&snapshot.host),
            errors: Errors::new(snapshot),
            hooks: snapshot.hooks.iter().map(Hook::new).collect(),
            agent: Agent::new(&snapshot.agent, snapshot.samples),
        }
    }
}

impl Namespace {
    fn new(namespace: &snapshot::Namespace) -> Self {
        let mut absent = AbsentFields::new();
        let owned = |fields: &Arc<BTreeMap<&'static str, u64>>| {
            fields.iter().map(|(&name, &n)| (name.to_owned(), n)).collect()
        };
        Self {
            netns: namespace.netns.0,
            netstat: known(&mut absent, "netstat", namespace.netstat.as_ref().map_err(|&why| why))
                .map(owned),
            sysctls: namespace.sysctls.iter().map(|(&name, &n)| (name.to_owned(), n)).collect(),
            lost_in_kernel: known(&mut absent, "lost_in_kernel", namespace.lost_in_kernel),
            absent,
        }
    }
}

impl Process {
    /// `None`: it went away before it could be read.
    fn new(pid: Pid, process: Option<&input::ProcessSample>) -> Self {
        let mut absent = AbsentFields::new();
        let gone = Err(Absent::Unreadable);
        let (open_fds, max_fds) = process.map_or((gone, gone), |p| (p.open_fds, p.max_fds));
        let comm = process.map(|p| p.comm.to_string()).ok_or(Absent::Unreadable);
        Self {
            pid: pid.0,
            comm: known(&mut absent, "comm", comm),
            open_fds: known(&mut absent, "open_fds", open_fds),
            max_fds: known(&mut absent, "max_fds", max_fds),
            absent,
        }
    }
}

impl Host {
    fn new(host: &input::HostSample) -> Self {
        let mut absent = AbsentFields::new();
        Self {
            open_fds: known(&mut absent, "open_fds", host.open_fds),
            max_fds: known(&mut absent, "max_fds", host.max_fds),
            absent,
        }
    }
}

impl Errors {
    fn new(snapshot: &Snapshot) -> Self {
        let mut absent = AbsentFields::new();
        let accept = call::failed(snapshot, |errors| &errors.accept);
        let would_block = accept.map(|counts| {
            let counts = counts.iter().filter(|((_, errno), _)| *errno == Errno::AGAIN);
            counts.map(|((comm, _), &n)| (comm.to_string(), n)).collect()
        });
        let connect = call::failed(snapshot, |errors| &errors.connect);
        Self {
            accept: known(&mut absent, "accept", accept.map(FailedCalls::list)),
            accept_would_block: known(&mut absent, "accept_would_block", would_block),
            connect: known(&mut absent, "connect", connect.map(FailedCalls::list)),
            absent,
        }
    }
}

impl FailedCalls {
    fn list(counts: &ErrorCounts) -> Vec<Self> {
        let errors = counts.iter().filter(|((_, errno), _)| *errno != Errno::AGAIN);
        let calls = errors.map(|((comm, errno), &count)| Self {
            comm: comm.to_string(),
            errno: errno.to_string(),
            count,
        });
        calls.collect()
    }
}

impl Hook {
    fn new(hook: &input::Hook) -> Self {
        let refused = hook.refused.iter().map(|refused| RefusedHook {
            tier: refused.tier.name().to_owned(),
            program: refused.program.to_owned(),
            why: refused.why.to_string(),
        });
        Self {
            event: hook.event.to_owned(),
            tier: hook.tier.name().to_owned(),
            program: hook.program.to_owned(),
            why: hook.why.to_string(),
            refused: refused.collect(),
        }
    }
}

impl Agent {
    fn new(agent: &snapshot::Agent, samples: u64) -> Self {
        let mut absent = AbsentFields::new();
        let missed = agent.missed.iter().map(|&(event, program, count)| Missed {
            event: event.to_owned(),
            program: program.to_owned(),
            count,
        });
        let runs = agent.runs.iter().map(|&(program, count, time)| Run {
            program: program.to_owned(),
            count,
            seconds: time.as_seconds(),
        });
        let durations = agent.durations.iter();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.to_owned(),
            samples,
            slots_used: known(&mut absent, "slots_used", agent.slots.map(|(used, _)| used)),
            slots_capacity: known(&mut absent, "slots_capacity", agent.slots.map(|(_, all)| all)),
            no_slot: known(&mut absent, "no_slot", agent.no_slot),
            stale: known(&mut absent, "stale", agent.stale),
            map_full: known(&mut absent, "map_full", agent.map_full),
            missed: missed.collect(),
            runs: runs.collect(),
            durations: durations.map(|(s, d)| (s.name().to_owned(), Histogram::new(d))).collect(),
            absent,
        }
    }
}

impl Histogram {
    fn new(durations: &snapshot::Durations) -> Self {
        let bounds =
            snapshot::Durations::BOUNDS.iter().map(|bound| Some(bound.as_seconds())).chain([None]);
        let buckets = bounds.zip(durations.buckets);
        Self {
            count: durations.buckets.iter().sum(),
            sum_seconds: durations.sum.as_seconds(),
            buckets: buckets.map(|(le_seconds, count)| Bucket { le_seconds, count }).collect(),
        }
    }
}

/// The value; if there is none, the reason goes to `absent`.
fn known<T>(absent: &mut AbsentFields, field: &str, value: Known<T>) -> Option<T> {
    value.map_err(|why| absent.insert(field.to_owned(), why)).ok()
}
