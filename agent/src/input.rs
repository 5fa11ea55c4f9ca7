//! Ground facts: what one pass over the sources found, before anything is concluded from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    errno::Errno,
    histogram::Histogram,
    id::{Cookie, Inode, NetnsId, Pid, Slot},
    intern::{self, Name},
    serial,
    threads::Threads,
    time::{Monotonic, Nanos, UnixTime},
};

/// Why a fact is missing. Unknown is a value; it is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// No eBPF program runs: switched off, not permitted, or refused by this kernel.
    NoEbpf,
    /// The programs run, but this listener found no free slot.
    NoSlot,
    /// This kernel does not give it.
    NotOnThisKernel,
    /// The agent may not read it.
    NotPermitted,
    /// It went away, or could not be read this time.
    Unreadable,
    /// Needs more history than there is so far.
    TooEarly,
    /// Part of what it is computed from happened before the agent started.
    BeforeStart,
    /// The configuration does not want it.
    SwitchedOff,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEbpf => "no eBPF program runs",
            Self::NoSlot => "no free slot for this listener",
            Self::NotOnThisKernel => "this kernel does not give it",
            Self::NotPermitted => "not permitted",
            Self::Unreadable => "could not be read",
            Self::TooEarly => "not enough history so far",
            Self::BeforeStart => "began before the agent",
            Self::SwitchedOff => "switched off by the configuration",
        })
    }
}

/// A fact, or why there is none.
pub type Known<T> = Result<T, Absent>;

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

/// One network namespace at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct NamespaceSample {
    /// Which one.
    pub netns: NetnsId,
    /// Whether it was made while the agent ran: all that its counters show happened since.
    pub is_new: bool,
    /// Its listening TCP sockets, IPv4 and IPv6.
    pub sockets: Known<Vec<ListenSocket>>,
    /// `Tcp: PassiveOpens`, read before the slots were.
    pub passive_opens: Known<u64>,
    /// The same, read after the slots; only in a namespace's first sample.
    pub passive_opens_after: Option<u64>,
    /// The fields of `/proc/net/netstat` and `snmp` that are published, by name, read after the
    /// sockets.
    pub netstat: Known<Arc<BTreeMap<&'static str, u64>>>,
    /// The sysctls that explain a limit, by short name. A pair has `_low` and `_high` entries.
    pub sysctls: Arc<BTreeMap<&'static str, i64>>,
    /// Local ports that connect(2) does not choose, `ip_local_reserved_ports`.
    pub reserved_ports: Arc<[RangeInclusive<u16>]>,
    /// Connections in ESTABLISHED or CLOSE_WAIT, `Tcp: CurrEstab`.
    pub connected: Known<u64>,
    /// Sockets by protocol, and TIME_WAIT.
    pub sockstat: Known<Sockstat>,
    /// The newest read of its table of sockets. Shared: changes with the next read.
    pub table: Known<Arc<TableRead>>,
    /// Its bound UDP sockets, as last read. Shared likewise.
    pub udp: Known<Arc<Vec<UdpSocket>>>,
}

impl NamespaceSample {
    /// The ports that connect(2) chooses from, `ip_local_port_range`. `None`: not read.
    #[must_use]
    pub fn local_ports(&self) -> Option<RangeInclusive<u16>> {
        let end = |name| u16::try_from(*self.sysctls.get(name)?).ok();
        Some(end("ip_local_port_range_low")?..=end("ip_local_port_range_high")?)
    }
}

/// One read of a namespace's table of TCP sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableRead {
    /// When it began.
    pub at: Monotonic,
    /// What it found.
    pub table: Table,
}

/// A socket in state LISTEN, as sock_diag shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenSocket {
    /// Names the socket for good.
    pub cookie: Cookie,
    /// Its inode; 0 for a socket that no descriptor refers to.
    pub inode: Inode,
    /// Local address.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// `IPV6_V6ONLY`; false on an IPv4 socket.
    pub v6only: bool,
    /// Connections that wait for accept(2): `idiag_rqueue` (`tcp_diag_get_info`,
    /// net/ipv4/tcp_diag.c). Range `0..=limit + 1`.
    pub length: u32,
    /// The accept-queue limit, `sk_max_ack_backlog`: `idiag_wqueue`.
    pub limit: u32,
    /// `sk_drops`, from SKMEMINFO. Wraps at 2^32.
    pub drops: Known<u32>,
}

