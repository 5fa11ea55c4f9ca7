//! One event for somebody who watches, and what they want to see.

/// What the ring buffer carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub time: u64,
    /// Time in the accept queue ([`kind::ACCEPT`]) or from accept to the end ([`kind::CLOSE`]), in
    /// nanoseconds; [`UNKNOWN`] where it is not known, and for other kinds.
    pub span: u64,
    /// Cookie of the listening socket; 0 where it is not known.
    pub cookie: u64,
    /// Inode number of the network namespace; 0 where it is not known.
    pub netns: u32,
    /// The process in whose context it happened; 0 in an interrupt.
    pub pid: u32,
    /// The error, positive; 0 where there is none.
    pub errno: u32,
    /// What happened: one of [`kind`].
    pub kind: u16,
    /// Why: one of [`reason`].
    pub reason: u16,
    /// `AF_INET` or `AF_INET6`; 0 where no address is known.
    pub family: u16,
    /// Local port, host byte order; 0 where it is not known.
    pub port: u16,
    /// The peer's port, host byte order; 0 where it is not known.
    pub peer_port: u16,
    /// Always 0.
    pub reserved: u16,
    /// Local address; of IPv4 the first four bytes.
    pub addr: [u8; 16],
    /// The peer's address, likewise.
    pub peer: [u8; 16],
    /// Name of the task in whose context it happened; empty in an interrupt.
    pub comm: [u8; 16],
}

/// [`Event::span`]: not known.
pub const UNKNOWN: u64 = u64::MAX;

/// Values of [`Event::kind`]; bit numbers of [`Filter::kinds`].
pub mod kind {
    /// A SYN reached a listener.
    pub const SYN: u16 = 0;
    /// A SYN was answered with a cookie.
    pub const COOKIE: u16 = 1;
    /// A SYN was dropped, for another reason than the accept queue.
    pub const SYN_DROP: u16 = 2;
    /// A SYN or a last ACK was dropped since the accept queue was full.
    pub const OVERFLOW: u16 = 3;
    /// A handshake was completed.
    pub const ESTABLISHED: u16 = 4;
    /// A queued connection was reset by its peer.
    pub const RESET: u16 = 5;
    /// accept(2) returned a connection.
    pub const ACCEPT: u16 = 6;
    /// accept(2) failed.
    pub const ACCEPT_ERROR: u16 = 7;
    /// A connection was destroyed.
    pub const CLOSE: u16 = 8;
    /// A connection was thrown away unaccepted.
    pub const DISCARD: u16 = 9;
    /// A socket began to listen.
    pub const LISTEN: u16 = 10;
    /// A socket stopped listening.
    pub const UNLISTEN: u16 = 11;
    /// connect(2) failed.
    pub const CONNECT_ERROR: u16 = 12;
    /// How many there are.
    pub const COUNT: u16 = 13;
}

/// Values of [`Event::reason`].
pub mod reason {
    /// None.
    pub const NONE: u16 = 0;
    /// The accept queue was full when the SYN came.
    pub const ACCEPT_QUEUE_FULL_SYN: u16 = 1;
    /// The accept queue was full when the last ACK came.
    pub const ACCEPT_QUEUE_FULL_ACK: u16 = 2;
    /// The SYN queue was full, and no cookies are sent.
    pub const SYN_QUEUE_FULL: u16 = 3;
}

/// What somebody wants to see. Set by the agent; 0 in any field stands for everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Which kinds, by bit number; 0: nobody watches, and nothing is sent.
    pub kinds: u32,
    /// Only this network namespace.
    pub netns: u32,
    /// Only this process: as the one in whose context it happens, or by `WATCHED` of the record.
    pub pid: u32,
    /// Only this local port.
    pub port: u16,
    /// Whether `pid` or `comm` is set.
    pub by_owner: u16,
    /// Only tasks of this name, padded with zeros; likewise.
    pub comm: [u8; 16],
}
