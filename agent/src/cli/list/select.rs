//! Which listeners are listed, and in which order; pure.

use std::{cmp::Ordering, net::IpAddr, ops::RangeInclusive, str::FromStr};

use clap::ValueEnum;

use crate::publish::api::Listener;

/// What comes first. Equal ones are put busiest first, then by address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum SortBy {
    /// The fullest queue, then drops, then accepts per second
    #[default]
    Queue,
    /// The most drops
    Drops,
    /// The most accepts per second
    Accepts,
    /// Address, then port
    Address,
    /// Name of the process
    Process,
}

/// One port or several in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortRange(RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (low.parse(), high.parse()) {
            (Ok(low), Ok(high)) if 0 < low && low <= high => Ok(Self(low..=high)),
            _ => Err("expected a port or a range of ports, 1 to 65535, such as 80-90"),
        }
    }
}

/// What is listed. An empty list takes everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection<'a> {
    pub(super) ports: &'a [PortRange],
    pub(super) comms: &'a [String],
    pub(super) pids: &'a [u32],
    /// Of Kubernetes.
    pub(super) namespaces: &'a [String],
    pub(super) pods: &'a [String],
    pub(super) netns: &'a [u32],
    /// Whether to take those where nobody listens any more.
    pub(super) gone: bool,
}

impl Selection<'_> {
    pub(super) fn takes(&self, listener: &Listener) -> bool {
        let has_port = |range: &PortRange| range.0.contains(&listener.port);
        let has_comm = |comm: &String| {
            listener.comm.as_ref() == Some(comm)
                || listener.owners.iter().any(|owner| owner.comm.as_ref() == Some(comm))
        };
        let has_pid = |pid: &u32| listener.owners.iter().any(|owner| owner.pid == *pid);
        let is_one = |wanted: &[String], is: Option<&String>| {
            wanted.is_empty() || is.is_some_and(|is| wanted.contains(is))
        };
        (self.gone || 0 < listener.sockets)
            && (self.ports.is_empty() || self.ports.iter().any(has_port))
            && (self.comms.is_empty() || self.comms.iter().any(has_comm))
            && (self.pids.is_empty() || self.pids.iter().any(has_pid))
            && is_one(self.namespaces, listener.workload.namespace.as_ref())
            && is_one(self.pods, listener.workload.pod.as_ref())
            && (self.netns.is_empty() || self.netns.contains(&listener.netns))
    }
}

/// Puts what was asked for first.
pub(super) fn sort(listeners: &mut [Listener], by: SortBy) {
    listeners.sort_by(|a, b| compare(a, b, by));
}

fn compare(a: &Listener, b: &Listener, by: SortBy) -> Ordering {
    let asked = match by {
        SortBy::Queue => Ordering::Equal,
        SortBy::Drops => b.drops.cmp(&a.drops),
        SortBy::Accepts => descending(a, b, accepts),
        SortBy::Address => address(a).cmp(&address(b)),
        // Those without a name come last.
        SortBy::Process => (a.comm.is_none(), &a.comm).cmp(&(b.comm.is_none(), &b.comm)),
    };
    asked
        .then_with(|| descending(a, b, |listener| listener.fill_ratio_max))
        .then_with(|| b.drops.cmp(&a.drops))
        .then_with(|| descending(a, b, accepts))
        .then_with(|| address(a).cmp(&address(b)))
}

fn accepts(listener: &Listener) -> Option<f64> {
    listener.rates_per_second.accepted
}

/// Largest first; unknown comes last.
fn descending(a: &Listener, b: &Listener, value: fn(&Listener) -> Option<f64>) -> Ordering {
    let number = |listener| value(listener).unwrap_or(f64::NEG_INFINITY);
    number(b).total_cmp(&number(a))
}

/// By number, so that 9.0.0.1 comes before 10.0.0.1.
fn address(listener: &Listener) -> (IpAddr, u16, u32) {
    (listener.addr, listener.port, listener.netns)
}
