//! Totals of the whole host.

use serde::{Deserialize, Serialize};

use super::Known;

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
