//! What the eBPF programs and the agent agree on: layouts, indexes, limits.
//!
//! Both sides compile this file, so that neither can drift. Sizes and offsets are asserted here.
#![no_std]

pub mod event;
pub mod histogram;

use core::mem::{offset_of, size_of};

use event::Event;
use histogram::Histogram;

/// Where the running kernel keeps the fields that the programs read, in bytes from the start of
/// the structure. The agent takes them from the kernel's BTF and sets them before loading.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `sock.__sk_common.skc_state`
    pub state: u32,
    /// `sock.__sk_common.skc_family`
    pub family: u32,
    /// `sock.__sk_common.skc_num`: the local port, host byte order
    pub port: u32,
    /// `sock.__sk_common.skc_rcv_saddr`: the local IPv4 address
    pub addr4: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`: the local IPv6 address
    pub addr6: u32,
    /// `sock.__sk_common.skc_net.net`
    pub net: u32,
    /// `net.ns.inum`
    pub inum: u32,
    /// `sock.sk_protocol`
    pub protocol: u32,
    /// `sock.sk_ack_backlog`: the accept-queue length
    pub ack_backlog: u32,
    /// `sock.sk_max_ack_backlog`: the accept-queue limit
    pub max_ack_backlog: u32,
    /// `sock.sk_drops`
    pub drops: u32,
    /// `sock.sk_err`
    pub err: u32,
    /// `sock.sk_socket`
    pub socket: u32,
    /// `tcp_sock.inet_conn.icsk_accept_queue.qlen`: the SYN-queue length
    pub qlen: u32,
}

/// One listening socket. The programs fill it; the agent reads it in place, clears it and gives
/// the slot back.
///
/// Every field is written by one side only, except `high_water`, which the agent takes back to 0
/// by an atomic exchange.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The socket's cookie. 0: the slot is not in use. Written last.
    pub cookie: u64,
    /// Children that went from SYN_RECV to ESTABLISHED.
    pub established: u64,
    /// Children destroyed, of those counted in `established`.
    pub closed: u64,
    /// Children that were queued when the listener left LISTEN: the kernel throws them away.
    pub discarded: u64,
    /// Children that were reset while nobody had accepted them.
    pub resets: u64,
    /// The longest queue seen right after an enqueue since the agent last took it.
    pub high_water: u64,
    /// `established << LENGTH_BITS | length`, as the newest enqueue saw the two.
    pub last: u64,
    /// The queue's length when the slot was taken: accepted = base + established - length.
    pub base: u32,
    /// Connections in the accept queue, when the iterator last came by.
    pub length: u32,
    /// Children returned by accept, as a hook saw it. Connections from before the programs are
    /// not among them.
    pub accepted: u64,
    /// SYNs that reached the listener.
    pub syns: u64,
    /// SYNs answered with a cookie.
    pub cookies: u64,
    /// SYNs refused since the accept queue was full.
    pub full_syn: u64,
    /// Last ACKs refused since the accept queue was full.
    pub full_ack: u64,
    /// SYNs refused since the SYN queue was full.
    pub syn_queue_full: u64,
    /// Connections accepted before the programs and found open.
    pub found: u32,
    /// Set by the agent: whether events of this listener pass a filter by owner.
    pub watched: u32,
    /// Local address; of an IPv4 socket the first four bytes.
    pub addr: [u8; 16],
    /// Name of the task that called listen(2); empty for an adopted listener.
    pub comm: [u8; 16],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Which pass of the iterator came by last: the agent's count in [`cell::PASS`].
    pub pass: u32,
    /// Request socks that wait for the handshake's last ACK, when the iterator last came by.
    pub syn_queue: u32,
    /// `sk_drops`, when the iterator last came by or when the socket was destroyed.
    pub drops: u32,
    /// Which of the listeners that had this slot: written by the agent alone.
    pub generation: u32,
    /// [`ADOPTED`], [`DESTROYED`].
    pub flags: u32,
    /// Local port, host byte order. 0 until the first enqueue of a socket that was not bound.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The accept-queue limit, when the iterator last came by.
    pub limit: u32,
}

/// [`Record::flags`]: the listener was there before the programs.
pub const ADOPTED: u32 = 1;
/// [`Record::flags`]: the listening socket is gone; its children may live on.
pub const DESTROYED: u32 = 2;

/// Width of the length in [`Record::last`].
pub const LENGTH_BITS: u32 = 24;

/// Slots unless configured otherwise: listening sockets that can be followed at once.
pub const SLOTS: u32 = 4096;

/// Indexes of the host-wide cells.
pub mod cell {
    /// Times that a listening socket asked for a slot and none was free.
    pub const NO_SLOT: u32 = 0;
    /// Events of children whose slot has been given to another listener since.
    pub const STALE: u32 = 1;
    /// Events that only the second copy of a program saw.
    pub const SECOND_COPY: u32 = 2;
    /// Set by the agent: how many listeners the iterator shall visit before it stops.
    pub const VISIT: u32 = 3;
    /// Set by the agent: the number of this pass of the iterator.
    pub const PASS: u32 = 4;
    /// Listeners that the iterator visited and that have no slot.
    pub const UNFOLLOWED: u32 = 5;
    /// Set by the agent: the namespace whose listeners get slots.
    pub const NETNS: u32 = 6;
    /// How many cells there are.
    pub const COUNT: u32 = 7;
}

/// Larger than the buffer of a BPF iterator (`BPF_ITER` allocates `PAGE_SIZE << 3`,
/// kernel/bpf/bpf_iter.c): writing this much ends the iteration.
pub const OVERFLOW: usize = 32 << 10;

const _: () = assert!(size_of::<Offsets>() == 14 * 4);
const _: () = assert!(size_of::<Record>() == 184);
const _: () = assert!(offset_of!(Record, high_water) == 40);
const _: () = assert!(offset_of!(Record, addr) == 120);
const _: () = assert!(offset_of!(Record, family) == 178);
const _: () = assert!(size_of::<Event>() == 96);
const _: () = assert!(size_of::<Histogram>() == 528);
