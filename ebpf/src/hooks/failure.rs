//! accept(2) and connect(2) that fail, by caller and error.
//!
//! EMFILE and ENFILE are decided before the protocol is asked (`do_accept`, net/socket.c): only the
//! system call itself sees them. What io_uring accepts goes through `io_accept` (io_uring/net.c).

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_get_current_comm,
    macros::{fexit, kretprobe, tracepoint},
    programs::{FExitContext, RetProbeContext, TracePointContext},
};
use backlogd_abi::{ACCEPT, CONNECT, FailedCall, cell, event::kind};

use crate::{
    maps::{FAILED, LISTENERS, count, count_cell},
    probe::{self, Address},
    slot::{held, is_followed},
    sock::{self, Sock, field},
    watch::{Detail, tell, tell_alone},
};

const EINTR: u32 = 4;
const EBADF: u32 = 9;
const EAGAIN: u32 = 11;
const ENOTSOCK: u32 = 88;
const EISCONN: u32 = 106;
const EALREADY: u32 = 114;
const EINPROGRESS: u32 = 115;
/// What user space can see ends here; beyond are the kernel's own (include/linux/errno.h).
const LAST: u32 = 133;

#[fexit(function = "__sys_accept4")]
fn accept_error(ctx: FExitContext) -> i32 {
    // four arguments, then what is returned
    let returned: i32 = ctx.arg(4);
    if returned < 0 {
        let fd: i32 = ctx.arg(0);
        let listener = if probe::is_allowed() { probe::socket_of(fd as u64) } else { None };
        failed_accept(-returned as u32, listener.unwrap_or(0));
    }
    0
}

/// The result is returned or, with 0 returned, in the request. EAGAIN is io_uring's own: it tries
/// again when the listener is readable.
#[fexit(function = "io_accept")]
fn accept_error_uring(ctx: FExitContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    let returned: i32 = ctx.arg(2);
    let result = if returned == 0 { field!(request, io_result, i32) } else { returned };
    if result < 0 && -result as u32 != EAGAIN {
        let listener = if probe::is_allowed() {
            probe::socket_of_file(field!(request, io_file, u64))
        } else {
            None
        };
        failed_accept(-result as u32, listener.unwrap_or(0));
    }
    0
}

/// Counts a failed accept of the listening socket at `sk`; 0 where it cannot be told.
#[inline(always)]
pub(crate) fn failed_accept(errno: u32, sk: Address) -> Option<()> {
    if LAST < errno || matches!(errno, EINTR | EBADF | ENOTSOCK) {
        return None;
    }
    if probe::is_allowed() && !probe::is_tcp(sk) {
        return None;
    }
    count_failed(ACCEPT, errno);
    if errno == EAGAIN {
        return None;
    }
    let detail = || Detail { errno, ..Detail::TASK };
    // SAFETY: the entry is copied at once.
    match unsafe { LISTENERS.get(&sk) }.and_then(|holder| held(*holder)) {
        Some(record) => _ = tell(kind::ACCEPT_ERROR, record, detail),
        None => tell_alone(kind::ACCEPT_ERROR, detail),
    }
    Some(())
}

/// Counts a failed call by its task's name, unless another namespace's is not followed; whose it is
/// goes unasked where the kernel's memory may not be read.
#[inline(always)]
fn count_failed(call: u32, errno: u32) -> Option<()> {
    // nobody's namespace is followed where all are
    let netns = if !is_followed(0) && probe::is_allowed() { probe::netns() } else { None };
    if netns.is_some_and(|netns| !is_followed(netns)) {
        return None;
    }
    let comm = bpf_get_current_comm().ok()?;
    let key = FailedCall { comm, errno, call };
    count_cell(cell::ERRORS);
    if let Some(counter) = FAILED.get_ptr_mut(&key) {
        count(counter);
    } else if FAILED.insert(&key, &1, BPF_NOEXIST.into()).is_err() {
        // another CPU was first, or there is no room
        match FAILED.get_ptr_mut(&key) {
            Some(counter) => _ = count(counter),
            None => count_cell(cell::MAP_FULL),
        }
    }
    Some(())
}

#[fexit(function = "inet_stream_connect")]
fn connect(ctx: FExitContext) -> i32 {
    let returned: i32 = ctx.arg(4);
    if returned < 0 {
        let socket: *const u8 = ctx.arg(0);
        let sk: Sock = field!(socket, socket_sk, Sock);
        // SAFETY: the verifier knows the pointer; reading it cannot fault.
        if !sk.is_null() && sock::is_tcp_to_users(sock::protocol(sk), sock::family(sk)) {
            let sockaddr: u64 = ctx.arg(1);
            refused(-returned as u32, sockaddr);
        }
    }
    0
}

#[kretprobe]
fn connect_v4_kprobe(ctx: RetProbeContext) -> u32 {
    connect_returned(ctx.ret());
    0
}

#[kretprobe]
fn connect_v6_kprobe(ctx: RetProbeContext) -> u32 {
    connect_returned(ctx.ret());
    0
}

#[inline(always)]
fn connect_returned(returned: i32) {
    if returned < 0 {
        refused(-returned as u32, 0);
    }
}

#[tracepoint]
fn exit_connect(ctx: TracePointContext) -> u32 {
    let returned = probe::returned(&ctx);
    if returned < 0 {
        exit_connect_failed(-returned as u32);
    }
    0
}

#[inline(always)]
fn exit_connect_failed(errno: u32) -> Option<()> {
    if probe::is_tcp(probe::socket_of(probe::first_argument()?)?) {
        refused(errno, 0);
    }
    Some(())
}

/// Counts a failed connect; what says only that it is under way or done is no failure. `sockaddr` is
/// the address of where to, 0 where it is not known.
#[inline(always)]
fn refused(errno: u32, sockaddr: Address) {
    if LAST < errno || matches!(errno, EINTR | EBADF | EISCONN | EALREADY | EINPROGRESS) {
        return;
    }
    count_failed(CONNECT, errno);
    tell_alone(kind::CONNECT_ERROR, || {
        let known = probe::is_allowed() && sockaddr != 0;
        let peer = if known { probe::destination(sockaddr) } else { None };
        Detail { errno, peer: peer.unwrap_or_default(), ..Detail::TASK }
    });
}
