//! The allocator's memory.

/// Gives memory that is free in the allocator back to the system: reading the kernel's BTF takes
/// tens of megabytes, once. Only glibc keeps so much, and only there it does anything.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}
