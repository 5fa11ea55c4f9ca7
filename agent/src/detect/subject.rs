//! What an alert is about, by name.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::{
    id::{ListenerKey, NetnsId, Pid},
    input::Workload,
};

/// What an alert is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Which kind of thing.
    pub kind: SubjectKind,
    /// Its name, for people: `nginx 0.0.0.0:443`.
    pub name: String,
    /// Its names, for programs. What is not known is left out.
    pub labels: Labels,
    /// Processes behind it, lowest first.
    pub pids: Arc<[Pid]>,
}

/// The kinds of things that are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    /// A listener.
    Listener,
    /// A listener of the configuration.
    Expected,
    /// A process that owns listeners.
    Process,
    /// Tasks of one name, by the system calls that fail for them.
    Caller,
    /// A destination of outbound connections.
    Destination,
    /// A bound UDP socket.
    Udp,
    /// A network namespace.
    Namespace,
    /// This host.
    Host,
    /// This agent.
    Agent,
}

impl SubjectKind {
    /// In JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Expected => "expected_listener",
            Self::Process => "process",
            Self::Caller => "caller",
            Self::Destination => "destination",
            Self::Udp => "udp",
            Self::Namespace => "namespace",
            Self::Host => "host",
            Self::Agent => "agent",
        }
    }

    /// What its subjects can be matched by in the configuration.
    #[must_use]
    pub const fn matched_by(self) -> &'static [&'static str] {
        match self {
            Self::Listener | Self::Udp => {
                &["addr", "port", "netns", "comm", "namespace", "pod", "container", "unit"]
            }
            Self::Expected => &["addr", "port", "namespace"],
            Self::Process => &["comm", "namespace", "pod", "container", "unit"],
            Self::Caller => &["comm"],
            Self::Destination => &["addr", "port", "netns"],
            Self::Namespace => &["netns"],
            Self::Host | Self::Agent => &[],
        }
    }
}

/// The labels that name a subject: those of a listener, and where a connection leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Inode number of the network namespace.
    pub netns: Option<NetnsId>,
    /// Local address.
    pub addr: Option<IpAddr>,
    /// Local port.
    pub port: Option<u16>,
    /// Name of the owner, or of the task.
    pub comm: Option<Arc<str>>,
    /// Kubernetes namespace.
    pub namespace: Option<Arc<str>>,
    /// Pod.
    pub pod: Option<Arc<str>>,
    /// Container.
    pub container: Option<Arc<str>>,
    /// Remote address.
    pub dst: Option<IpAddr>,
    /// Remote port.
    pub dst_port: Option<u16>,
}

impl Labels {
    /// Those of a listener or a UDP socket.
    pub(super) fn of(key: ListenerKey, comm: Option<&Arc<str>>, workload: &Workload) -> Self {
        Self {
            netns: Some(key.netns),
            addr: Some(key.addr),
            port: Some(key.port),
            comm: comm.cloned(),
            ..Self::of_workload(workload)
        }
    }

    /// Where a process belongs.
    pub(super) fn of_workload(workload: &Workload) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            pod: workload.pod.clone(),
            container: workload.container.clone(),
            ..Self::default()
        }
    }

    /// Names and values, in the order of the metrics' labels.
    #[must_use]
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let netns = self.netns.map(|netns| netns.0.to_string());
        let texts = [
            ("netns", netns),
            ("addr", self.addr.map(|addr| addr.to_string())),
            ("port", self.port.map(|port| port.to_string())),
            ("comm", self.comm.as_deref().map(str::to_owned)),
            ("namespace", self.namespace.as_deref().map(str::to_owned)),
            ("pod", self.pod.as_deref().map(str::to_owned)),
            ("container", self.container.as_deref().map(str::to_owned)),
            ("dst", self.dst.map(|addr| addr.to_string())),
            ("dst_port", self.dst_port.map(|port| port.to_string())),
        ];
        texts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// An address and a port, as URLs have them.
pub(super) struct Place(pub(super) IpAddr, pub(super) u16);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(addr, port) = self;
        match addr {
            IpAddr::V4(addr) => write!(f, "{addr}:{port}"),
            IpAddr::V6(addr) => write!(f, "[{addr}]:{port}"),
        }
    }
}
