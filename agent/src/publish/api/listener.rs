//! One listener, as JSON, and its address as people read it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AbsentFields, Durations, Process, Workload, known};
use crate::{
    histogram::Histogram,
    id::ListenerKey,
    input::{Absent, Known},
    model::snapshot::{self, Snapshot},
    time::Nanos,
};

/// A listening socket, or the sockets of a `SO_REUSEPORT` group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Listener {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Local address.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// Whether a listener on an IPv6 address takes IPv6 only.
    pub v6only: bool,
    /// Address and port as `ss` prints them: `*:80`, `[::]:443`, `127.0.0.1:5432`.
    pub address: String,
    /// Name of the owner with the lowest pid, also after it is gone; null: never known.
    pub comm: Option<String>,
    /// Where that process belongs, also after it is gone.
    #[serde(flatten)]
    pub workload: Workload,
    /// Processes that hold one of the sockets, lowest pid first; empty: not known.
    pub owners: Vec<Process>,
    /// Number of sockets; 0: nobody listens there any more.
    pub sockets: usize,
    /// Connections that wait for accept, summed over the sockets.
    pub length: u64,
    /// Accept-queue limit, summed.
    pub limit: u64,
    /// Highest length in the window.
    pub length_max: Option<u64>,
    /// length / limit of the fullest socket; null: no socket.
    pub fill_ratio_max: Option<f64>,
    /// Handshakes that wait for their last ACK.
    pub syn_queue: Option<u64>,
    /// SYNs that reached it.
    pub syns: Option<u64>,
    /// SYNs answered with a cookie.
    pub syncookies: Option<u64>,
    /// Handshakes completed.
    pub established: Option<u64>,
    /// Connections returned by accept.
    pub accepted: Option<u64>,
    /// Accepted connections whose socket has been destroyed.
    pub closed: Option<u64>,
    /// Connections that ended in the queue.
    pub aborted: Aborted,
    /// Listen drops.
    pub drops: Option<u64>,
    /// The same by reason.
    pub drops_by_reason: DropsByReason,
    /// `sk_drops` of the sockets as it is.
    pub socket_drops: Option<u64>,
    /// Time in which a socket had length > limit.
    pub full_seconds: f64,
    /// Time from a connection's place in the accept queue to its accept.
    pub accept_wait_seconds: Option<Durations>,
    /// Time from accept to the end of the connection's socket.
    pub connection_duration_seconds: Option<Durations>,
    /// Over the last ten seconds.
    pub rates_per_second: RatesPerSecond,
    /// Accepted connections that are not destroyed.
    pub open: Option<u64>,
    /// Its connections in the newest read of its namespace's table.
    pub connections: Option<Connections>,
    /// Time since somebody accepted.
    pub seconds_since_accept: Option<f64>,
    /// Whether a socket is stalled.
    pub stalled: Option<bool>,
    /// Its sockets.
    pub members: Vec<Member>,
    /// Why fields are null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: AbsentFields,
}

/// Connections of a listener in a read of its namespace's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Connections {
    /// Time since the read began.
    pub age_seconds: f64,
    /// Whether the read was partial: numbers are then lower bounds.
    pub is_partial: bool,
    /// Accepted, in any state.
    pub accepted: u64,
    /// Accepted, and the peer has closed.
    pub close_wait: u64,
    /// Closed by the owner, and not yet by the peer.
    pub fin_wait: u64,
    /// Waiting for accept.
    pub queued: u64,
    /// In TIME_WAIT.
    pub time_wait: u64,
    /// Bytes that the owners have not read; the end of a stream counts as one.
    pub unread_bytes: u64,
    /// The same of the connection with the most.
    pub unread_bytes_max: u64,
    /// Bytes that the peers have not acknowledged; the end of a stream counts as one.
    pub unsent_bytes: u64,
    /// The same of the connection with the most.
    pub unsent_bytes_max: u64,
}

/// Connections that ended in the accept queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Aborted {
    /// Thrown away unaccepted when the listener closed.
    pub listener_closed: Option<u64>,
    /// Reset by the peer; still handed out by accept.
    pub reset: Option<u64>,
}

