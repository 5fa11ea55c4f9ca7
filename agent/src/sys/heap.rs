//! The allocator's memory.

/// Blocks of this size and more are the system's again as soon as they are freed, as with musl.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1024 * 1024;

/// Has the texts of a scrape, megabytes for a moment, leave nothing behind: glibc would raise its limit
/// for large blocks to the size of the first that is freed (mallopt(3), `M_MMAP_THRESHOLD`), and keep
/// the next ones. For the start, before there are other threads.
pub fn keep_no_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE)
    };
}

/// Gives memory that is free in the allocator back to the system: reading the kernel's BTF takes
/// tens of megabytes, once. Only glibc keeps so much, and only there it does anything.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}
