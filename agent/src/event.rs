//! One thing that happened to a listener or a connection, and which of them somebody wants to see.

use std::{fmt, net::SocketAddr, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    errno::Errno,
    id::{Cookie, NetnsId, Pid},
    time::{Monotonic, Nanos},
};

/// What happened, as a hook saw it. What the hook could not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Monotonic,
    /// What.
    pub kind: EventKind,
    /// In which namespace.
    pub netns: Option<NetnsId>,
    /// The listening socket.
    pub cookie: Option<Cookie>,
    /// Local address. Port 0: a socket that was not bound begins to listen, and its port is chosen
    /// right after (`inet_csk_listen_start`, net/ipv4/inet_connection_sock.c).
    pub local: Option<SocketAddr>,
    /// The peer's address.
    pub peer: Option<SocketAddr>,
    /// Of [`EventKind::Accept`], the time in the accept queue; of [`EventKind::Close`], from accept
    /// to the end.
    pub span: Option<Nanos>,
    /// The error that the system call returned.
    pub errno: Option<Errno>,
    /// Why something was dropped.
    pub reason: Option<Reason>,
    /// The task in whose context it happened; `None` in an interrupt.
    pub task: Option<Task>,
}

/// A thread of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The process.
    pub pid: Pid,
    /// The thread's name, which is the process's unless a thread was given one of its own.
    pub comm: String,
}

/// What can happen.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EventKind {
    /// A SYN reached a listener.
    Syn,
    /// A SYN was answered with a cookie.
    Cookie,
    /// A SYN was dropped, for another reason than the accept queue.
    SynDrop,
    /// A SYN or a last ACK was dropped since the accept queue was full.
    Overflow,
    /// A handshake was completed.
    Established,
    /// A queued connection was reset by its peer.
    Reset,
    /// accept(2) returned a connection.
    Accept,
    /// accept(2) failed.
    AcceptError,
    /// A connection was destroyed.
    Close,
    /// A connection was thrown away unaccepted.
    Discard,
    /// A socket began to listen.
    Listen,
    /// A socket stopped listening.
    Unlisten,
    /// connect(2) failed.
    ConnectError,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Syn,
        Self::Cookie,
        Self::SynDrop,
        Self::Overflow,
        Self::Established,
        Self::Reset,
        Self::Accept,
        Self::AcceptError,
        Self::Close,
        Self::Discard,
        Self::Listen,
        Self::Unlisten,
        Self::ConnectError,
    ];

    /// The name, for people and programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Cookie => "cookie",
            Self::SynDrop => "syn_drop",
            Self::Overflow => "overflow",
            Self::Established => "established",
            Self::Reset => "reset",
            Self::Accept => "accept",
            Self::AcceptError => "accept_error",
            Self::Close => "close",
            Self::Discard => "discard",
            Self::Listen => "listen",
            Self::Unlisten => "unlisten",
            Self::ConnectError => "connect_error",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Some kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        EventKind::ALL.into_iter().collect()
    }

    /// Whether `kind` is one of them.
    #[must_use]
    pub const fn has(self, kind: EventKind) -> bool {
        self.0 & (1 << kind as u32) != 0
    }

    /// Those that are among them, in the order of [`EventKind::ALL`].
    pub fn iter(self) -> impl Iterator<Item = EventKind> {
        EventKind::ALL.into_iter().filter(move |&kind| self.has(kind))
    }
}

impl FromIterator<EventKind> for Kinds {
    fn from_iter<I: IntoIterator<Item = EventKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |bits, kind| bits | 1 << kind as u32))
    }
}

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The accept queue was full when the SYN came.
    AcceptQueueFullSyn,
    /// The accept queue was full when the last ACK came.
    AcceptQueueFullAck,
    /// The SYN queue was full, and no cookies are sent.
    SynQueueFull,
}

impl Reason {
    /// The name, as the `reason` label of `backlogd_listener_drops_total` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcceptQueueFullSyn => "accept_queue_full_syn",
            Self::AcceptQueueFullAck => "accept_queue_full_ack",
            Self::SynQueueFull => "syn_queue_full",
        }
    }
}

