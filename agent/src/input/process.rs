//! A process that owns a listening socket: its descriptors, and where it belongs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Known;

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
