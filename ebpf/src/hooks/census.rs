//! `iter/bpf_sk_storage_map`: counts the connections that each listener really has, of all
//! namespaces at once, by walking the tags (`bpf_sk_storage_map_seq_ops`, net/core/bpf_sk_storage.c).
//! What a program did not see of a connection's end shows here: its tag is gone.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use backlogd_abi::SLOTS as DEFAULT_SLOTS;

use crate::{
    maps::{CLOSED, ESTABLISHED, SLOTS, Tag, is_done},
    sock::Sock,
};

/// How many connections the walk found, established and not destroyed, of the listener in each slot;
/// the agent clears it before.
#[map]
static CENSUS: Array<u64> = Array::with_max_entries(DEFAULT_SLOTS, BPF_F_MMAPABLE);

/// `struct bpf_iter__bpf_sk_storage_map`, net/core/bpf_sk_storage.c
#[repr(C)]
struct Context {
    meta: *const c_void,
    map: *const c_void,
    sk: Sock,
    value: *const Tag,
}

// aya-ebpf has no macro for iterators; the section's name is all the loader needs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
fn census(ctx: *mut c_void) -> i32 {
    // SAFETY: the kernel passes this structure.
    let (sk, tag) = unsafe { ((*ctx.cast::<Context>()).sk, (*ctx.cast::<Context>()).value) };
    if !sk.is_null() && !tag.is_null() {
        count(sk, tag);
    }
    0
}

#[inline(always)]
fn count(sk: Sock, tag: *const Tag) -> Option<()> {
    if !is_done(tag, ESTABLISHED) || is_done(tag, CLOSED) {
        return None;
    }
    // SAFETY: the verifier knows the value's size.
    let holder = unsafe { (*tag).holder };
    let record = SLOTS.get_ptr(holder.slot)?;
    // SAFETY: a map value.
    let (generation, owner) = unsafe { ((*record).generation, (*record).owner) };
    if generation != holder.generation || owner == sk as u64 {
        return None;
    }
    let census = CENSUS.get_ptr_mut(holder.slot)?;
    // SAFETY: a map value that one walk at a time writes.
    unsafe { *census += 1 };
    Some(())
}
