//! The records of the eBPF programs, and what else the programs count.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Absent, Known, ListenSocket};
use crate::{
    errno::Errno,
    histogram::Histogram,
    id::{Cookie, NetnsId, Pid, Slot},
    serial,
    time::Nanos,
};

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

/// The tracepoints of system calls, switched on for a few seconds to see why nobody accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloserLooks {
    /// How often.
    pub count: u64,
    /// Whether they are on.
    pub is_on: bool,
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
