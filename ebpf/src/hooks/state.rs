//! `inet_sock_set_state`: a socket listens, stops listening, becomes established, is reset.
//!
//! The kernel skips a program on a CPU that is just running it: an interrupt over a process's own
//! state change (any kernel) or another task (7.0 and newer, where tracepoints are preemptible)
//! would lose its event. So the program is there twice, and the tag says what is counted.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_or};

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use backlogd_abi::{DESTROYED, Holder, LENGTH_BITS, Record, STOPPED, WATCHED, cell, event::kind};

use crate::{
    maps::{
        self, CHILDREN, Child, DISCARDED, ESTABLISHED, LISTENED, LISTENERS, RESET, THROWN_AWAY,
        UNDONE, add, count, count_cell, now, once, raise,
    },
    probe::{self, at},
    slot::{self, Taker, record_of, tag_of},
    sock::{self, Sock, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV},
    watch::{Detail, peer_of, tell},
};

/// Which of the two copies runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    First,
    Second,
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn state(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, Copy::First);
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn state_2(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, Copy::Second);
    0
}

#[inline(always)]
fn changed(ctx: &BtfTracePointContext, copy: Copy) -> Option<()> {
    let (sk, old, new): (Sock, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    match (old, new) {
        (TCP_LISTEN, TCP_SYN_RECV) => born(sk)?,
        (TCP_SYN_RECV, TCP_ESTABLISHED) => established(sk, copy)?,
        (TCP_SYN_RECV, _) => unfinished(sk)?,
        (_, TCP_LISTEN) if sock::is_tcp(sk) => _ = listen(sk)?,
        (TCP_LISTEN, TCP_CLOSE) => stop(sk)?,
        (TCP_ESTABLISHED | TCP_CLOSE_WAIT, TCP_CLOSE) => reset(sk)?,
        _ => {}
    }
    Some(())
}

/// The kernel makes a child, in the softirq that puts it on the queue
/// (`inet_csk_clone_lock`, net/ipv4/inet_connection_sock.c).
#[inline(always)]
fn born(sk: Sock) -> Option<()> {
    let tag = tag_of(sk)?;
    // SAFETY: a storage value of a child that nobody else knows so far.
    let holder = unsafe {
        if (*tag).time != 0 {
            return None;
        }
        (*tag).time = now();
        (*tag).holder
    };
    // SAFETY: as above.
    know_by_address(sk, holder, unsafe { (*tag).time });
    Some(())
}

/// Makes a child known to programs that get its address alone, where there are any.
#[inline(always)]
pub(crate) fn know_by_address(sk: Sock, holder: Holder, born: u64) {
    if maps::cell(cell::BY_ADDRESS) != 0 {
        let child = Child { holder, born, accepted: 0 };
        if CHILDREN.insert(&(sk as u64), &child, 0).is_err() {
            count_cell(cell::MAP_FULL);
        }
    }
}

/// The handshake is complete. The child has just been queued: how long is the queue?
#[inline(always)]
fn established(sk: Sock, copy: Copy) -> Option<()> {
    let tag = tag_of(sk)?;
    if !once(tag, ESTABLISHED) {
        return None;
    }
    let record = record_of(tag)?;
    // SAFETY: a map value.
    let n = count(unsafe { &raw mut (*record).established }) + 1;
    if copy == Copy::Second {
        count_cell(cell::SECOND_COPY);
    }
    learn_port(record, sk);
    // SAFETY: a map value.
    let (owner, is_gone) = unsafe { ((*record).owner, (*record).flags & DESTROYED != 0) };
    if probe::is_allowed()
        && !is_gone
        // after the count, so that the difference never runs ahead
        && let Some(length) = at!(owner, ack_backlog, u32)
    {
        note_length(record, n, length.into());
    }
    tell(kind::ESTABLISHED, record, || Detail { peer: peer_of(sk), ..Detail::INTERRUPT });
    Some(())
}

/// A child ends before it is established; PassiveOpens has it (`tcp_create_openreq_child`,
/// net/ipv4/tcp_minisocks.c). Either it is one of Fast Open, which was queued at the SYN and is
/// closed, reset or thrown away before the last ACK. Or its listener has left LISTEN meanwhile, and
/// the kernel forgets it (`inet_child_forget`, net/ipv4/inet_connection_sock.c): it was not in the
/// queue that [`stop`] counted. Or it never was a connection.
#[inline(always)]
fn unfinished(sk: Sock) -> Option<()> {
    let tag = tag_of(sk)?;
    let record = record_of(tag)?;
    // of one that is reset `fastopen_rsk` is gone already (`tcp_check_req`)
    let is_unqueued = !sock::has_file(sk) && sock::error(sk) == 0 && !sock::is_fast_open(sk);
    if is_unqueued && !is_forgotten(sk, record) {
        if once(tag, UNDONE) {
            // SAFETY: a map value.
            count(unsafe { &raw mut (*record).undone });
        }
        return None;
    }
    if !once(tag, ESTABLISHED) {
        return None;
    }
    if is_unqueued {
        // first, so that the difference of the two never runs ahead
        // SAFETY: a map value.
        count(unsafe { &raw mut (*record).discarded });
    }
    // SAFETY: as above.
    count(unsafe { &raw mut (*record).established });
    reset(sk)
}

/// Whether a child that ends unqueued is a connection that the kernel forgets, since its listener
/// has left LISTEN. Else it undoes the child. Two CPUs that work on the same last ACK, or on one and
/// the data that follow, make a child each; the second to hash it loses (`inet_ehash_nolisten`,
/// net/ipv4/inet_hashtables.c) and is the one way to CLOSE that leaves a port: `tcp_set_state`
/// (net/ipv4/tcp.c) gives it back first. Where no route leads back, memory is short or Multipath TCP
/// refuses the child, the listener goes on listening.
#[inline(always)]
fn is_forgotten(sk: Sock, record: *const Record) -> bool {
    // set before the state that the kernel looks at
    // SAFETY: a map value.
    let has_stopped = unsafe { (*record).flags } & STOPPED != 0;
    has_stopped && sock::port(sk) == 0
}

/// Notes the queue's length after an enqueue, and how many were established before it was read.
#[inline(always)]
pub(crate) fn note_length(record: *mut Record, established: u64, length: u64) {
    // SAFETY: a map value.
    raise(unsafe { &raw mut (*record).last }, established << LENGTH_BITS | length);
    // SAFETY: a map value.
    raise(unsafe { &raw mut (*record).high_water }, length);
}

/// listen(2), perhaps on a socket that was shut down: it keeps its slot, what it may throw away
/// counts again, and its port can be another one.
#[inline(always)]
fn listen(sk: Sock) -> Option<()> {
    let tag = slot::listener(sk, Taker::Listen)?;
    let record = record_of(tag)?;
    // SAFETY: a storage value and a map value; the caller of listen(2) holds the socket's lock.
    unsafe {
        (*record).port = sock::port(sk);
        (*record).flags &= !STOPPED;
        if (*tag).done == LISTENED {
            return None;
        }
        (*tag).done = LISTENED;
    }
    if tell(kind::LISTEN, record, || Detail::TASK) {
        // until the agent looks, it is the caller's
        // SAFETY: a map value, aligned.
        unsafe { atomic_or::<u32, u32, { SeqCst }>(&raw mut (*record).marks, WATCHED) };
    }
    Some(())
}

/// The listener leaves LISTEN; `inet_csk_listen_stop` (net/ipv4/inet_connection_sock.c) throws
/// away what is queued. An enqueue that passed the kernel's own check of the state just before
/// can come after this read: the count would be one short.
#[inline(always)]
fn stop(sk: Sock) -> Option<()> {
    let tag = tag_of(sk)?;
    if !slot::is_original(tag, sk) {
        return None;
    }
    let record = record_of(tag)?;
    // SAFETY: a map value; whoever changes the state holds the socket's lock.
    unsafe { (*record).flags |= STOPPED };
    if !once(tag, DISCARDED) {
        return None;
    }
    // SAFETY: a map value.
    add(unsafe { &raw mut (*record).discarded }, sock::ack_backlog(sk).into());
    learn_port(record, sk);
    tell(kind::UNLISTEN, record, || Detail::TASK);
    Some(())
}

/// A child that nobody has accepted is reset by its peer: `tcp_reset` (net/ipv4/tcp_input.c) sets
/// the error before the state. Or its listener closes and throws it away: `tcp_disconnect` sets
/// the state first.
#[inline(always)]
fn reset(sk: Sock) -> Option<()> {
    if sock::has_file(sk) {
        return None;
    }
    let tag = tag_of(sk)?;
    if sock::error(sk) == 0 {
        if once(tag, THROWN_AWAY) {
            let detail = || Detail { peer: peer_of(sk), ..Detail::INTERRUPT };
            tell(kind::DISCARD, record_of(tag)?, detail);
        }
    } else if once(tag, RESET) {
        let record = record_of(tag)?;
        // SAFETY: a map value.
        count(unsafe { &raw mut (*record).resets });
        tell(kind::RESET, record, || Detail { peer: peer_of(sk), ..Detail::INTERRUPT });
    }
    Some(())
}

/// The port of a socket that was not bound is not known yet when it starts to listen
/// (`inet_csk_listen_start` binds it after the change of state).
#[inline(always)]
pub(crate) fn learn_port(record: *mut Record, sk: Sock) {
    // SAFETY: a map value; everybody who comes here writes the same port.
    unsafe {
        if (*record).port == 0 {
            (*record).port = sock::port(sk);
        }
    }
}

/// Marks the record of a listening socket that is gone.
#[inline(always)]
pub(crate) fn bury(record: *mut Record, sk: Sock) {
    // SAFETY: a map value; a socket is destroyed once.
    unsafe {
        (*record).final_drops = sock::drops(sk);
        (*record).flags |= DESTROYED;
    }
    // it has none when the map was full
    let _ = LISTENERS.remove(&(sk as u64));
}