/// The TCP sockets of a namespace that do not listen, counted: a read of the whole table.
///
/// The kernel walks its table while sockets move in it, so that one which changes meanwhile may be
/// missing or come twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// How long the read took.
    pub took: Nanos,
    /// Rows that were read.
    pub rows: u64,
    /// Whether it was stopped at its budget, or destinations found no room: every number is then a
    /// lower bound.
    pub is_partial: bool,
    /// Sockets by state, by the names that `ss` uses, with `_`: all states but LISTEN, also those
    /// without a socket. A TIME_WAIT socket whose peer has not closed is in `fin_wait_2`, as the
    /// kernel shows it.
    #[serde(deserialize_with = "intern::by_name")]
    pub states: BTreeMap<Name, u64>,
    /// By local address and port of a listener; each listener asked for, also without connections.
    #[serde(with = "serial::pairs")]
    pub listeners: BTreeMap<(IpAddr, u16), Connections>,
    /// TIME_WAIT sockets whose local port is no listener's.
    pub time_wait_ephemeral: u64,
    /// Where connections that began here lead, by local ports in use, most first.
    pub destinations: Vec<Destination>,
    /// Destinations in all, before that list was cut.
    pub n_destinations: u64,
    /// Rows of further destinations, which found no room.
    pub unplaced: u64,
    /// Ports of the local range that some socket is bound to which neither listens nor is connected.
    /// Empty where the kernel was not asked; before Linux 6.8 it does not tell.
    pub bound: BTreeSet<u16>,
}

/// Connections of one listener in a [`Table`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Accepted: a descriptor stands behind them. In any state.
    pub accepted: u64,
    /// Accepted, and the peer has closed: CLOSE_WAIT.
    pub close_wait: u64,
    /// Closed by the owner, and the peer has not closed, or not acknowledged: FIN_WAIT_1,
    /// FIN_WAIT_2, CLOSING or LAST_ACK without a descriptor.
    pub fin_wait: u64,
    /// Established, or already closed by the peer, without a descriptor: they wait for accept(2).
    pub queued: u64,
    /// In TIME_WAIT.
    pub time_wait: u64,
    /// Bytes that the owners of the accepted ones have not read. The end of a stream that nobody has
    /// seen counts as one (`tcp_diag_get_info`, net/ipv4/tcp_diag.c).
    pub unread_bytes: u64,
    /// The same of the connection with the most.
    pub unread_bytes_max: u64,
    /// Bytes that the peers of the accepted ones have not acknowledged, sent or not. The end of a
    /// stream counts as one.
    pub unsent_bytes: u64,
    /// The same of the connection with the most.
    pub unsent_bytes_max: u64,
}

/// Local ports in use towards one destination from one source address. IPv4 in either kind of
/// socket is IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// Local address.
    pub source: IpAddr,
    /// Remote address.
    pub addr: IpAddr,
    /// Remote port.
    pub port: u16,
    /// Local ports with a connection in any state but TIME_WAIT.
    pub open: u64,
    /// Local ports in TIME_WAIT.
    pub time_wait: u64,
    /// Of these, since more than a second: connect(2) may take them where `tcp_tw_reuse` allows it
    /// and the peer uses timestamps.
    pub time_wait_reusable: u64,
}

/// A bound UDP socket that is not connected, as sock_diag shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    /// Names the socket for good.
    pub cookie: Cookie,
    /// Its inode; 0 for a socket that no descriptor refers to.
    pub inode: Inode,
    /// Local address.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// Memory of the datagrams that wait to be received, with the kernel's overhead:
    /// `SK_MEMINFO_RMEM_ALLOC`.
    pub queue_bytes: u32,
    /// How much of it there may be (`SO_RCVBUF` as the kernel doubles it): `SK_MEMINFO_RCVBUF`.
    pub limit_bytes: u32,
    /// `sk_drops`. Wraps at 2^32.
    pub drops: Known<u32>,
}

/// What `/proc/net/sockstat` and `sockstat6` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockstat {
    /// IPv4 TCP sockets of the namespace that are connected or listen, without TIME_WAIT and SYN
    /// queues.
    pub tcp_inuse: u64,
    /// The same of IPv6; absent where the kernel has no IPv6.
    pub tcp6_inuse: Known<u64>,
    /// TIME_WAIT sockets of the namespace, IPv4 and IPv6, with those whose peer has not closed.
    pub time_wait: u64,
    /// TCP sockets that no descriptor refers to and that are not closed; of the whole host.
    pub orphans: u64,
    /// Pages that TCP buffers hold; of the whole host. Since 6.0 each processor keeps up to 1 MiB that
    /// is not told here (`sk_memory_allocated_add`, include/net/proto_memory.h).
    pub tcp_memory_pages: u64,
}

/// Limits of TCP's buffers, of the whole host: `tcp_mem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpMemoryLimits {
    /// Below this many bytes nothing is restrained.
    pub low_bytes: u64,
    /// Above, until it is below `low_bytes` again, the kernel saves memory.
    pub pressure_bytes: u64,
    /// Above, nothing is allocated.
    pub high_bytes: u64,
}

