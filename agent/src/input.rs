//! Ground facts: what one pass over the sources found, before anything is concluded from it.
//! Others name each type as `input::X`: the modules below are private, this is their one face.

mod absent;
mod hook;
mod host;
mod namespace;
mod process;
mod slot;
mod socket;
mod table;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    absent::{Absent, Known},
    hook::{Hook, Refused, Tier},
    host::{HostSample, TcpMemoryLimits},
    namespace::{NamespaceSample, Sockstat},
    process::{FdKinds, ProcessSample, Workload},
    slot::{CallErrors, CloserLooks, ErrorCounts, HookedDrops, SlotRecord, SlotsSample},
    socket::{ListenSocket, UdpSocket},
    table::{Connections, Destination, Table, TableRead},
};
use crate::{
    id::{Inode, Pid},
    threads::Threads,
    time::{Monotonic, Nanos, UnixTime},
};

/// One pass over the sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When the pass began.
    pub at: Monotonic,
    /// The same by the wall clock.
    pub unix_time: UnixTime,
    /// Each namespace that was looked at.
    pub namespaces: Vec<NamespaceSample>,
    /// The records of the eBPF programs, of all namespaces.
    pub slots: Known<SlotsSample>,
    /// Who holds listening sockets, by the socket's inode. Sockets whose holders are not known are
    /// missing. Shared: changes only when listeners or owners change.
    pub owners: Arc<BTreeMap<Inode, Vec<Pid>>>,
    /// The processes in `owners`.
    pub processes: BTreeMap<Pid, ProcessSample>,
    /// What the threads of processes did that somebody asked for. One that has ended is missing.
    pub threads: BTreeMap<Pid, Known<Threads>>,
    /// Host totals.
    pub host: HostSample,
    /// What could not be read, and why, by source.
    pub degraded: BTreeMap<&'static str, String>,
    /// How long each source took.
    pub durations: Vec<(Source, Nanos)>,
}

/// What can take time in a pass, the `source` label of `backlogd_sample_duration_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The listen dumps.
    SockDiag,
    /// The slots and the iterator.
    Ebpf,
    /// `/proc/net` counters and sysctls.
    Netstat,
    /// Owners and their descriptors.
    Process,
    /// The whole pass.
    Total,
}

impl Source {
    /// The label's value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockDiag => "sock_diag",
            Self::Ebpf => "ebpf",
            Self::Netstat => "netstat",
            Self::Process => "process",
            Self::Total => "total",
        }
    }
}