/// Listen drops by reason; together they are all. Null: no hook tells this reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropsByReason {
    /// SYNs refused since the accept queue was full.
    pub accept_queue_full_syn: Option<u64>,
    /// Last ACKs refused since the accept queue was full.
    pub accept_queue_full_ack: Option<u64>,
    /// SYNs refused since the SYN queue was full.
    pub syn_queue_full: Option<u64>,
    /// For none of these reasons.
    pub other: Option<u64>,
    /// Reason not told, where not every reason has a hook.
    pub unspecified: Option<u64>,
}

/// Events per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RatesPerSecond {
    /// Handshakes completed.
    pub established: Option<f64>,
    /// Accepts.
    pub accepted: Option<f64>,
    /// Listen drops.
    pub drops: Option<f64>,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Its cookie.
    pub cookie: u64,
    /// Its inode.
    pub inode: u64,
    /// The lowest pid that holds it; null: not known.
    pub pid: Option<u32>,
    /// Connections that wait.
    pub length: u32,
    /// Its accept-queue limit.
    pub limit: u32,
    /// Its `sk_drops`.
    pub socket_drops: Option<u32>,
    /// For how long connections have been waiting and nobody accepted any; 0 while somebody does.
    pub waiting_seconds: Option<f64>,
    /// Whether it is stalled.
    pub stalled: Option<bool>,
}

impl Listener {
    pub(super) fn new(listener: &snapshot::Listener, snapshot: &Snapshot) -> Self {
        let mut absent = AbsentFields::new();
        let (key, counters) = (listener.key, &listener.counters);
        let owners = listener.owners.iter().map(|&pid| Process::new(pid, snapshot));
        let summary = |known: &Known<Arc<Histogram>>| {
            known.as_deref().map(Durations::new).map_err(|&why| why)
        };
        let (wait, duration) =
            (summary(&listener.accept_wait), summary(&listener.connection_duration));
        let since_accept = listener.since_accept.map(Nanos::as_seconds);
        Self {
            netns: key.netns.0,
            addr: key.addr,
            port: key.port,
            v6only: listener.v6only,
            address: address(key, listener.v6only),
            comm: listener.comm.as_deref().map(str::to_owned),
            workload: Workload::new(&listener.workload),
            owners: owners.collect(),
            sockets: listener.members.len(),
            length: listener.length,
            limit: listener.limit,
            length_max: known(&mut absent, "length_max", listener.length_max),
            fill_ratio_max: listener.fill_ratio_max,
            syn_queue: known(&mut absent, "syn_queue", listener.syn_queue),
            syns: known(&mut absent, "syns", counters.syns),
            syncookies: known(&mut absent, "syncookies", counters.syncookies),
            established: known(&mut absent, "established", counters.established),
            accepted: known(&mut absent, "accepted", counters.accepted),
            closed: known(&mut absent, "closed", counters.closed),
            aborted: Aborted::new(counters, &mut absent),
            drops: known(&mut absent, "drops", counters.drops),
            drops_by_reason: DropsByReason::new(counters.drops_by, &mut absent),
            socket_drops: known(&mut absent, "socket_drops", counters.socket_drops),
            full_seconds: counters.full.as_seconds(),
            accept_wait_seconds: known(&mut absent, "accept_wait_seconds", wait),
            connection_duration_seconds: known(
                &mut absent,
                "connection_duration_seconds",
                duration,
            ),
            rates_per_second: RatesPerSecond::new(listener.rates, &mut absent),
            open: known(&mut absent, "open", listener.open),
            connections: known(&mut absent, "connections", Connections::of(listener, snapshot)),
            seconds_since_accept: known(&mut absent, "seconds_since_accept", since_accept),
            stalled: known(&mut absent, "stalled", listener.stalled),
            members: listener.members.iter().map(|m| Member::new(m, &mut absent)).collect(),
            absent,
        }
    }
}

