//! The immutable view that everything outward reads.
//!
//! Recordings hold it too (`recording`): a field that is added later needs a serde default, so that
//! files from before can be read (docs/recording.md).

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    histogram::Histogram,
    id::{ListenerKey, NetnsId, Pid},
    input::{
        Absent, CallErrors, CloserLooks, Connections, Destination, Hook, HostSample, Known,
        ProcessSample, Sockstat, Source, TableRead, Workload,
    },
    intern::{self, Name},
    serial::{self, Keyed},
    threads::Threads,
    time::{Monotonic, Nanos, UnixTime},
};

/// What this host looked like at one instant, and how each number was obtained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the sample was taken.
    pub at: Monotonic,
    /// The same by the wall clock.
    pub unix_time: UnixTime,
    /// Samples since the agent started, this one included.
    pub samples: u64,
    /// Time from the previous sample to this one; `TooEarly` in the first.
    pub interval: Known<Nanos>,
    /// Listeners, by key.
    #[serde(with = "serial::by_key")]
    pub listeners: Vec<Listener>,
    /// Namespaces, by id.
    #[serde(with = "serial::by_key")]
    pub namespaces: Vec<Namespace>,
    /// Bound UDP sockets of all namespaces, by key.
    #[serde(with = "serial::by_key")]
    pub udp: Vec<UdpListener>,
    /// Processes that own listeners, by pid.
    pub processes: BTreeMap<Pid, Process>,
    /// What the threads of those did that hold a queue which nobody serves, as last seen, at most a
    /// minute ago.
    pub threads: Arc<BTreeMap<Pid, Known<Threads>>>,
    /// Host totals.
    pub host: HostSample,
    /// accept(2) and connect(2) that failed, since the agent started.
    pub errors: Known<CallErrors>,
    /// How each event is obtained on this kernel.
    pub hooks: Arc<[Hook]>,
    /// What could not be read this time, and why, by source.
    #[serde(deserialize_with = "intern::by_name")]
    pub degraded: BTreeMap<Name, String>,
    /// The agent itself.
    pub agent: Agent,
}

/// One listener: a socket, or the sockets of a `SO_REUSEPORT` group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Its name.
    pub key: ListenerKey,
    /// `IPV6_V6ONLY`: tells `[::]` from `*`.
    pub v6only: bool,
    /// Its sockets. Empty: nobody listens there any more, and the counters are kept for a while.
    pub members: Vec<Member>,
    /// Processes that hold one of its sockets, lowest pid first. Empty: not known.
    pub owners: Arc<[Pid]>,
    /// Name of the lowest pid that owns it, also after it is gone. `None`: never known.
    pub comm: Option<Arc<str>>,
    /// Where that process belongs, also after it is gone.
    pub workload: Arc<Workload>,
    /// Connections that wait for accept(2), summed over the members.
    pub length: u64,
    /// The accept-queue limit, summed.
    pub limit: u64,
    /// Highest length in the window, the running second included. Summed over members (an upper
    /// bound for the group, whose members need not peak together).
    pub length_max: Known<u64>,
    /// length / limit of the worst member now; a limit of 0 counts as 1. `None`: no member.
    pub fill_ratio_max: Option<f64>,
    /// SYN-queue length, summed.
    pub syn_queue: Known<u64>,
    /// What only grows.
    pub counters: Counters,
    /// How long connections waited in the accept queue, counted at accept. As many as `accepted`
    /// where a hook sees accept, less those that were accepted or queued before the agent, speak
    /// MPTCP, or are accepted by io_uring where the tracepoints of system calls are the hook.
    pub accept_wait: Known<Arc<Histogram>>,
    /// From accept to destruction.
    pub connection_duration: Known<Arc<Histogram>>,
    /// Over the last samples.
    pub rates: Rates,
    /// Connections accepted and not destroyed.
    pub open: Known<u64>,
    /// Its connections in the newest read of its namespace's table; `TooEarly` before one.
    pub connections: Known<Connections>,
    /// Time since somebody accepted, as far as samples tell; absent before the first accept seen.
    pub since_accept: Known<Nanos>,
    /// Whether a member is stalled.
    pub stalled: Known<bool>,
}

impl Keyed for Listener {
    type Key = ListenerKey;

    fn key(&self) -> ListenerKey {
        self.key
    }
}

impl Keyed for UdpListener {
    type Key = ListenerKey;

