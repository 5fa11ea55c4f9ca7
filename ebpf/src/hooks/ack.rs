//! Last ACKs that are refused since the accept queue is full.
//!
//! `tcp_v4_syn_recv_sock` and `tcp_v6_syn_recv_sock` (net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c)
//! begin by asking `sk_acceptq_is_full`; so does the program, at their entry. They serve the ACK
//! of a SYN cookie, too. Fast Open comes here at the SYN, when the queue has been found not full.

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, kprobe},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext},
};
use backlogd_abi::event::{kind, reason};

use crate::{
    maps::{LISTENERS, count},
    probe::{self, Address, Peer, at},
    slot::{held, record_of, tag_of},
    sock::{self, Sock, field, offset},
    watch::{Detail, peer_of, tell},
};

/// include/uapi/linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;

#[fentry(function = "tcp_v4_syn_recv_sock")]
fn ack_v4(ctx: FEntryContext) -> i32 {
    refused(ctx.arg(0), ctx.arg(2));
    0
}

/// An IPv4 segment of an IPv6 listener goes on to `tcp_v4_syn_recv_sock`.
#[fentry(function = "tcp_v6_syn_recv_sock")]
fn ack_v6(ctx: FEntryContext) -> i32 {
    let skb: *const u8 = ctx.arg(1);
    if field!(skb, skb_protocol, u16) != ETH_P_IP.to_be() {
        refused(ctx.arg(0), ctx.arg(2));
    }
    0
}

#[inline(always)]
fn refused(sk: Sock, request: Sock) -> Option<()> {
    if sock::ack_backlog(sk) <= sock::max_ack_backlog(sk) {
        return None;
    }
    let record = record_of(tag_of(sk)?)?;
    // SAFETY: a map value.
    count(unsafe { &raw mut (*record).full_ack });
    tell(kind::OVERFLOW, record, || detail(peer_of(request)));
    Some(())
}

#[kprobe]
fn ack_v4_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(request)) = (ctx.arg(0), ctx.arg(2)) {
        refused_by_address(sk, request);
    }
    0
}

#[kprobe]
fn ack_v6_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb), Some(request)) = (ctx.arg(0), ctx.arg::<u64>(1), ctx.arg(2))
        && at!(skb, skb_protocol, u16) != Some(ETH_P_IP.to_be())
    {
        refused_by_address(sk, request);
    }
    0
}

#[inline(always)]
fn refused_by_address(sk: Address, request: Address) -> Option<()> {
    if at!(sk, ack_backlog, u32)? <= at!(sk, max_ack_backlog, u32)? {
        return None;
    }
    // SAFETY: the entry is copied at once.
    let record = held(*unsafe { LISTENERS.get(&sk) }?)?;
    // SAFETY: a map value.
    count(unsafe { &raw mut (*record).full_ack });
    tell(kind::OVERFLOW, record, || detail(probe::peer(request).unwrap_or_default()));
    Some(())
}

/// 6.15 and newer: the segment is freed with a reason of its own, and the listener beside it. Not
/// for the ACK of a SYN cookie.
#[btf_tracepoint(function = "kfree_skb")]
fn ack_freed(ctx: BtfTracePointContext) -> i32 {
    let reason: u32 = ctx.arg(2);
    if reason == offset!(listen_overflow) {
        freed(ctx.arg(3), ctx.arg(0));
    }
    0
}

#[inline(always)]
fn freed(sk: Sock, skb: Address) -> Option<()> {
    if sk.is_null() || !sock::is_listening(sk) {
        return None;
    }
    let record = record_of(tag_of(sk)?)?;
    // SAFETY: a map value.
    count(unsafe { &raw mut (*record).full_ack });
    let sender = || if probe::is_allowed() { probe::sender(skb) } else { None };
    tell(kind::OVERFLOW, record, || detail(sender().unwrap_or_default()));
    Some(())
}

#[inline(always)]
fn detail(peer: Peer) -> Detail {
    Detail { reason: reason::ACCEPT_QUEUE_FULL_ACK, peer, ..Detail::INTERRUPT }
}
