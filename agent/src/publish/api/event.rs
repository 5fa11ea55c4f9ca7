//! One event, as JSON.

use std::{net::IpAddr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    event::{self, EventKind, Reason},
    time::{Nanos, UnixTime},
};

/// One line of `trace -o json`: something that happened to a listener or a connection. What the
/// hook could not tell, and what an event of this kind does not have, is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("schema_version" = super::SCHEMA_VERSION))]
pub struct Event {
    /// When it happened, in seconds since 1970.
    pub unix_time_seconds: f64,
    /// What happened.
    pub event: EventKind,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// Cookie of the listening socket.
    pub cookie: Option<u64>,
    /// Local address: of a connection, where its client connected to.
    pub addr: Option<IpAddr>,
    /// Local port; null also for a socket that was not bound when it began to listen.
    pub port: Option<u16>,
    /// The peer's address.
    pub peer_addr: Option<IpAddr>,
    /// The peer's port.
    pub peer_port: Option<u16>,
    /// Of `accept`: time in the accept queue.
    pub wait_seconds: Option<f64>,
    /// Of `close`: time since accept.
    pub duration_seconds: Option<f64>,
    /// Name of the error, such as `EMFILE`.
    pub errno: Option<String>,
    /// Why something was dropped.
    pub reason: Option<Reason>,
    /// In whose context it happened; null in an interrupt.
    pub task: Option<Task>,
    /// Process that holds the listening socket: of several, the one with the lowest pid.
    pub owner: Option<Task>,
}

/// A process and its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Its process id, in the agent's PID namespace.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

impl Event {
    /// An event, its time by the wall clock, and the listener's owner.
    #[must_use]
    pub fn new(event: &event::Event, at: UnixTime, owner: Option<&event::Task>) -> Self {
        let seconds = |kind| event.span.filter(|_| event.kind == kind).map(Nanos::as_seconds);
        Self {
            unix_time_seconds: Duration::from_nanos(at.0).as_secs_f64(),
            event: event.kind,
            netns: event.netns.map(|netns| netns.0),
            cookie: event.cookie.map(|cookie| cookie.0),
            addr: event.local.map(|local| local.ip()),
            port: event.local.map(|local| local.port()).filter(|port| *port != 0),
            peer_addr: event.peer.map(|peer| peer.ip()),
            peer_port: event.peer.map(|peer| peer.port()),
            wait_seconds: seconds(EventKind::Accept),
            duration_seconds: seconds(EventKind::Close),
            errno: event.errno.map(|errno| errno.to_string()),
            reason: event.reason,
            task: event.task.as_ref().map(Task::new),
            owner: owner.map(Task::new),
        }
    }
}

impl Task {
    fn new(task: &event::Task) -> Self {
        Self { pid: task.pid.0, comm: task.comm.clone() }
    }
}
