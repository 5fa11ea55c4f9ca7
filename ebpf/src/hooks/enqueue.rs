//! `sk_data_ready` on a listener (6.3 and newer): a child is in the queue; how long is it?
//!
//! Not the place to count: a child that accept(2) has locked already gets no call
//! (`tcp_child_process`, net/ipv4/tcp_minisocks.c).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use backlogd_abi::LENGTH_BITS;

use crate::{
    hooks::state::learn_port,
    maps::raise,
    slot::{self, Taker, record_of},
    sock::{self, Sock},
};

#[btf_tracepoint(function = "sk_data_ready")]
fn enqueue(ctx: BtfTracePointContext) -> i32 {
    enqueued(ctx.arg(0));
    0
}

#[inline(always)]
fn enqueued(sk: Sock) -> Option<()> {
    if !sock::is_listening(sk) || !sock::is_tcp(sk) {
        return None;
    }
    let record = record_of(slot::listener(sk, Taker::Adopt)?)?;
    // SAFETY: a map value.
    let established = unsafe { (&raw const (*record).established).read_volatile() };
    // after `established`, so that the difference never runs ahead
    let length = u64::from(sock::ack_backlog(sk));
    // SAFETY: a map value.
    raise(unsafe { &raw mut (*record).last }, established << LENGTH_BITS | length);
    // SAFETY: a map value.
    raise(unsafe { &raw mut (*record).high_water }, length);
    learn_port(record, sk);
    Some(())
}
