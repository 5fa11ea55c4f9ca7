//! The maps and their atomic updates. Sizes are those of the object; the agent sets SLOTS and FREE
//! to the configured number.

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_or, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type},
    macros::{btf_map, map},
    maps::{Array, Stack},
};
use backlogd_abi::{OVERFLOW, Record, SLOTS as DEFAULT_SLOTS, cell};

/// The storage of a listener, and the first value of each of its children's.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tag {
    /// Address of the listener: tells the original from the copies, never dereferenced.
    pub(crate) owner: u64,
    /// Index of the listener's record.
    pub(crate) slot: u32,
    /// The record's generation when the slot was taken.
    pub(crate) generation: u32,
    /// Which events of this socket are counted: see [`once`].
    pub(crate) done: u64,
}

/// [`Tag::done`]: counted as established.
pub(crate) const ESTABLISHED: u64 = 1;
/// [`Tag::done`]: counted as destroyed.
pub(crate) const CLOSED: u64 = 2;
/// [`Tag::done`]: counted as reset while queued.
pub(crate) const RESET: u64 = 4;
/// [`Tag::done`]: of a listener, what was queued when it left LISTEN is counted.
pub(crate) const DISCARDED: u64 = 8;

/// aya-ebpf's own `SkStorage` fixes the flags and takes cgroup contexts only.
#[repr(C)]
pub(crate) struct ClonedStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: a description for the loader; nothing is read through it.
unsafe impl<T> Sync for ClonedStorage<T> {}

#[btf_map]
pub(crate) static TAGS: ClonedStorage<Tag> = ClonedStorage {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// The records, mapped into the agent's memory.
#[map]
pub(crate) static SLOTS: Array<Record> = Array::with_max_entries(DEFAULT_SLOTS, BPF_F_MMAPABLE);

/// Slots that nobody has, the lowest on top when the agent has filled it. A stack, so that low slots
/// are used again first and the agent finds all that were ever used at the start of SLOTS.
#[map]
pub(crate) static FREE: Stack<u32> = Stack::with_max_entries(DEFAULT_SLOTS, 0);

/// The host-wide cells, mapped into the agent's memory.
#[map]
pub(crate) static CELLS: Array<u64> = Array::with_max_entries(cell::COUNT, BPF_F_MMAPABLE);

/// What the iterator writes to make an end; its contents mean nothing.
#[map]
pub(crate) static FILLING: Array<[u8; OVERFLOW]> = Array::with_max_entries(1, 0);

/// Adds one to a counter in a map value.
///
/// Never Relaxed: with it LLVM 22 emits an add without a result and hands the operand back as one.
#[inline(always)]
pub(crate) fn count(counter: *mut u64) {
    // SAFETY: `counter` lies in a map value, aligned.
    unsafe { atomic_xadd::<u64, u64, { SeqCst }>(counter, 1) };
}

/// A host-wide cell that the agent sets.
#[inline(always)]
pub(crate) fn cell(index: u32) -> u64 {
    // SAFETY: a map value; volatile, since the agent writes it.
    CELLS.get_ptr(index).map_or(0, |cell| unsafe { cell.read_volatile() })
}

/// Adds one to a host-wide cell.
#[inline(always)]
pub(crate) fn count_cell(index: u32) {
    if let Some(counter) = CELLS.get_ptr_mut(index) {
        count(counter);
    }
}

/// Stores the larger of the two. Gives up after four lost races: then others have just stored
/// theirs.
#[inline(always)]
pub(crate) fn raise(cell: *mut u64, value: u64) {
    // SAFETY: `cell` lies in a map value, aligned.
    let mut seen = unsafe { cell.read_volatile() };
    for _ in 0..4 {
        if seen >= value {
            return;
        }
        // SAFETY: as above.
        let (now, stored) =
            unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(cell, seen, value) };
        if stored {
            return;
        }
        seen = now;
    }
}

/// Whether `event` of this socket has not been counted yet; it has been after this call. The
/// copies of a program can meet on two CPUs, therefore the atomic.
#[inline(always)]
pub(crate) fn once(tag: *mut Tag, event: u64) -> bool {
    // SAFETY: `tag` is a storage value, aligned.
    let before = unsafe { atomic_or::<u64, u64, { SeqCst }>(&raw mut (*tag).done, event) };
    before & event == 0
}

/// Whether `event` of this socket has been counted.
#[inline(always)]
pub(crate) fn is_done(tag: *const Tag, event: u64) -> bool {
    // SAFETY: `tag` is a storage value, aligned.
    unsafe { (&raw const (*tag).done).read_volatile() & event != 0 }
}
