//! Reads of kernel structures, by plain dereference of pointers that the verifier knows: a load
//! that cannot fault, and no `bpf_probe_read_kernel`, which lockdown refuses.

use core::ptr;

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
const AF_INET: u16 = 2;

/// Set by the agent before loading.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
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
};

/// A member of a kernel structure.
macro_rules! field {
    ($base:expr, $offset:ident, $type:ty) => {{
        let base: *const u8 = $base;
        // SAFETY: the agent wrote OFFSETS before the program was loaded; volatile keeps rustc
        // from using the zeros above.
        let offset = unsafe { ptr::read_volatile(&raw const OFFSETS.$offset) };
        // SAFETY: the verifier checks base and offset against the kernel's BTF.
        unsafe { base.byte_add(offset as usize).cast::<$type>().read_volatile() }
    }};
}

#[inline(always)]
pub(crate) fn is_listening(sk: Sock) -> bool {
    i32::from(field!(sk, state, u8)) == TCP_LISTEN
}

/// Not MPTCP: of its two sockets only the TCP one is in the tables that sock_diag shows.
#[inline(always)]
pub(crate) fn is_tcp(sk: Sock) -> bool {
    field!(sk, protocol, u16) == IPPROTO_TCP
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
    // SAFETY: as in `field`; the second half of the 16 bytes of a struct in6_addr.
    let offset = unsafe { ptr::read_volatile(&raw const OFFSETS.addr6) } as usize;
    // SAFETY: the verifier checks the load against the kernel's BTF.
    let low = unsafe { sk.byte_add(offset + 8).cast::<u64>().read_volatile() };
    [field!(sk, addr6, u64), low]
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

/// Request socks in the SYN queue; `sk` must be a `struct tcp_sock`.
#[inline(always)]
pub(crate) fn syn_queue(sk: Sock) -> u32 {
    field!(sk, qlen, u32)
}
