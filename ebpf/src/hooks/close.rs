//! `tcp_destroy_sock`: a connection or its listener is gone. Destroyed, not merely in state CLOSE:
//! a reset connection whose descriptor is still held is open. Twice, as in `state.rs`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use backlogd_abi::{
    Record, cell,
    event::{UNKNOWN, kind},
};

use crate::{
    hooks::state::bury,
    maps::{
        ACCEPTED, CHILDREN, CLOSED, DURATIONS, ESTABLISHED, THROWN_AWAY, Tag, cell, count, is_done,
        now, observe, once,
    },
    slot::{is_original, record_of, tag_of},
    sock::Sock,
    watch::{Detail, peer_of, tell},
};

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn destroy(ctx: BtfTracePointContext) -> i32 {
    destroyed(ctx.arg(0));
    0
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn destroy_2(ctx: BtfTracePointContext) -> i32 {
    destroyed(ctx.arg(0));
    0
}

#[inline(always)]
fn destroyed(sk: Sock) -> Option<()> {
    let tag = tag_of(sk)?;
    if !once(tag, CLOSED) {
        return None;
    }
    let by_address = if cell(cell::BY_ADDRESS) != 0 { forget(sk) } else { 0 };
    let record = record_of(tag)?;
    if is_original(tag, sk) {
        bury(record, sk);
    } else if is_done(tag, ESTABLISHED) {
        ended(sk, tag, record, by_address);
        // last: it tells the agent to look at the durations again
        // SAFETY: a map value.
        count(unsafe { &raw mut (*record).closed });
    }
    Some(())
}

/// Forgets a child that is known by its address: when it was accepted, or 0.
#[inline(always)]
fn forget(sk: Sock) -> u64 {
    let key = sk as u64;
    // SAFETY: a map value, copied at once.
    let accepted = CHILDREN.get_ptr(&key).map_or(0, |child| unsafe { (*child).accepted });
    // it is not there when the map was full
    let _ = CHILDREN.remove(&key);
    accepted
}

/// How long it was open, from accept on.
#[inline(always)]
fn ended(sk: Sock, tag: *const Tag, record: *const Record, by_address: u64) {
    // SAFETY: a storage value.
    let (time, slot) = unsafe { ((*tag).time, (*tag).holder.slot) };
    let accepted = if is_done(tag, ACCEPTED) { time } else { by_address };
    let mut span = UNKNOWN;
    if accepted != 0 {
        span = now().saturating_sub(accepted);
        observe(&DURATIONS, slot, span);
    }
    if !is_done(tag, THROWN_AWAY) {
        tell(kind::CLOSE, record, || Detail { span, peer: peer_of(sk), ..Detail::INTERRUPT });
    }
}
