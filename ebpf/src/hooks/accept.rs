//! Connections that accept returns, and how long they waited.
//!
//! `security_sock_graft` (`sock_graft`, include/net/sock.h) runs after the wait, for every way to
//! accept: threads that were blocked before the program, io_uring. Not for a connection of an MPTCP
//! listener that speaks MPTCP: what is grafted then is the MPTCP socket, which has no tag.

use aya_ebpf::{
    macros::{fentry, kprobe, tracepoint},
    programs::{FEntryContext, ProbeContext, TracePointContext},
};
use backlogd_abi::{
    Record,
    event::{UNKNOWN, kind},
};

use crate::{
    hooks::failure::failed_accept,
    maps::{ACCEPTED, CHILDREN, WAITS, count, now, observe, once},
    probe::{self, Address},
    slot::{held, record_of, tag_of},
    sock::Sock,
    watch::{Detail, peer_of, tell},
};

#[fentry(function = "security_sock_graft")]
fn accept(ctx: FEntryContext) -> i32 {
    accepted(ctx.arg(0));
    0
}

#[inline(always)]
fn accepted(sk: Sock) -> Option<()> {
    let tag = tag_of(sk)?;
    if !once(tag, ACCEPTED) {
        return None;
    }
    let accepted_at = now();
    // SAFETY: a storage value; `once` lets one program come here.
    let (born, slot) = unsafe {
        let born = (*tag).time;
        (*tag).time = accepted_at;
        (born, (*tag).holder.slot)
    };
    let record = record_of(tag)?;
    let wait = waited(record, slot, born, accepted_at);
    tell(kind::ACCEPT, record, || Detail { span: wait, peer: peer_of(sk), ..Detail::TASK });
    Some(())
}

/// Counts an accept and how long it waited. One that was queued before the programs is in the
/// record's base, and nobody knows since when.
#[inline(always)]
fn waited(record: *mut Record, slot: u32, born: u64, accepted: u64) -> u64 {
    if born == 0 {
        return UNKNOWN;
    }
    let wait = accepted.saturating_sub(born);
    observe(&WAITS, slot, wait);
    // last: it tells the agent to look at the waits again
    // SAFETY: a map value.
    count(unsafe { &raw mut (*record).accepted });
    wait
}

#[kprobe]
fn accept_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg::<u64>(0) {
        accepted_by_address(sk);
    }
    0
}

#[inline(always)]
fn accepted_by_address(sk: Address) -> Option<()> {
    let child = CHILDREN.get_ptr_mut(&sk)?;
    let accepted_at = now();
    // SAFETY: a map value; a connection is accepted once, by one task.
    let (born, holder) = unsafe {
        if (*child).accepted != 0 {
            return None;
        }
        (*child).accepted = accepted_at;
        ((*child).born, (*child).holder)
    };
    let record = held(holder)?;
    let wait = waited(record, holder.slot, born, accepted_at);
    tell(kind::ACCEPT, record, || Detail {
        span: wait,
        peer: probe::peer(sk).unwrap_or_default(),
        ..Detail::TASK
    });
    Some(())
}

#[tracepoint]
fn exit_accept(ctx: TracePointContext) -> u32 {
    exited(probe::returned(&ctx));
    0
}

#[tracepoint]
fn exit_accept4(ctx: TracePointContext) -> u32 {
    exited(probe::returned(&ctx));
    0
}

#[inline(always)]
fn exited(returned: i64) -> Option<()> {
    if 0 <= returned {
        return accepted_by_address(probe::socket_of(returned as u64)?);
    }
    let listener = probe::socket_of(probe::first_argument()?)?;
    failed_accept(-returned as u32, listener)
}