/// The slots that are in use.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotsSample {
    /// Read before the sockets, so that `established - length` never runs ahead.
    pub records: Vec<SlotRecord>,
    /// How long connections waited, of those accepted since the previous sample; none for a record
    /// that accepted none.
    pub waits: Vec<(Cookie, Histogram)>,
    /// From accept to destruction, of connections destroyed since the previous sample, likewise.
    pub durations: Vec<(Cookie, Histogram)>,
    /// How many slots there are.
    pub capacity: u32,
    /// Times that a listening socket asked for a slot in vain, since the programs started.
    pub no_slot: u64,
    /// Events of children whose slot had been given away.
    pub stale: u64,
    /// Handshakes that the first copy of the program was skipped for.
    pub second_copy: u64,
    /// Runs that the kernel skipped, since the programs started: event, program, count.
    pub missed: Vec<(&'static str, &'static str, u64)>,
    /// Run count and run time of each program; empty while the kernel's statistics are off.
    pub runs: Vec<(&'static str, u64, Nanos)>,
    /// accept(2) and connect(2) that failed, since the programs started.
    pub errors: CallErrors,
    /// Entries that a map of the programs had no room for, since they started.
    pub map_full: u64,
    /// See [`CloserLooks`]; absent where other hooks see as much.
    pub closer_looks: Known<CloserLooks>,
    /// Ends of connections that no program saw, and that a count of those that are there showed.
    pub corrections: Known<u64>,
}

/// The tracepoints of system calls, switched on for a few seconds to see why nobody accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloserLooks {
    /// How often.
    pub count: u64,
    /// Whether they are on.
    pub is_on: bool,
}

impl Default for SlotsSample {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            waits: Vec::new(),
            durations: Vec::new(),
            capacity: 0,
            no_slot: 0,
            stale: 0,
            second_copy: 0,
            missed: Vec::new(),
            runs: Vec::new(),
            errors: CallErrors::default(),
            map_full: 0,
            closer_looks: Err(Absent::NotOnThisKernel),
            corrections: Err(Absent::NotOnThisKernel),
        }
    }
}

/// System calls that failed, by the name of the task that called and the error.
pub type ErrorCounts = BTreeMap<(Arc<str>, Errno), u64>;

/// System calls that failed. A call is absent where no hook sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallErrors {
    /// accept(2) and its kin, `EAGAIN` among them.
    #[serde(with = "serial::known_pairs")]
    pub accept: Known<Arc<ErrorCounts>>,
    /// connect(2) on TCP sockets; `EINPROGRESS` is no error.
    #[serde(with = "serial::known_pairs")]
    pub connect: Known<Arc<ErrorCounts>>,
}

impl Default for CallErrors {
    fn default() -> Self {
        Self { accept: Err(Absent::NotOnThisKernel), connect: Err(Absent::NotOnThisKernel) }
    }
}

/// One record of the eBPF programs. Counters count since the slot was taken; which of them a hook
/// serves, the hooks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRecord {
    /// Where it is.
    pub slot: Slot,
    /// The listening socket.
    pub cookie: Cookie,
    /// Its namespace.
    pub netns: NetnsId,
    /// Local address.
    pub addr: IpAddr,
    /// Local port; 0 while nobody knows it.
    pub port: u16,
    /// Handshakes completed.
    pub established: u64,
    /// Of these, connections destroyed, accepted or not; those that no program saw included, as far
    /// as they were found out.
    pub closed: u64,
    /// Connections that were queued when the socket left LISTEN.
    pub discarded: u64,
    /// Connections reset while queued.
    pub resets: u64,
    /// Children that the kernel made and undid: in PassiveOpens, and no connections.
    pub undone: u64,
    /// Longest queue right after an enqueue since the previous sample; 0 when there was none.
    pub high_water: u32,
    /// Established and length as the newest enqueue saw them.
    pub last: (u64, u32),
    /// Connections that were queued when the slot was taken.
    pub base: u64,
    /// How many of `base` have no tag: their end is not in `closed`.
    pub untagged: u64,
    /// Connections that had been accepted and were open when the programs started; `None`: not
    /// looked for.
    pub found: Option<u64>,
    /// Returned by accept, without those of `base`.
    pub accepted: u64,
    /// SYNs that reached the listener.
    pub syns: u64,
    /// SYNs answered with a cookie.
    pub cookies: u64,
    /// Listen drops of which a hook told the reason.
    pub drops: HookedDrops,
    /// SYN-queue length when the sweep or the iterator came by in this pass; `None` when neither
    /// did.
    pub syn_queue: Option<u32>,
    /// The socket as the sweep saw it in this pass, after the counters were read; `None` when it
    /// does not listen, or no sweep came by.
    pub live: Option<ListenSocket>,
    /// The process that called listen(2), by its id in the first PID namespace. `None` for an
    /// adopted one.
    pub pid: Option<Pid>,
    /// `sk_drops` at the end; `None` while the socket lives.
    pub final_drops: Option<u32>,
    /// Whether the socket listened before the programs ran.
    pub adopted: bool,
    /// Name of the task that called listen(2). `None` for an adopted one.
    pub listened_by: Option<[u8; 16]>,
}

