//! A child is in the queue; how long is it? For kernels that refuse to let `state.rs` read the
//! listener by its address: `sk_data_ready` (6.3 and newer) or `sock_def_readable` on the listener,
//! which run for every socket that has something to read.
//!
//! Not the place to count: a child that accept(2) has locked already gets no call
//! (`tcp_child_process`, net/ipv4/tcp_minisocks.c).

use aya_ebpf::{
    macros::{btf_tracepoint, fentry},
    programs::{BtfTracePointContext, FEntryContext},
};

use crate::{
    hooks::state::{learn_port, note_length},
    slot::{self, Taker, record_of},
    sock::{self, Sock},
};

#[btf_tracepoint(function = "sk_data_ready")]
fn enqueue(ctx: BtfTracePointContext) -> i32 {
    enqueued(ctx.arg(0));
    0
}

#[fentry(function = "sock_def_readable")]
fn enqueue_fentry(ctx: FEntryContext) -> i32 {
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
    note_length(record, established, sock::ack_backlog(sk).into());
    learn_port(record, sk);
    Some(())
}
