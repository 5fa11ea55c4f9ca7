//! Reads of kernel structures, by plain dereference of pointers that the verifier knows: a load
//! that cannot fault, and no `bpf_probe_read_kernel`, which lockdown refuses.

use aya_ebpf::helpers::generated;
use backlogd_abi::Offsets;

/// A pointer that the verifier knows to be a `struct sock`.
pub(crate) type Sock = *const u8;

/// include/net/tcp_states.h
pub(crate) const TCP_ESTABLISHED: i32 = 1;
pub(crate) const TCP_SYN_RECV: i32 = 3;
pub(crate) const TCP_CLOSE: i32 = 7;
pub(crate) const TCP_CLOSE_WAIT: i32 = 8;
pub(crate) const TCP_LISTEN: i32 = 10;

const IPPROTO_TCP: u16 = 6;
pub(crate) const AF_INET: u16 = 2;
pub(crate) const AF_INET6: u16 = 10;
const IPPROTO_MPTCP: u16 = 262;

/// Set by the agent before loading.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets {
    state: 0,
    family: 0,
    port: 0,
    addr4: 0,
    addr6: 0,
    net: 0,
    inum: 0,
    protocol: 0,
    ack_backlog: 0,
    max_ack_backlog: 0,
    drops: 0,
    err: 0,
    socket: 0,
    qlen: 0,
    v6only_byte: 0,
    v6only_mask: 0,
    fast_open: 0,
    peer_port: 0,
    peer4: 0,
    peer6: 0,
    syncookies: 0,
    skb_protocol: 0,
    skb_head: 0,
    skb_network: 0,
    skb_transport: 0,
    socket_sk: 0,
    files: 0,
    nsproxy: 0,
    net_ns: 0,
    fdt: 0,
    fd: 0,
    private_data: 0,
    first_argument: 0,
    inode: 0,
    io_file: 0,
    io_result: 0,
    listen_overflow: 0,
    may_probe: 0,
};

/// One of [`OFFSETS`].
macro_rules! offset {
    ($offset:ident) => {
        // SAFETY: the agent wrote OFFSETS before the program was loaded; volatile keeps rustc
        // from using the zeros above.
        unsafe { core::ptr::read_volatile(&raw const $crate::sock::OFFSETS.$offset) }
    };
}
pub(crate) use offset;

/// A member of a kernel structure.
macro_rules! field {
    ($base:expr, $offset:ident, $type:ty) => {{
        let base: *const u8 = $base;
        let offset = $crate::sock::offset!($offset);
        // SAFETY: the verifier checks base and offset against the kernel's BTF.
        unsafe { base.byte_add(offset as usize).cast::<$type>().read_volatile() }
    }};
}
pub(crate) use field;

#[inline(always)]
pub(crate) fn is_listening(sk: Sock) -> bool {
    state(sk) == TCP_LISTEN
}

/// Not MPTCP: of its two sockets only the TCP one is in the tables that sock_diag shows.
#[inline(always)]
pub(crate) fn is_tcp(sk: Sock) -> bool {
    protocol(sk) == IPPROTO_TCP
}

/// Whether user space takes it for a TCP socket.
#[inline(always)]
pub(crate) fn is_tcp_to_users(protocol: u16, family: u16) -> bool {
    matches!(protocol, IPPROTO_TCP | IPPROTO_MPTCP) && matches!(family, AF_INET | AF_INET6)
}

#[inline(always)]
pub(crate) fn state(sk: Sock) -> i32 {
    field!(sk, state, u8).into()
}

#[inline(always)]
pub(crate) fn protocol(sk: Sock) -> u16 {
    field!(sk, protocol, u16)
}

#[inline(always)]
pub(crate) fn family(sk: Sock) -> u16 {
    field!(sk, family, u16)
}

#[inline(always)]
pub(crate) fn port(sk: Sock) -> u16 {
    field!(sk, port, u16)
}

/// The local address as two words, in the byte order of the wire.
#[inline(always)]
pub(crate) fn addr(sk: Sock) -> [u64; 2] {
    if family(sk) == AF_INET {
        return [field!(sk, addr4, u32).into(), 0];
    }
    let second_half = offset!(addr6) as usize + 8;
    // SAFETY: the verifier checks the load against the kernel's BTF; 16 bytes, a struct in6_addr.
    let low = unsafe { sk.byte_add(second_half).cast::<u64>().read_volatile() };
    [field!(sk, addr6, u64), low]
}

/// The peer's address, likewise. `sk` can be a `struct request_sock`: both begin with a
/// `struct sock_common`.
#[inline(always)]
pub(crate) fn peer(sk: Sock) -> [u64; 2] {
    if family(sk) == AF_INET {
        return [field!(sk, peer4, u32).into(), 0];
    }
    let second_half = offset!(peer6) as usize + 8;
    // SAFETY: as in `addr`.
    let low = unsafe { sk.byte_add(second_half).cast::<u64>().read_volatile() };
    [field!(sk, peer6, u64), low]
}

/// The peer's port; of a `struct request_sock` likewise.
#[inline(always)]
pub(crate) fn peer_port(sk: Sock) -> u16 {
    u16::from_be(field!(sk, peer_port, u16))
}

/// What a SYN without a cookie needs: 0 never, 1 when the SYN queue is full, 2 always a cookie.
#[inline(always)]
pub(crate) fn syncookies(sk: Sock) -> u8 {
    field!(field!(sk, net, *const u8), syncookies, u8)
}

#[inline(always)]
pub(crate) fn netns(sk: Sock) -> u32 {
    field!(field!(sk, net, *const u8), inum, u32)
}

/// Connections in the accept queue.
#[inline(always)]
pub(crate) fn ack_backlog(sk: Sock) -> u32 {
    field!(sk, ack_backlog, u32)
}

/// The accept-queue limit.
#[inline(always)]
pub(crate) fn max_ack_backlog(sk: Sock) -> u32 {
    field!(sk, max_ack_backlog, u32)
}

#[inline(always)]
pub(crate) fn drops(sk: Sock) -> u32 {
    field!(sk, drops, u32)
}

#[inline(always)]
pub(crate) fn error(sk: Sock) -> i32 {
    field!(sk, err, i32)
}

/// Whether a file descriptor stands behind the socket (`sock_graft` at accept, `sock_orphan` at
/// close, include/net/sock.h).
#[inline(always)]
pub(crate) fn has_file(sk: Sock) -> bool {
    !field!(sk, socket, *const u8).is_null()
}

/// Whether it is a child of TCP Fast Open whose handshake is not complete.
#[inline(always)]
pub(crate) fn is_fast_open(sk: Sock) -> bool {
    // SAFETY: the verifier checks `sk`; the helper looks at what it is.
    let tcp = unsafe { generated::bpf_skc_to_tcp_sock(sk.cast_mut().cast()) }.cast::<u8>();
    !tcp.is_null() && field!(tcp, fast_open, u64) != 0
}

/// Request socks in the SYN queue; `sk` must be a `struct tcp_sock`.
#[inline(always)]
pub(crate) fn syn_queue(sk: Sock) -> u32 {
    field!(sk, qlen, u32)
}