impl SlotRecord {
    /// Connections whose end is counted in `closed`.
    #[must_use]
    pub fn tagged(&self) -> u64 {
        self.established + self.found.unwrap_or(0) + (self.base - self.untagged)
    }
}

/// Listen drops by reason, as the hooks saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookedDrops {
    /// SYNs refused since the accept queue was full.
    pub full_syn: u64,
    /// Last ACKs refused since the accept queue was full.
    pub full_ack: u64,
    /// SYNs refused since the SYN queue was full.
    pub syn_queue_full: u64,
}

/// A process that owns a listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSample {
    /// `/proc/PID/comm`
    pub comm: Arc<str>,
    /// Where it belongs.
    pub workload: Arc<Workload>,
    /// Open descriptors.
    pub open_fds: Known<u64>,
    /// Soft limit of descriptors; `u64::MAX` is unlimited.
    pub max_fds: Known<u64>,
    /// What they are; looked at, now and then, from half of the limit on.
    pub fd_kinds: Option<FdKinds>,
}

/// The descriptors of a process, by what they refer to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    pub is_partial: bool,
}

/// Where a process belongs, as far as its cgroup tells. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The systemd unit: `nginx.service`, `session-3.scope`.
    pub unit: Option<Arc<str>>,
    /// The container's id, as its runtime names it: 64 hexadecimal digits.
    pub container_id: Option<Arc<str>>,
    /// The pod's UID.
    pub pod_uid: Option<Arc<str>>,
    /// The pod's Kubernetes namespace.
    pub namespace: Option<Arc<str>>,
    /// The pod's name.
    pub pod: Option<Arc<str>>,
    /// The container's name.
    pub container: Option<Arc<str>>,
}

/// Host totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSample {
    /// Open files: `/proc/sys/fs/file-nr`, first number.
    pub open_fds: Known<u64>,
    /// Most open files: `/proc/sys/fs/file-nr`, third number.
    pub max_fds: Known<u64>,
    /// The highest limit of descriptors that a process can be given, `fs.nr_open`.
    pub nr_open: Known<u64>,
    /// Bytes that TCP's buffers hold, in whole pages.
    pub tcp_memory_bytes: Known<u64>,
    /// Their limits, `net.ipv4.tcp_mem`.
    pub tcp_memory_limits: Known<TcpMemoryLimits>,
    /// TCP sockets that no descriptor refers to and that are not closed.
    pub tcp_orphans: Known<u64>,
}

/// By which hook an event is obtained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The event: `listen`, `established`, `enqueue`, `accept`, `close`, `drop`, …
    #[serde(deserialize_with = "intern::name")]
    pub event: Name,
    /// What serves it.
    pub tier: Tier,
    /// The program, or what stands for it; empty for none.
    #[serde(deserialize_with = "intern::name")]
    pub program: Name,
    /// What there is to say of it, beside what was refused; empty when there is nothing.
    pub why: Arc<str>,
    /// What was tried before, best first, and why it does not serve.
    pub refused: Arc<[Refused]>,
}

impl Hook {
    /// Why there is no better one, on one line: what was refused, and what there is to say.
    #[must_use]
    pub fn reasons(&self) -> String {
        let refused = self.refused.iter().map(|it| format!("{}: {}", it.tier.name(), it.why));
        let note = Some(self.why.to_string()).filter(|why| !why.is_empty());
        note.into_iter().chain(refused).collect::<Vec<_>>().join("; ")
    }
}

/// A hook that this kernel did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its kind.
    pub tier: Tier,
    /// The program.
    #[serde(deserialize_with = "intern::name")]
    pub program: Name,
    /// What the kernel answered, or what it lacks.
    pub why: Arc<str>,
}

/// How an event is obtained, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// fentry or fexit.
    Fentry,
    /// kprobe.
    Kprobe,
    /// A tracepoint or an iterator.
    Tracepoint,
    /// Computed from what is read each second.
    Sampled,
    /// Not at all.
    None,
}

impl Tier {
    /// The label's value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Sampled => "sampled",
            Self::None => "none",
        }
    }
}
