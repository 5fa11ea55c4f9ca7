//! Reads of kernel memory by address, for what no pointer of known type leads to. A read that
//! fails gives nothing. Lockdown refuses the helper, so each caller asks [`is_allowed`] or is a
//! program that is only loaded where it is allowed.

use aya_ebpf::{
    EbpfContext as _,
    cty::c_void,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated},
};

use crate::sock::{self, AF_INET, AF_INET6, offset};

/// An address in kernel memory.
pub(crate) type Address = u64;

/// The other end of a connection.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peer {
    /// `AF_INET` or `AF_INET6`; 0: not known.
    pub(crate) family: u16,
    /// Host byte order.
    pub(crate) port: u16,
    /// In the byte order of the wire.
    pub(crate) addr: [u64; 2],
}

/// Whether this kernel lets programs read by address.
#[inline(always)]
pub(crate) fn is_allowed() -> bool {
    offset!(may_probe) != 0
}

/// A value at an address.
#[inline(always)]
pub(crate) fn read<T>(address: Address) -> Option<T> {
    // SAFETY: the helper checks the address and copies; it faults nowhere.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// A member of the structure at an address.
macro_rules! at {
    ($base:expr, $offset:ident, $type:ty) => {
        $crate::probe::read::<$type>($base + u64::from($crate::sock::offset!($offset)))
    };
}
pub(crate) use at;

/// Copies a member of the structure at an address; other than 0: it could not be read, and `to` holds
/// zeros.
macro_rules! copy {
    ($base:expr, $offset:ident, $to:expr) => {
        $crate::probe::copy_to($to, $base + u64::from($crate::sock::offset!($offset)))
    };
}
pub(crate) use copy;

/// Copies what is at an address.
///
/// # Safety
/// `to` must be memory to which the program may write.
#[inline(always)]
pub(crate) unsafe fn copy_to<T>(to: *mut T, address: Address) -> i64 {
    let size = size_of::<T>() as u32;
    // SAFETY: the helper checks the address, and fills `to` with zeros where it cannot be read.
    unsafe { generated::bpf_probe_read_kernel(to.cast(), size, address as *const c_void) }
}

/// Whether user space takes the socket at an address for a TCP socket.
#[inline(always)]
pub(crate) fn is_tcp(sk: Address) -> bool {
    let (Some(protocol), Some(family)) = (at!(sk, protocol, u16), at!(sk, family, u16)) else {
        return false;
    };
    sock::is_tcp_to_users(protocol, family)
}

/// The other end of the socket at an address.
#[inline(always)]
pub(crate) fn peer(sk: Address) -> Option<Peer> {
    let family = at!(sk, family, u16)?;
    let addr = match family {
        AF_INET => [at!(sk, peer4, u32)?.into(), 0],
        AF_INET6 => at!(sk, peer6, [u64; 2])?,
        _ => return None,
    };
    Some(Peer { family, port: u16::from_be(at!(sk, peer_port, u16)?), addr })
}

/// Who sent a segment: its source address and port. `head` and both headers' offsets into it are
/// set when TCP works on it.
#[inline(always)]
pub(crate) fn sender(skb: Address) -> Option<Peer> {
    let head = at!(skb, skb_head, u64)?;
    let ip = head + u64::from(at!(skb, skb_network, u16)?);
    let tcp = head + u64::from(at!(skb, skb_transport, u16)?);
    let port = u16::from_be(read(tcp)?);
    // RFC 791 and RFC 8200: the version is in the upper half of the first byte
    match read::<u8>(ip)? >> 4 {
        4 => Some(Peer { family: AF_INET, port, addr: [read::<u32>(ip + 12)?.into(), 0] }),
        6 => Some(Peer { family: AF_INET6, port, addr: read(ip + 8)? }),
        _ => None,
    }
}

/// Where a `struct sockaddr` in kernel memory points to (include/uapi/linux/in.h, in6.h).
#[inline(always)]
pub(crate) fn destination(sockaddr: Address) -> Option<Peer> {
    let family = read(sockaddr)?;
    let port = u16::from_be(read(sockaddr + 2)?);
    let addr = match family {
        AF_INET => [read::<u32>(sockaddr + 4)?.into(), 0],
        AF_INET6 => read(sockaddr + 8)?,
        _ => return None,
    };
    Some(Peer { family, port, addr })
}

/// The network namespace of the current task.
#[inline(always)]
pub(crate) fn netns() -> Option<u32> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    at!(at!(at!(task, nsproxy, u64)?, net_ns, u64)?, inum, u32)
}

/// The socket behind a descriptor of the current task: `file.private_data` is the
/// `struct socket` (`sock_alloc_file`, net/socket.c). Of a file that is no socket it is nonsense:
/// the reads then fail, or [`is_tcp`] does.
#[inline(always)]
pub(crate) fn socket_of(fd: u64) -> Option<Address> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let fdt = at!(at!(task, files, u64)?, fdt, u64)?;
    let file: u64 = read(at!(fdt, fd, u64)? + 8 * (fd & 0xffff_ffff))?;
    socket_of_file(file)
}

/// The socket behind a `struct file`.
#[inline(always)]
pub(crate) fn socket_of_file(file: Address) -> Option<Address> {
    at!(at!(file, private_data, u64)?, socket_sk, u64).filter(|sk| *sk != 0)
}

/// The first argument of the system call that the current task is in, from a program at its exit.
#[inline(always)]
pub(crate) fn first_argument() -> Option<u64> {
    // SAFETY: no arguments.
    let task = unsafe { aya_ebpf::helpers::generated::bpf_get_current_task_btf() };
    // SAFETY: the task that the helper above gave.
    let regs = unsafe { aya_ebpf::helpers::generated::bpf_task_pt_regs(task) };
    at!(regs as u64, first_argument, u64)
}

/// What a system call returned, in `struct syscall_trace_exit` (kernel/trace/trace.h).
#[inline(always)]
pub(crate) fn returned(ctx: &aya_ebpf::programs::TracePointContext) -> i64 {
    // SAFETY: the structure is a header of 8 bytes, an int and its padding, and the value.
    unsafe { ctx.as_ptr().byte_add(16).cast::<i64>().read_volatile() }
}
