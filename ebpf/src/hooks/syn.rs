//! SYNs that reach a listener, and what becomes of them: `tcp_conn_request`
//! (net/ipv4/tcp_input.c), which IPv4, IPv6 and MPTCP share.
//!
//! The program asks what the kernel asks right after it, in the same order: SYN queue full and no
//! cookies, accept queue full. Listeners take SYNs on several CPUs at a time, so a SYN that races
//! with another can be judged otherwise than the kernel does; the agent holds the sum against
//! ListenDrops. Kernels before a change of 2025 refuse at a SYN queue as long as its limit already;
//! there the agent gives such drops their name by TCPReqQFullDrop. Not told here: the rule for the last quarter of tcp_max_syn_backlog, and SYNs for
//! which no route or memory is found.

use aya_ebpf::{
    helpers::generated,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use backlogd_abi::{
    Holder, Record,
    event::{kind, reason},
};

use crate::{
    maps::{LISTENERS, REQUEST, count},
    probe::{self, Address, at},
    slot::{held, is_original, tag_of},
    sock::{self, Sock},
    watch::{Detail, tell},
};

/// What the listener looks like when a SYN comes.
#[derive(Clone, Copy)]
struct Queues {
    length: u32,
    limit: u32,
    syn_queue: u32,
    syncookies: u8,
}

#[fentry(function = "tcp_conn_request")]
fn syn(ctx: FEntryContext) -> i32 {
    if request(ctx.arg(2), ctx.arg(3)).is_none() {
        note(None);
    }
    0
}

#[kprobe]
fn syn_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg(2), ctx.arg(3))
        && request_by_address(sk, skb).is_none()
    {
        note(None);
    }
    0
}

#[inline(always)]
fn request(sk: Sock, skb: Address) -> Option<()> {
    let tag = tag_of(sk)?;
    if !is_original(tag, sk) {
        return None;
    }
    // SAFETY: a storage value.
    let holder = unsafe { (*tag).holder };
    // SAFETY: the helper makes a whole socket of a sock, or nothing.
    let tcp = unsafe { generated::bpf_skc_to_tcp_sock(sk.cast_mut().cast()) }.cast::<u8>();
    if tcp.is_null() {
        return None;
    }
    let queues = Queues {
        length: sock::ack_backlog(sk),
        limit: sock::max_ack_backlog(sk),
        syn_queue: sock::syn_queue(tcp.cast_const()),
        syncookies: sock::syncookies(sk),
    };
    judge(holder, queues, skb)
}

#[inline(always)]
fn request_by_address(sk: Address, skb: Address) -> Option<()> {
    // SAFETY: the entry is copied at once.
    let holder = *unsafe { LISTENERS.get(&sk) }?;
    let queues = Queues {
        length: at!(sk, ack_backlog, u32)?,
        limit: at!(sk, max_ack_backlog, u32)?,
        syn_queue: at!(sk, qlen, u32)?,
        syncookies: at!(at!(sk, net, u64)?, syncookies, u8)?,
    };
    judge(holder, queues, skb)
}

#[inline(always)]
fn judge(holder: Holder, queues: Queues, skb: Address) -> Option<()> {
    let record = held(holder)?;
    note(Some(holder));
    // SAFETY: a map value.
    count(unsafe { &raw mut (*record).syns });
    tell(kind::SYN, record, || detail(skb, reason::NONE));
    // inet_csk_reqsk_queue_is_full, tcp_syn_flood_action, then sk_acceptq_is_full
    if queues.limit < queues.syn_queue && queues.syncookies == 0 {
        // SAFETY: a map value.
        count(unsafe { &raw mut (*record).syn_queue_full });
        tell(kind::SYN_DROP, record, || detail(skb, reason::SYN_QUEUE_FULL));
    } else if queues.limit < queues.length {
        // SAFETY: a map value.
        count(unsafe { &raw mut (*record).full_syn });
        tell(kind::OVERFLOW, record, || detail(skb, reason::ACCEPT_QUEUE_FULL_SYN));
    }
    Some(())
}

#[inline(always)]
fn detail(skb: Address, reason: u16) -> Detail {
    let peer = if probe::is_allowed() { probe::sender(skb) } else { None };
    Detail { reason, peer: peer.unwrap_or_default(), ..Detail::INTERRUPT }
}

/// Notes whose SYN this CPU is working on; softirqs do not nest, so it is still that one when a
/// cookie is made.
#[inline(always)]
fn note(holder: Option<Holder>) {
    let Some(request) = REQUEST.get_ptr_mut(0) else { return };
    let value = match holder {
        Some(Holder { slot, generation }) => (u64::from(slot) + 1) << 32 | u64::from(generation),
        None => 0,
    };
    // SAFETY: a map value of this CPU.
    unsafe { request.write(value) };
}

#[fentry(function = "cookie_v4_init_sequence")]
fn cookie_v4(ctx: FEntryContext) -> i32 {
    cookie(ctx.arg(0));
    0
}

#[fentry(function = "cookie_v6_init_sequence")]
fn cookie_v6(ctx: FEntryContext) -> i32 {
    cookie(ctx.arg(0));
    0
}

#[kprobe]
fn cookie_v4_kprobe(ctx: ProbeContext) -> u32 {
    cookie(ctx.arg(0).unwrap_or(0));
    0
}

#[kprobe]
fn cookie_v6_kprobe(ctx: ProbeContext) -> u32 {
    cookie(ctx.arg(0).unwrap_or(0));
    0
}

/// A cookie is made for the SYN that this CPU is working on; its maker gets no socket.
#[inline(always)]
fn cookie(skb: Address) -> Option<()> {
    // SAFETY: a map value of this CPU.
    let request = unsafe { REQUEST.get_ptr(0)?.read() };
    let slot = (request >> 32).checked_sub(1)? as u32;
    let record: *mut Record = held(Holder { slot, generation: request as u32 })?;
    // SAFETY: a map value.
    count(unsafe { &raw mut (*record).cookies });
    tell(kind::COOKIE, record, || detail(skb, reason::NONE));
    Some(())
}
