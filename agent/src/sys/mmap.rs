//! Memory shared with the kernel's eBPF programs, as words.

use std::{io, os::fd::BorrowedFd, ptr, slice, sync::atomic::AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = 4096;

/// When the pages of a mapping are brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// With the mapping: what reads it must not fault.
    AtOnce,
    /// When they are first touched, where the kernel does not bring them in anyway.
    WhenTouched,
}

/// A stretch of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes before it: a multiple of the page size.
    pub offset: u64,
    /// Words in it.
    pub n_words: usize,
}

/// An array map created with `BPF_F_MMAPABLE`, in our memory until dropped.
///
/// The programs write whole words, with or without atomics; so the words are atomics here.
#[derive(Debug)]
pub struct SharedWords {
    start: ptr::NonNull<AtomicU64>,
    n_words: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and its words are atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above; atomics are for several threads.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `n_words` words of `map`.
    ///
    /// # Errors
    /// What mmap(2) answers: `EPERM` for a map without `BPF_F_MMAPABLE`, `EINVAL` when the map is
    /// smaller.
    pub fn map(map: BorrowedFd<'_>, n_words: usize, pages: Pages) -> io::Result<Self> {
        Self::map_part(map, Part { offset: 0, n_words }, pages)
    }

    /// Maps a part of `map`.
    ///
    /// # Errors
    /// As [`SharedWords::map`].
    pub fn map_part(map: BorrowedFd<'_>, part: Part, pages: Pages) -> io::Result<Self> {
        let Part { offset, n_words } = part;
        let length = (n_words * size_of::<u64>()).next_multiple_of(PAGE);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let how = match pages {
            Pages::AtOnce => MapFlags::SHARED | MapFlags::POPULATE,
            Pages::WhenTouched => MapFlags::SHARED,
        };
        // SAFETY: no address is asked for, so no other mapping is touched.
        let start = unsafe { mmap(ptr::null_mut(), length, access, how, map, offset) }?;
        let start = ptr::NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, n_words })
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long, aligned to a page, initialised by the kernel, and lives
        // as long as `self`; what others write meanwhile is allowed for atomics.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.n_words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let length = (self.n_words * size_of::<u64>()).next_multiple_of(PAGE);
        // SAFETY: made by `map` with the same length, and no borrow of it outlives `self`.
        // A failure would leave it mapped, which harms nobody.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), length) };
    }
}