impl Connections {
    fn of(listener: &snapshot::Listener, snapshot: &Snapshot) -> Known<Self> {
        let it = listener.connections?;
        let (namespaces, netns) = (&snapshot.namespaces, listener.key.netns);
        let at = namespaces.binary_search_by_key(&netns, |namespace| namespace.netns);
        let table = &namespaces[at.map_err(|_| Absent::Unreadable)?].table;
        let read = table.as_ref().map_err(|why| *why)?;
        Ok(Self {
            age_seconds: (snapshot.at - read.at).as_seconds(),
            is_partial: read.table.is_partial,
            accepted: it.accepted,
            close_wait: it.close_wait,
            fin_wait: it.fin_wait,
            queued: it.queued,
            time_wait: it.time_wait,
            unread_bytes: it.unread_bytes,
            unread_bytes_max: it.unread_bytes_max,
            unsent_bytes: it.unsent_bytes,
            unsent_bytes_max: it.unsent_bytes_max,
        })
    }
}

impl Aborted {
    fn new(counters: &snapshot::Counters, absent: &mut AbsentFields) -> Self {
        let by_listener = counters.aborted_listener_closed;
        Self {
            listener_closed: known(absent, "aborted.listener_closed", by_listener),
            reset: known(absent, "aborted.reset", counters.aborted_reset),
        }
    }
}

impl DropsByReason {
    fn new(drops: snapshot::DropsBy, absent: &mut AbsentFields) -> Self {
        let mut known = |reason: &str, n| known(absent, &format!("drops_by_reason.{reason}"), n);
        Self {
            accept_queue_full_syn: known("accept_queue_full_syn", drops.accept_queue_full_syn),
            accept_queue_full_ack: known("accept_queue_full_ack", drops.accept_queue_full_ack),
            syn_queue_full: known("syn_queue_full", drops.syn_queue_full),
            other: known("other", drops.other),
            unspecified: known("unspecified", drops.unspecified),
        }
    }
}

impl RatesPerSecond {
    fn new(rates: snapshot::Rates, absent: &mut AbsentFields) -> Self {
        Self {
            established: known(absent, "rates_per_second.established", rates.established),
            accepted: known(absent, "rates_per_second.accepted", rates.accepted),
            drops: known(absent, "rates_per_second.drops", rates.drops),
        }
    }
}

impl Member {
    fn new(member: &snapshot::Member, absent: &mut AbsentFields) -> Self {
        Self {
            cookie: member.cookie.0,
            inode: member.inode.0,
            pid: member.pid.map(|pid| pid.0),
            length: member.length,
            limit: member.limit,
            socket_drops: known(absent, "members.socket_drops", member.socket_drops),
            waiting_seconds: known(
                absent,
                "members.waiting_seconds",
                member.waiting.map(Nanos::as_seconds),
            ),
            stalled: known(absent, "members.stalled", member.stalled),
        }
    }
}

/// Address and port as `ss` prints them; `*` is both families.
#[must_use]
pub fn address(key: ListenerKey, v6only: bool) -> String {
    let port = key.port;
    match key.addr {
        IpAddr::V4(addr) => format!("{addr}:{port}"),
        IpAddr::V6(addr) if addr.is_unspecified() && !v6only => format!("*:{port}"),
        IpAddr::V6(addr) => format!("[{addr}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NetnsId;

    #[track_caller]
    fn check(addr: &str, port: u16, v6only: bool, expected: &str) {
        let addr = addr.parse().expect("the case is an address");
        assert_eq!(address(ListenerKey { netns: NetnsId(1), addr, port }, v6only), expected);
    }

    #[test]
    fn addresses_look_as_ss_prints_them() {
        check("::", 80, false, "*:80");
        check("::", 443, true, "[::]:443");
        check("0.0.0.0", 80, false, "0.0.0.0:80");
        check("127.0.0.1", 5432, false, "127.0.0.1:5432");
        check("::1", 8080, false, "[::1]:8080");
        check("::ffff:127.0.0.1", 1, false, "[::ffff:127.0.0.1]:1");
    }
}
