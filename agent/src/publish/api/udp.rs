//! A bound UDP socket, as JSON.

use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AbsentFields, Workload, known};
use crate::model::snapshot;

/// A bound, not connected UDP socket, or those that share its address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UdpListener {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Local address.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// Name of the owner with the lowest pid; null: not known.
    pub comm: Option<String>,
    /// Where that process belongs.
    #[serde(flatten)]
    pub workload: Workload,
    /// Number of sockets.
    pub sockets: usize,
    /// Memory of the datagrams that wait, with the kernel's overhead; summed.
    pub queue_bytes: u64,
    /// How much of it there may be; summed.
    pub limit_bytes: u64,
    /// Datagrams dropped, those from before the agent included.
    pub drops: Option<u64>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

impl UdpListener {
    pub(super) fn new(socket: &snapshot::UdpListener) -> Self {
        let mut absent = AbsentFields::new();
        Self {
            netns: socket.key.netns.0,
            addr: socket.key.addr,
            port: socket.key.port,
            comm: socket.comm.as_deref().map(str::to_owned),
            workload: Workload::new(&socket.workload),
            sockets: socket.sockets,
            queue_bytes: socket.queue_bytes,
            limit_bytes: socket.limit_bytes,
            drops: known(&mut absent, "drops", socket.drops),
            absent,
        }
    }
}
