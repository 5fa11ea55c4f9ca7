//! `iter/tcp`: gives slots to the listeners that have none, and notes each one's queues, limit and
//! drops, as a dump would show them.
//!
//! The iterator visits the listeners of the reader's namespace first, then every connection
//! (`bpf_iter_tcp_batch`, net/ipv4/tcp_ipv4.c). After the last listener the program writes more
//! than the iterator's buffer holds, which ends the walk (`bpf_seq_read`, kernel/bpf/bpf_iter.c):
//! the cost is that of the listeners alone. Once, at the start, it goes on and tags the connections
//! that are there already, so that their end is counted.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use backlogd_abi::{OVERFLOW, Place, Seat, cell};

use crate::{
    hooks::state::know_by_address,
    maps::{self, ACCEPTED, ESTABLISHED, FILLING, PLACES, count_cell},
    slot::{self, Taker, held, record_of},
    sock::{self, Sock, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_RECV},
};

/// `struct bpf_iter_meta`, include/linux/bpf.h
#[repr(C)]
struct Meta {
    seq: *mut c_void,
    session_id: u64,
    seq_num: u64,
}

/// `struct bpf_iter__tcp`, net/ipv4/tcp_ipv4.c
#[repr(C)]
struct Context {
    meta: *const Meta,
    sk_common: Sock,
    uid: u32,
}

// aya-ebpf has no macro for iterators; the section's name is all the loader needs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
fn adopt(ctx: *mut c_void) -> i32 {
    // SAFETY: the kernel passes this structure.
    let (meta, sk) = unsafe { ((*ctx.cast::<Context>()).meta, (*ctx.cast::<Context>()).sk_common) };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: the verifier knows the pointer.
    let (seq, seen) = unsafe { ((*meta).seq, (*meta).seq_num) };
    let listening = sock::is_listening(sk);
    if listening && visit(sk).is_none() {
        count_cell(cell::UNFOLLOWED);
    }
    if !listening && maps::cell(cell::SEARCH) != 0 {
        find(sk);
        return 0;
    }
    if !listening || seen + 1 >= maps::cell(cell::VISIT) {
        if let Some(filling) = FILLING.get_ptr_mut(0) {
            // SAFETY: a map value of that size; failing is the purpose.
            unsafe { generated::bpf_seq_write(seq.cast(), filling.cast(), OVERFLOW as u32) };
        }
    }
    0
}

/// Tags a connection from before the programs for the listener at its local address.
#[inline(always)]
fn find(sk_common: Sock) -> Option<()> {
    // SAFETY: as in `visit`; request socks and TIME_WAIT give nothing.
    let sk = unsafe { generated::bpf_skc_to_tcp_sock(sk_common.cast_mut().cast()) };
    let sk: Sock = sk.cast::<u8>().cast_const();
    if sk.is_null() || !sock::is_tcp(sk) {
        return None;
    }
    let mut place =
        Place { addr: [0; 16], port: sock::port(sk), family: sock::family(sk), member: 0 };
    let seat = seat_at(sk, &mut place)?;
    // SAFETY: a map value.
    let holder = unsafe { (*seat).holder };
    let record = held(holder)?;
    // an orphan has no file either, but is past these states
    let is_young = matches!(sock::state(sk), TCP_ESTABLISHED | TCP_CLOSE_WAIT | TCP_SYN_RECV);
    if is_young && !sock::has_file(sk) {
        slot::tag_anew(sk, holder, ESTABLISHED)?;
        know_by_address(sk, holder, 0);
        // SAFETY: a map value, of which only this program writes the field.
        unsafe { (*record).base += 1 };
        take_seat(seat, &mut place);
    } else {
        slot::tag_anew(sk, holder, ESTABLISHED | ACCEPTED)?;
        // SAFETY: as above.
        unsafe { (*record).found += 1 };
    }
    Some(())
}

/// Whose turn it is at the local address of a connection, or at any address; `place` becomes the
/// one that has it.
#[inline(always)]
fn seat_at(sk: Sock, place: &mut Place) -> Option<*mut Seat> {
    // SAFETY: 16 bytes; BPF stores need no alignment beyond the stack's.
    unsafe { (&raw mut place.addr).cast::<[u64; 2]>().write_unaligned(sock::addr(sk)) };
    if let Some(seat) = PLACES.get_ptr_mut(&*place) {
        return Some(seat);
    }
    place.addr = [0; 16];
    PLACES.get_ptr_mut(&*place)
}

/// One more queued connection: the last one that there is room for makes it the next one's turn.
#[inline(always)]
fn take_seat(seat: *mut Seat, place: &mut Place) {
    // SAFETY: a map value; the iterator alone writes it, in one thread.
    let next = unsafe {
        (*seat).room -= 1;
        if (*seat).room != 0 {
            return;
        }
        (*seat).next
    };
    place.member = next;
    if let Some(other) = PLACES.get_ptr(&*place) {
        // SAFETY: two map values.
        unsafe { *seat = *other };
    }
}

#[inline(always)]
fn visit(sk_common: Sock) -> Option<()> {
    // SAFETY: the helper makes a whole socket of a sock_common, or nothing.
    let sk = unsafe { generated::bpf_skc_to_tcp_sock(sk_common.cast_mut().cast()) };
    let sk: Sock = sk.cast::<u8>().cast_const();
    if sk.is_null() || !sock::is_tcp(sk) {
        return None;
    }
    let record = record_of(slot::listener(sk, Taker::Adopt)?)?;
    // SAFETY: a map value, of which only this program writes these fields.
    unsafe {
        (*record).syn_queue = sock::syn_queue(sk);
        (*record).limit = sock::max_ack_backlog(sk);
        (*record).drops = sock::drops(sk);
        (*record).length = sock::ack_backlog(sk);
        // last: what stands beside it is of this pass
        (*record).pass = maps::cell(cell::PASS) as u32;
    }
    Some(())
}
