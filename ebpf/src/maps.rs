//! The maps and their atomic updates. Sizes are those of the object; the agent sets SLOTS and FREE
//! to the configured number.

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_or, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf, Stack},
};
use backlogd_abi::{
    FAILED_CALLS, FailedCall, Holder, OVERFLOW, Place, Record, SLOTS as DEFAULT_SLOTS, Seat, cell,
    event::Filter,
    histogram::{self, BUCKETS, Histogram},
};

/// The storage of a listener, and the first value of each of its children's.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tag {
    /// The listener's record.
    pub(crate) holder: Holder,
    /// Which events of this socket are counted: see [`once`].
    pub(crate) done: u64,
    /// Of a child, when it was made, in nanoseconds; once it is [`ACCEPTED`], when that was. 0 where
    /// that was before the programs.
    pub(crate) time: u64,
}

/// [`Tag::done`]: counted as established.
pub(crate) const ESTABLISHED: u64 = 1;
/// [`Tag::done`]: counted as destroyed.
pub(crate) const CLOSED: u64 = 2;
/// [`Tag::done`]: counted as reset while queued.
pub(crate) const RESET: u64 = 4;
/// [`Tag::done`]: of a listener, what was queued when it left LISTEN is counted.
pub(crate) const DISCARDED: u64 = 8;
/// [`Tag::done`]: counted as accepted, or accepted before the programs.
pub(crate) const ACCEPTED: u64 = 16;
/// [`Tag::done`]: of a listener, that it listens is told.
pub(crate) const LISTENED: u64 = 32;
/// [`Tag::done`]: that it was thrown away is told.
pub(crate) const THROWN_AWAY: u64 = 64;
/// [`Tag::done`]: counted as undone.
pub(crate) const UNDONE: u64 = 128;

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

/// A child for programs that know it by its address alone: a kprobe or a system call's tracepoint
/// may not use socket storage.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Child {
    /// The listener's record.
    pub(crate) holder: Holder,
    /// When it was made, in nanoseconds; 0 for one from before the programs.
    pub(crate) born: u64,
    /// When accept returned it; 0 before that.
    pub(crate) accepted: u64,
}

/// How many children can be known by address: those that are queued or open. What finds no room is
/// counted, and its accept is seen by the identity alone.
const MAX_CHILDREN: u32 = 1 << 18;

/// Children by address; empty unless [`cell::BY_ADDRESS`] is set.
#[map]
pub(crate) static CHILDREN: HashMap<u64, Child> =
    HashMap::with_max_entries(MAX_CHILDREN, BPF_F_NO_PREALLOC);

/// Listeners by the address of their socket, for the same programs.
#[map]
pub(crate) static LISTENERS: HashMap<u64, Holder> = HashMap::with_max_entries(DEFAULT_SLOTS, 0);

/// Listeners by address and port, while connections from before the programs are looked for.
#[map]
pub(crate) static PLACES: HashMap<Place, Seat> =
    HashMap::with_max_entries(DEFAULT_SLOTS, BPF_F_NO_PREALLOC);

/// How long connections waited, a histogram to each slot.
#[map]
pub(crate) static WAITS: Array<Histogram> = Array::with_max_entries(DEFAULT_SLOTS, BPF_F_MMAPABLE);

/// From accept to destruction, likewise.
#[map]
pub(crate) static DURATIONS: Array<Histogram> =
    Array::with_max_entries(DEFAULT_SLOTS, BPF_F_MMAPABLE);

/// System calls that failed, and how often.
#[map]
pub(crate) static FAILED: HashMap<FailedCall, u64> = HashMap::with_max_entries(FAILED_CALLS, 0);

/// Whose SYN this CPU is working on, for the cookie that may answer it: slot plus one in the upper
/// half, generation in the lower.
#[map]
pub(crate) static REQUEST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What somebody who watches wants to see; written by the agent.
#[map]
pub(crate) static FILTER: Array<Filter> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Events for somebody who watches. The agent sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

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

/// Adds one to a counter in a map value; what it was before.
#[inline(always)]
pub(crate) fn count(counter: *mut u64) -> u64 {
    add(counter, 1)
}

/// Adds `n` to a counter in a map value; what it was before.
///
/// Never Relaxed: with it LLVM 22 emits an add without a result and hands the operand back as one.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, n: u64) -> u64 {
    // SAFETY: `counter` lies in a map value, aligned.
    unsafe { atomic_xadd::<u64, u64, { SeqCst }>(counter, n) }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds a duration to a histogram of a slot.
#[inline(always)]
pub(crate) fn observe(histograms: &Array<Histogram>, slot: u32, nanos: u64) {
    let Some(histogram) = histograms.get_ptr_mut(slot) else { return };
    let at = histogram::bucket(nanos);
    if BUCKETS <= at {
        return;
    }
    // SAFETY: a map value, aligned, and `at` is in bounds.
    unsafe { atomic_xadd::<u64, u64, { SeqCst }>(&raw mut (*histogram).sum, nanos) };
    // SAFETY: as above.
    unsafe { atomic_xadd::<u32, u32, { SeqCst }>(&raw mut (*histogram).buckets[at], 1) };
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
