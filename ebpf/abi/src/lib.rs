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
    /// `sock.__sk_common.skc_ipv6only`, the byte that holds it
    pub v6only_byte: u32,
    /// Which bit of that byte
    pub v6only_mask: u32,
    /// `tcp_sock.fastopen_rsk`: set while the handshake of a child of Fast Open is not complete
    pub fast_open: u32,
    /// `sock.__sk_common.skc_dport`: the peer's port, byte order of the wire
    pub peer_port: u32,
    /// `sock.__sk_common.skc_daddr`: the peer's IPv4 address
    pub peer4: u32,
    /// `sock.__sk_common.skc_v6_daddr`: the peer's IPv6 address
    pub peer6: u32,
    /// `net.ipv4.sysctl_tcp_syncookies`; or [`ABSENT`], like all that follow
    pub syncookies: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.network_header`
    pub skb_network: u32,
    /// `sk_buff.transport_header`
    pub skb_transport: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `task_struct.files`
    pub files: u32,
    /// `task_struct.nsproxy`
    pub nsproxy: u32,
    /// `nsproxy.net_ns`
    pub net_ns: u32,
    /// `files_struct.fdt`
    pub fdt: u32,
    /// `fdtable.fd`
    pub fd: u32,
    /// `file.private_data`
    pub private_data: u32,
    /// `pt_regs.di`: the first argument of a system call
    pub first_argument: u32,
    /// `socket_alloc.vfs_inode.i_ino`, from the `struct socket` that it begins with
    pub inode: u32,
    /// `io_kiocb.file`
    pub io_file: u32,
    /// `io_kiocb.cqe.res`
    pub io_result: u32,
    /// `SKB_DROP_REASON_TCP_LISTEN_OVERFLOW` of `enum skb_drop_reason`: no offset, but the number
    pub listen_overflow: u32,
    /// No offset: 1 where programs may call `bpf_probe_read_kernel`, which lockdown refuses, else 0
    pub may_probe: u32,
}

/// An offset that this kernel does not have; the programs that need it are not loaded.
pub const ABSENT: u32 = u32::MAX;

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
    /// Children that went from SYN_RECV to ESTABLISHED, or ended before that.
    pub established: u64,
    /// Children destroyed, of those counted in `established`.
    pub closed: u64,
    /// Children that were queued when the listener left LISTEN, or came after that: the kernel
    /// throws them away.
    pub discarded: u64,
    /// Children that were reset while nobody had accepted them.
    pub resets: u64,
    /// Children that the kernel made and undid: never queued, no connection, in none of the above.
    pub undone: u64,
    /// The longest queue seen right after an enqueue since the agent last took it.
    pub high_water: u64,
    /// `established << LENGTH_BITS | length`, as the newest enqueue saw the two.
    pub last: u64,
    /// The queue's length when the slot was taken: accepted = base + established - length.
    pub base: u32,
    /// Connections in the accept queue, when the agent last looked.
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
    /// Address of the listening socket: tells it from its children, which carry a copy of its tag.
    pub owner: u64,
    /// Connections accepted before the programs and found open.
    pub found: u32,
    /// Set by the agent: [`WATCHED`], [`SEARCHED`], and a count from [`RESET_SHIFT`] on.
    pub marks: u32,
    /// Local address; of an IPv4 socket the first four bytes.
    pub addr: [u8; 16],
    /// Name of the task that called listen(2); empty for an adopted listener.
    pub comm: [u8; 16],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// When the agent last looked: its count of looks in [`cell::PASS`]. A look is a pass of the
    /// iterator over a namespace, or of the sweep over all records.
    pub pass: u32,
    /// Request socks that wait for the handshake's last ACK, when the agent last looked.
    pub syn_queue: u32,
    /// `sk_drops`, when the agent last looked.
    pub drops: u32,
    /// Which of the listeners that had this slot: written by the agent alone.
    pub generation: u32,
    /// [`ADOPTED`], [`DESTROYED`], [`STOPPED`].
    pub flags: u32,
    /// Local port, host byte order. 0 until the first enqueue of a socket that was not bound.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The accept-queue limit, when the agent last looked.
    pub limit: u32,
    /// `sk_drops` when the socket was destroyed.
    pub final_drops: u32,
    /// The socket's inode in sockfs, when the sweep last came by.
    pub inode: u32,
    /// The process that called listen(2), by its id in the first PID namespace; 0 for an adopted
    /// listener.
    pub pid: u32,
    /// Whether it takes no IPv4 (`IPV6_V6ONLY`), when the sweep last came by: 0 or 1.
    pub v6only: u32,
}

/// [`Record::flags`]: the listener was there before the programs.
pub const ADOPTED: u32 = 1;
/// [`Record::flags`]: the listening socket is gone; its children may live on.
pub const DESTROYED: u32 = 2;
/// [`Record::flags`]: the socket has left LISTEN, and has not listened again since.
pub const STOPPED: u32 = 4;
/// [`Record::marks`]: events of this listener pass a filter by owner.
pub const WATCHED: u32 = 1;
/// [`Record::marks`]: connections from before the programs were looked for.
pub const SEARCHED: u32 = 2;
/// [`Record::marks`]: from this bit on, how many of these were queued and already reset, which no
/// table of sockets shows.
pub const RESET_SHIFT: u32 = 8;

/// Width of the length in [`Record::last`].
pub const LENGTH_BITS: u32 = 24;

/// Slots unless configured otherwise: listening sockets that can be followed at once.
pub const SLOTS: u32 = 4096;

/// How many records one run of the sweep looks at.
pub const SWEEP: u32 = 64;

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
    /// Set by the agent: the one namespace whose listeners get slots, or 0 for all.
    pub const NETNS: u32 = 6;
    /// Set by the agent: 1 where accept is seen by a program that knows a child by its address
    /// alone.
    pub const BY_ADDRESS: u32 = 7;
    /// Set by the agent: 1 while connections from before the programs are looked for.
    pub const SEARCH: u32 = 8;
    /// Events that the ring buffer had no room for.
    pub const EVENTS_LOST: u32 = 9;
    /// Entries that a map had no room for.
    pub const MAP_FULL: u32 = 10;
    /// Failed calls that were counted: tells the agent when to read them again.
    pub const ERRORS: u32 = 11;
    /// How many cells there are.
    pub const COUNT: u32 = 12;
}

/// A listener by its address, in the map of listeners from before the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Local address, as in [`Record::addr`].
    pub addr: [u8; 16],
    /// Local port, host byte order.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Which of the listeners there: 0 for the one whose turn it is.
    pub member: u32,
}

/// The listener that a connection from before the programs is given to. Nothing tells the members
/// of a `SO_REUSEPORT` group apart by their connections, so each gets as many as it has queued.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// Its record.
    pub holder: Holder,
    /// How many queued connections it takes before it is the next one's turn.
    pub room: u32,
    /// [`Place::member`] of the next one.
    pub next: u32,
}

/// What names a record for good: its slot, and which of the listeners that had it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Index of the record.
    pub slot: u32,
    /// [`Record::generation`] when the slot was taken.
    pub generation: u32,
}

/// A system call that fails, in the map of failed calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailedCall {
    /// Name of the calling task.
    pub comm: [u8; 16],
    /// Positive error number.
    pub errno: u32,
    /// [`ACCEPT`] or [`CONNECT`].
    pub call: u32,
}

/// [`FailedCall::call`]: accept(2), accept4(2), or by io_uring.
pub const ACCEPT: u32 = 0;
/// [`FailedCall::call`]: connect(2) of a TCP socket, or by io_uring.
pub const CONNECT: u32 = 1;

/// How many different [`FailedCall`]s can be counted.
pub const FAILED_CALLS: u32 = 1024;

/// Larger than the buffer of a BPF iterator (`BPF_ITER` allocates `PAGE_SIZE << 3`,
/// kernel/bpf/bpf_iter.c): writing this much ends the iteration.
pub const OVERFLOW: usize = 32 << 10;

const _: () = assert!(size_of::<Offsets>() == 38 * 4);
const _: () = assert!(size_of::<Record>() == 216);
const _: () = assert!(offset_of!(Record, high_water) == 48);
const _: () = assert!(offset_of!(Record, addr) == 136);
const _: () = assert!(offset_of!(Record, family) == 194);
const _: () = assert!(size_of::<Event>() == 96);
const _: () = assert!(size_of::<Histogram>() == 528);
