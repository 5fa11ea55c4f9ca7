//! The sweep: notes each followed listener's queues, limit and drops, of all namespaces at once, from
//! the addresses in the records. Attached to nothing; the agent runs it
//! (`bpf_prog_test_run_raw_tp`, net/bpf/test_run.c, 5.10), so that a look costs what the listeners
//! cost, however many namespaces, sockets and empty hash buckets there are.
//!
//! A socket's memory stays a socket's while the program runs (`SLAB_TYPESAFE_BY_RCU`, `tcp_prot`,
//! net/ipv4/tcp_ipv4.c), and its destruction marks the record before: what is read of a record that is
//! not marked afterwards is the listener's own.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use backlogd_abi::{DESTROYED, Record, SWEEP, cell};

use crate::{
    maps::{self, SLOTS},
    probe::{at, copy},
    sock::{TCP_LISTEN, offset},
};

/// Looks at [`SWEEP`] records from the one whose number is the first argument on.
#[raw_tracepoint]
fn sweep(ctx: RawTracePointContext) -> i32 {
    let first: u64 = ctx.arg(0);
    for i in 0..SWEEP {
        let Some(record) = SLOTS.get_ptr_mut(first as u32 + i) else { break };
        look(record);
    }
    0
}

/// Reads straight into the record, and asks once whether all was read: each branch in here is one that the
/// verifier follows in each turn of the loop.
#[inline(always)]
fn look(record: *mut Record) -> Option<()> {
    // SAFETY: a map value, of which the programs' own side writes these fields.
    let (cookie, owner) = unsafe { ((*record).cookie, (*record).owner) };
    if cookie == 0 || is_destroyed(record) || i32::from(at!(owner, state, u8)?) != TCP_LISTEN {
        return None;
    }
    let (mut socket, mut v6only, mut port) = (0_u64, 0_u8, 0_u16);
    // SAFETY: a map value; the agent runs one sweep at a time, and nobody else writes these fields
    // meanwhile but with the same port.
    let failed = unsafe {
        copy!(owner, ack_backlog, &raw mut (*record).length)
            | copy!(owner, max_ack_backlog, &raw mut (*record).limit)
            | copy!(owner, drops, &raw mut (*record).drops)
            | copy!(owner, qlen, &raw mut (*record).syn_queue)
            | copy!(owner, port, &raw mut port)
            | copy!(owner, v6only_byte, &raw mut v6only)
            | copy!(owner, socket, &raw mut socket)
    };
    // SAFETY: as above. Without a `struct socket` this fails, and leaves 0.
    unsafe { copy!(socket, inode, &raw mut (*record).inode) };
    if failed != 0 || is_destroyed(record) {
        return None;
    }
    // SAFETY: as above.
    unsafe {
        // read by others, too, whatever the pass
        (*record).port = port;
        (*record).v6only = u32::from(u32::from(v6only) & offset!(v6only_mask) != 0);
        // last: what stands beside it is of this look
        (*record).pass = maps::cell(cell::PASS) as u32;
    }
    Some(())
}

#[inline(always)]
fn is_destroyed(record: *const Record) -> bool {
    // SAFETY: a map value; volatile, since it changes meanwhile.
    unsafe { (&raw const (*record).flags).read_volatile() & DESTROYED != 0 }
}
