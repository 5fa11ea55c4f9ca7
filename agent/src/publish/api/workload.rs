//! Where a process belongs, as JSON.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::input;

/// Where the owner belongs, as far as its cgroup and the node's files tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Workload {
    /// The systemd unit.
    pub unit: Option<String>,
    /// The container's id.
    pub container_id: Option<String>,
    /// The pod's UID.
    pub pod_uid: Option<String>,
    /// The pod's Kubernetes namespace.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The container's name.
    pub container: Option<String>,
}

impl Workload {
    pub(super) fn new(workload: &input::Workload) -> Self {
        let text = |known: &Option<Arc<str>>| known.as_deref().map(str::to_owned);
        Self {
            unit: text(&workload.unit),
            container_id: text(&workload.container_id),
            pod_uid: text(&workload.pod_uid),
            namespace: text(&workload.namespace),
            pod: text(&workload.pod),
            container: text(&workload.container),
        }
    }
}
