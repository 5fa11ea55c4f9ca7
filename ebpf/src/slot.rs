//! From a socket to the record it counts in.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated},
};
use backlogd_abi::{ADOPTED, Holder, Record, cell};

use crate::{
    maps::{FREE, LISTENERS, SLOTS, TAGS, Tag, cell, count_cell},
    sock::{self, Sock},
};

/// Who asks for a listener's slot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taker {
    /// The task that calls listen(2).
    Listen,
    /// Anybody later: an enqueue, the iterator.
    Adopt,
}

#[inline(always)]
fn storage(sk: Sock, value: *const Tag, flags: u32) -> Option<*mut Tag> {
    let map = (&raw const TAGS).cast_mut().cast();
    let (sk, value) = (sk.cast_mut().cast(), value.cast_mut().cast());
    // SAFETY: the verifier checks `sk`; the helper copies `value`.
    let tag = unsafe { generated::bpf_sk_storage_get(map, sk, value, flags.into()) };
    (!tag.is_null()).then_some(tag.cast())
}

/// The tag of a listener or of one of its children.
#[inline(always)]
pub(crate) fn tag_of(sk: Sock) -> Option<*mut Tag> {
    storage(sk, ptr::null(), 0)
}

/// Whether `tag` was made for `sk` itself, not copied to it.
#[inline(always)]
pub(crate) fn is_original(tag: *const Tag, sk: Sock) -> bool {
    // SAFETY: a storage value.
    let slot = unsafe { (*tag).holder.slot };
    // SAFETY: a map value; a listener that lives keeps its slot.
    SLOTS.get_ptr(slot).is_some_and(|record| unsafe { (*record).owner == sk as u64 })
}

/// A listener's tag; in a namespace that is followed it gets a slot from the free list when it has none.
///
/// An accepted socket that was disconnected and made to listen still carries its copy: it stays
/// unmeasured.
#[inline(always)]
pub(crate) fn listener(sk: Sock, taker: Taker) -> Option<*mut Tag> {
    match tag_of(sk) {
        Some(tag) => is_original(tag, sk).then_some(tag),
        None => take(sk, taker),
    }
}

/// Whether listeners of a namespace get slots.
#[inline(always)]
pub(crate) fn is_followed(netns: u32) -> bool {
    let only = cell(cell::NETNS);
    only == 0 || only == u64::from(netns)
}

#[inline(always)]
fn take(sk: Sock, taker: Taker) -> Option<*mut Tag> {
    if !is_followed(sock::netns(sk)) {
        return None;
    }
    let Ok(Some(slot)) = FREE.pop() else {
        count_cell(cell::NO_SLOT);
        return None;
    };
    let record = SLOTS.get_ptr_mut(slot)?;
    // SAFETY: a map value.
    let generation = unsafe {
        // before anybody can see the tag
        (*record).owner = sk as u64;
        (*record).generation
    };
    let holder = Holder { slot, generation };
    let tag = Tag { holder, done: 0, time: 0 };
    let Some(tag) = storage(sk, &tag, BPF_SK_STORAGE_GET_F_CREATE) else {
        // no memory: the next pass of the iterator tries again
        let _ = FREE.push(slot, 0);
        return None;
    };
    // SAFETY: a storage value.
    if unsafe { (*tag).holder.slot } != slot {
        // another CPU was first, and the helper gave us its tag
        let _ = FREE.push(slot, 0);
        return Some(tag);
    }
    fill(record, sk, taker);
    if LISTENERS.insert(&(sk as u64), &holder, 0).is_err() {
        count_cell(cell::MAP_FULL);
    }
    Some(tag)
}

/// The tag of a connection from before the programs, made anew with what is `done` of it. `None`
/// when it has one, or there is no memory.
#[inline(always)]
pub(crate) fn tag_anew(sk: Sock, holder: Holder, done: u64) -> Option<*mut Tag> {
    if tag_of(sk).is_some() {
        return None;
    }
    let tag = Tag { holder, done, time: 0 };
    storage(sk, &tag, BPF_SK_STORAGE_GET_F_CREATE)
}

#[inline(always)]
fn fill(record: *mut Record, sk: Sock, taker: Taker) {
    let [high, low] = sock::addr(sk);
    // SAFETY: a map value, in a slot that is ours alone; `addr` is aligned to 8 bytes.
    unsafe {
        (*record).netns = sock::netns(sk);
        (*record).family = sock::family(sk);
        (*record).port = sock::port(sk);
        let words = (&raw mut (*record).addr).cast::<u64>();
        words.write(high);
        words.add(1).write(low);
        match taker {
            Taker::Listen => {
                if let Ok(comm) = bpf_get_current_comm() {
                    (*record).comm = comm;
                }
                (*record).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            }
            Taker::Adopt => {
                (*record).flags = ADOPTED;
                (*record).base = sock::ack_backlog(sk);
            }
        }
        // last: from here on the slot is in use
        (*record).cookie = generated::bpf_get_socket_cookie(sk.cast_mut().cast());
    }
}

/// Where a tagged socket counts, unless its slot has been given to another listener since.
#[inline(always)]
pub(crate) fn record_of(tag: *const Tag) -> Option<*mut Record> {
    // SAFETY: a storage value.
    held(unsafe { (*tag).holder })
}

/// The record of `holder`, unless its slot has been given to another listener since.
#[inline(always)]
pub(crate) fn held(holder: Holder) -> Option<*mut Record> {
    let Holder { slot, generation } = holder;
    let record = SLOTS.get_ptr_mut(slot)?;
    // SAFETY: a map value.
    if unsafe { (*record).generation } == generation {
        return Some(record);
    }
    count_cell(cell::STALE);
    None
}
