//! The JSON of `/api/v1` and of `-o json`: the stable form of a snapshot.
//!
//! In: [`Snapshot`]. Out: types with serde and JSON Schema (docs/schema). Keys are snake_case,
//! units base units. What is not known is null, and the `absent` map beside it says why, by the
//! field's name. Fields are added freely; a change of meaning raises [`SCHEMA_VERSION`].
//! Long because it is a flat list of types.

mod alert;
mod check;
mod duration;
mod event;
mod explanation;
mod listener;
mod namespace;
mod threads;
mod timeline;
mod udp;
mod workload;

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    alert::{Alert, Alerts, Unknown, Untold},
    check::{Check, Checked, Counts, Finding, Status},
    duration::Durations,
    event::{Event, Task},
    explanation::{Explained, Explanation, Section},
    listener::{Aborted, Connections, DropsByReason, Listener, Member, RatesPerSecond, address},
    namespace::{Namespace, PortUse, Sockets, Table},
    threads::{ThreadGroup, Threads},
    timeline::{Changed, Timeline},
    udp::UdpListener,
    workload::Workload,
};
use super::metrics::{COMMIT, call};
use crate::{
    errno::Errno,
    id::Pid,
    input::{self, Absent, ErrorCounts, Known},
    model::snapshot::{self, Snapshot},
    time::Nanos,
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
    /// A recording: it was then.
    Recording,
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
    /// Bound UDP sockets.
    pub udp: Vec<UdpListener>,
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
    /// Time until no descriptor is left, as they grow; null while they do not grow.
    pub fds_exhausted_in_seconds: Option<f64>,
    /// What they are; null below half of the limit.
    pub fd_kinds: Option<FdKinds>,
    /// What its threads did when last looked at, at most a minute ago; null: nobody had a reason to.
    pub threads: Option<Threads>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// Descriptors by what they refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdKinds {
    /// Sockets.
    pub sockets: u64,
    /// Pipes.
    pub pipes: u64,
    /// Files, directories and devices.
    pub files: u64,
    /// What has no name: epoll, eventfd, timers and the like.
    pub others: u64,
    /// Whether there are more than were looked at.
    pub partial: bool,
}

/// Host totals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Open files.
    pub open_fds: Option<u64>,
    /// Most open files.
    pub max_fds: Option<u64>,
    /// Memory that TCP's buffers hold, in whole pages.
    pub tcp_memory_bytes: Option<u64>,
    /// Its limits.
    pub tcp_memory_limits: Option<TcpMemoryLimits>,
    /// TCP sockets that no descriptor refers to and that are not closed.
    pub tcp_orphans: Option<u64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// Limits of the memory of TCP's buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpMemoryLimits {
    /// Below, nothing is restrained.
    pub low_bytes: u64,
    /// Above, the kernel saves memory until it is below `low_bytes` again.
    pub pressure_bytes: u64,
    /// Above, nothing is allocated.
    pub high_bytes: u64,
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
            interval_seconds: snapshot.interval.ok().map(Nanos::as_seconds),
            listeners: listeners.map(|l| Listener::new(l, snapshot)).collect(),
        }
    }
}

impl SnapshotDocument {
    /// All of a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot, source: Source) -> Self {
        let (processes, namespaces) = (snapshot.processes.keys(), snapshot.namespaces.iter());
        Self {
            listeners: Listeners::new(snapshot, source),
            namespaces: namespaces.map(|it| Namespace::new(it, snapshot.at)).collect(),
            udp: snapshot.udp.iter().map(UdpListener::new).collect(),
            processes: processes.map(|&pid| Process::new(pid, snapshot)).collect(),
            host: Host::new(&snapshot.host),
            errors: Errors::new(snapshot),
            hooks: snapshot.hooks.iter().map(Hook::new).collect(),
            agent: Agent::new(&snapshot.agent, snapshot.samples),
        }
    }
}

impl Process {
    fn new(pid: Pid, snapshot: &Snapshot) -> Self {
        let mut absent = AbsentFields::new();
        // it may have gone away before it could be read
        let process = snapshot.processes.get(&pid).ok_or(Absent::Unreadable);
        let threads = snapshot.threads.get(&pid).and_then(|threads| {
            let threads = threads.as_ref().map(|threads| Threads::new(threads, snapshot.at));
            known(&mut absent, "threads", threads.map_err(|why| *why))
        });
        let comm = process.map(|p| p.now.comm.to_string());
        let exhausted_in = process.and_then(|p| p.fds_exhausted_in).map(Nanos::as_seconds);
        Self {
            pid: pid.0,
            comm: known(&mut absent, "comm", comm),
            open_fds: known(&mut absent, "open_fds", process.and_then(|p| p.now.open_fds)),
            max_fds: known(&mut absent, "max_fds", process.and_then(|p| p.now.max_fds)),
            fds_exhausted_in_seconds: known(&mut absent, "fds_exhausted_in_seconds", exhausted_in),
            fd_kinds: process.ok().and_then(|p| p.now.fd_kinds).map(FdKinds::new),
            threads,
            absent,
        }
    }
}

impl FdKinds {
    fn new(kinds: input::FdKinds) -> Self {
        let input::FdKinds { sockets, pipes, files, others, is_partial: partial } = kinds;
        Self { sockets, pipes, files, others, partial }
    }
}

impl Host {
    fn new(host: &input::HostSample) -> Self {
        let mut absent = AbsentFields::new();
        let limits = host.tcp_memory_limits.map(|limits| TcpMemoryLimits {
            low_bytes: limits.low_bytes,
            pressure_bytes: limits.pressure_bytes,
            high_bytes: limits.high_bytes,
        });
        Self {
            open_fds: known(&mut absent, "open_fds", host.open_fds),
            max_fds: known(&mut absent, "max_fds", host.max_fds),
            tcp_memory_bytes: known(&mut absent, "tcp_memory_bytes", host.tcp_memory_bytes),
            tcp_memory_limits: known(&mut absent, "tcp_memory_limits", limits),
            tcp_orphans: known(&mut absent, "tcp_orphans", host.tcp_orphans),
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