    fn key(&self) -> ListenerKey {
        self.key
    }
}

impl Keyed for Namespace {
    type Key = NetnsId;

    fn key(&self) -> NetnsId {
        self.netns
    }
}

/// One socket of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The socket's cookie.
    pub cookie: crate::id::Cookie,
    /// Its inode.
    pub inode: crate::id::Inode,
    /// The lowest pid that holds it. `None`: not known.
    pub pid: Option<Pid>,
    /// Connections that wait, now.
    pub length: u32,
    /// Its limit.
    pub limit: u32,
    /// `sk_drops` now.
    pub socket_drops: Known<u32>,
    /// For how long connections have been waiting and nobody accepted any, as far as samples tell: since the
    /// first that had some in the queue after the last accept. 0 while somebody accepts. Absent where `accepted` is.
    pub waiting: Known<Nanos>,
    /// Whether that is for as long as the settings call stalled.
    pub stalled: Known<bool>,
}

/// Counters of a listener. They never go back while the agent runs, also over restarts of the
/// listening program.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Handshakes completed. Starts at the length that the agent found, so that
    /// established = accepted + aborted_listener_closed + length.
    pub established: Known<u64>,
    /// Of these, those from before the agent. Recordings of older agents do not have it.
    #[serde(default = "not_recorded")]
    pub found: Known<Found>,
    /// Returned by accept(2).
    pub accepted: Known<u64>,
    /// Accepted connections destroyed since.
    pub closed: Known<u64>,
    /// Thrown away unaccepted when the listener closed.
    pub aborted_listener_closed: Known<u64>,
    /// Reset by the peer while queued; a part of `accepted` or of the above.
    pub aborted_reset: Known<u64>,
    /// SYNs that reached the listener.
    pub syns: Known<u64>,
    /// SYNs answered with a cookie.
    pub syncookies: Known<u64>,
    /// Listen drops, of all reasons.
    pub drops: Known<u64>,
    /// The same by reason.
    pub drops_by: DropsBy,
    /// `sk_drops` of all its sockets so far, as it is.
    pub socket_drops: Known<u64>,
    /// Time in which a member was longer than its limit, by sampling.
    pub full: Nanos,
}

/// Connections that the agent found when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// They waited for accept.
    pub waiting: u64,
    /// They had been accepted, and were open: a part of `accepted`. 0 where nobody looked.
    pub open: u64,
}

fn not_recorded() -> Known<Found> {
    Err(Absent::Unreadable)
}

/// Listen drops by reason; together they are all. A reason that no hook tells is absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropsBy {
    /// SYNs refused since the accept queue was full.
    pub accept_queue_full_syn: Known<u64>,
    /// Last ACKs refused since the accept queue was full.
    pub accept_queue_full_ack: Known<u64>,
    /// SYNs refused since the SYN queue was full and no cookies are sent.
    pub syn_queue_full: Known<u64>,
    /// For none of these reasons; absent unless a hook tells each of them.
    pub other: Known<u64>,
    /// Reason not told; absent where `other` is not.
    pub unspecified: Known<u64>,
}

/// One bound UDP socket, or those that share its address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UdpListener {
    /// Its name.
    pub key: ListenerKey,
    /// Name of the lowest pid that owns it. `None`: not known.
    pub comm: Option<Arc<str>>,
    /// Where that process belongs.
    pub workload: Arc<Workload>,
    /// Sockets at this address.
    pub sockets: usize,
    /// Memory of the datagrams that wait, with the kernel's overhead; summed.
    pub queue_bytes: u64,
    /// How much of it there may be; summed.
    pub limit_bytes: u64,
    /// Datagrams dropped since the agent first saw the sockets, those from before included.
    pub drops: Known<u64>,
}

/// A process that owns a listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// As it is now.
    pub now: ProcessSample,
    /// When it will have no descriptor left if they go on growing as they do; `TooEarly` while they
    /// do not grow, or have not for long enough.
    pub fds_exhausted_in: Known<Nanos>,
}

/// Local ports in use towards one destination.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortUse {
    /// As the table shows it.
    pub destination: Destination,
    /// Ports that cannot be taken for another connection there: those open, and those in TIME_WAIT
    /// that the settings do not let be reused.
    pub used: u64,
    /// Ports that connect(2) can choose from: the range, without those reserved and those that
    /// a socket is bound to which listens or, as far as the kernel tells, is idle.
    pub usable: u64,
    /// When all will be used if they go on growing as they do; `TooEarly` as for descriptors.
    pub exhausted_in: Known<Nanos>,
}

