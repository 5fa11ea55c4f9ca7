//! `tcp_destroy_sock`: a connection or its listener is gone. Destroyed, not merely in state CLOSE:
//! a reset connection whose descriptor is still held is open. Twice, as in `state.rs`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    hooks::state::bury,
    maps::{CLOSED, ESTABLISHED, count, is_done, once},
    slot::{is_original, record_of, tag_of},
    sock::Sock,
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
    let record = record_of(tag)?;
    if is_original(tag, sk) {
        bury(record, sk);
    } else if is_done(tag, ESTABLISHED) {
        // SAFETY: a map value.
        count(unsafe { &raw mut (*record).closed });
    }
    Some(())
}