/// Name of a task, as the kernel keeps it: at most 15 bytes, padded with zeros
/// (`TASK_COMM_LEN`, include/linux/sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comm([u8; 16]);

impl Comm {
    /// What the kernel makes of `name`: what is too long is cut off.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; 16];
        for (byte, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
            *byte = from;
        }
        Self(bytes)
    }

    /// As the kernel keeps it.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.split(|&byte| byte == 0).next().unwrap_or_default();
        f.write_str(&String::from_utf8_lossy(name))
    }
}

impl FromStr for Comm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("expected the name of a process, as in /proc/PID/comm"),
            name => Ok(Self::new(name)),
        }
    }
}

/// What somebody wants to see; `None` takes everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// These kinds.
    pub kinds: Kinds,
    /// Only this local port.
    pub port: Option<u16>,
    /// Only this network namespace.
    pub netns: Option<NetnsId>,
    /// Only this process: as the one in whose context it happens, or that owns the listener.
    pub pid: Option<Pid>,
    /// Only processes of this name, likewise.
    pub comm: Option<Comm>,
}

impl Filter {
    /// Whether it asks who the process is.
    #[must_use]
    pub const fn by_owner(&self) -> bool {
        self.pid.is_some() || self.comm.is_some()
    }

    /// Whether events of a listener are wanted for the sake of one of its `owners`: pid and name.
    #[must_use]
    pub fn watches<'a>(&self, owners: impl IntoIterator<Item = (Pid, &'a str)>) -> bool {
        let is_wanted = |(pid, comm): (Pid, &str)| {
            self.pid.is_none_or(|wanted| wanted == pid)
                && self.comm.is_none_or(|wanted| wanted == Comm::new(comm))
        };
        owners.into_iter().any(is_wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Filter =
        Filter { kinds: Kinds(u32::MAX), port: None, netns: None, pid: None, comm: None };

    #[track_caller]
    fn check(pid: Option<u32>, comm: Option<&str>, owners: &[(u32, &str)], expected: bool) {
        let filter = Filter { pid: pid.map(Pid), comm: comm.map(Comm::new), ..EVERYTHING };
        let got = filter.watches(owners.iter().map(|&(pid, comm)| (Pid(pid), comm)));
        assert_eq!(expected, got, "{pid:?} {comm:?} {owners:?}");
    }

    #[test]
    fn a_listener_is_watched_when_one_owner_is_all_that_was_asked_for() {
        let group = [(7, "nginx"), (8, "nginx"), (9, "sh")];
        check(Some(8), None, &group, true);
        check(Some(6), None, &group, false);
        check(None, Some("sh"), &group, true);
        check(None, Some("s"), &group, false);
        check(Some(9), Some("sh"), &group, true);
        check(Some(8), Some("sh"), &group, false);
        check(Some(8), None, &[], false);
        check(None, Some("systemd-resolved"), &[(1, "systemd-resolve")], true);
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let kinds: Kinds =
            [EventKind::Close, EventKind::Syn, EventKind::Close].into_iter().collect();
        assert_eq!(vec![EventKind::Syn, EventKind::Close], kinds.iter().collect::<Vec<_>>());
        assert_eq!(EventKind::ALL.to_vec(), Kinds::all().iter().collect::<Vec<_>>());
        assert_eq!(0, Kinds::default().iter().count());
    }

    #[test]
    fn programs_and_people_get_the_same_names() {
        for kind in EventKind::ALL {
            assert_eq!(format!("\"{kind}\""), serde_json::to_string(&kind).unwrap());
        }
        let full = Reason::AcceptQueueFullSyn;
        assert_eq!(format!("\"{}\"", full.name()), serde_json::to_string(&full).unwrap());
    }

    #[test]
    fn a_name_is_what_the_kernel_keeps_of_it() {
        assert_eq!("nginx", Comm::new("nginx").to_string());
        assert_eq!("systemd-resolve", Comm::new("systemd-resolved").to_string());
        assert_eq!(0, Comm::new(&"é".repeat(20)).bytes()[15]);
        assert!("".parse::<Comm>().is_err());
    }
}
