//! One network namespace: its sockets, counters, sysctls, and the newest read of its table.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Known, ListenSocket, TableRead, UdpSocket};
use crate::id::NetnsId;

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