impl PortUse {
    /// used / usable; 1 where nothing is usable.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.usable == 0 { 1.0 } else { self.used as f64 / self.usable as f64 }
    }
}

/// Events per second over the last ten seconds of samples, or what there is of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Handshakes completed.
    pub established: Known<f64>,
    /// Accepts.
    pub accepted: Known<f64>,
    /// Listen drops.
    pub drops: Known<f64>,
}

/// One network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Which one.
    pub netns: NetnsId,
    /// The kernel's own counters, by field.
    #[serde(deserialize_with = "intern::known_by_name")]
    pub netstat: Known<Arc<BTreeMap<Name, u64>>>,
    /// Sysctls that explain a limit, by short name.
    #[serde(deserialize_with = "intern::shared_by_name")]
    pub sysctls: Arc<BTreeMap<Name, i64>>,
    /// Local ports that connect(2) does not choose, `ip_local_reserved_ports`.
    pub reserved_ports: Arc<[RangeInclusive<u16>]>,
    /// Connections in ESTABLISHED or CLOSE_WAIT.
    pub connected: Known<u64>,
    /// Sockets by protocol, and TIME_WAIT.
    pub sockstat: Known<Sockstat>,
    /// The newest read of its table of sockets; `TooEarly` before the first.
    pub table: Known<Arc<TableRead>>,
    /// The destinations that use the most local ports, most first, by that read.
    pub ports: Known<Arc<[PortUse]>>,
    /// Handshakes that the kernel counted (PassiveOpens) and no program saw, as far as two
    /// samples in a row agree on it.
    pub lost_in_kernel: Known<u64>,
    /// Children that the kernel made and undid: in PassiveOpens, and no connections
    /// (`inet_ehash_nolisten`, net/ipv4/inet_hashtables.c). Two CPUs that work on one handshake
    /// make a child each.
    pub undone: Known<u64>,
}

/// The agent's account of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// How long each source took, since the start.
    pub durations: BTreeMap<Source, Durations>,
    /// Slots in use and all slots.
    pub slots: Known<(u32, u32)>,
    /// Times that a listening socket asked for a slot in vain.
    pub no_slot: Known<u64>,
    /// Events whose slot had been given away.
    pub stale: Known<u64>,
    /// Handshakes that only the second copy of the program saw.
    pub second_copy: Known<u64>,
    /// Entries that a map of the programs had no room for.
    pub map_full: Known<u64>,
    /// Times that the tracepoints of system calls were switched on for a closer look; absent where
    /// other hooks see as much.
    pub closer_looks: Known<CloserLooks>,
    /// Ends of connections that no program saw, and that a count of those that are there showed.
    pub corrections: Known<u64>,
    /// Runs that the kernel skipped: event, program, count.
    #[serde(deserialize_with = "intern::missed")]
    pub missed: Vec<(Name, Name, u64)>,
    /// Run count and run time of each program, while the kernel's statistics are on.
    #[serde(deserialize_with = "intern::runs")]
    pub runs: Vec<(Name, u64, Nanos)>,
}

/// Counts of durations by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durations {
    /// Per bucket of [`Durations::BOUNDS`], and one more for what is longer; not cumulative.
    pub buckets: [u64; Durations::BOUNDS.len() + 1],
    /// All of them together.
    pub sum: Nanos,
}

impl Durations {
    /// Upper bounds.
    pub const BOUNDS: [Nanos; 12] = [
        Nanos(50_000),
        Nanos(100_000),
        Nanos(250_000),
        Nanos(500_000),
        Nanos(1_000_000),
        Nanos(2_500_000),
        Nanos(5_000_000),
        Nanos(10_000_000),
        Nanos(25_000_000),
        Nanos(100_000_000),
        Nanos(500_000_000),
        Nanos(2_500_000_000),
    ];

    /// Adds one duration.
    pub fn observe(&mut self, duration: Nanos) {
        let bucket = Self::BOUNDS.iter().position(|&bound| duration <= bound);
        self.buckets[bucket.unwrap_or(Self::BOUNDS.len())] += 1;
        self.sum = self.sum + duration;
    }
}
