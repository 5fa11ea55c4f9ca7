//! The programs' histograms, one to each slot, as user space sees them.
//!
//! In: the mapped words of WAITS or DURATIONS. Out: what was counted since the last look. Cost:
//! sixty-six loads for a slot that counted since then, none for another; a system call for the first of
//! each part of the map.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use backlogd_abi::histogram::{self, BUCKETS};

use crate::{
    histogram::Histogram,
    id::Slot,
    sys::mmap::{Pages, Part, SharedWords},
    time::Nanos,
};

const WORDS: usize = size_of::<histogram::Histogram>() / 8;

/// All histograms of one kind. The map is mapped part by part, each when a slot in it counts: the kernel
/// brings in all pages of a mapping at once (`remap_vmalloc_range`, `array_map_mmap`).
#[derive(Debug)]
pub(super) struct Histograms {
    map: OwnedFd,
    capacity: usize,
    /// Slots in a part: as many as end at a page's end.
    each: usize,
    parts: HashMap<usize, SharedWords>,
    seen: HashMap<Slot, Seen>,
}

/// A slot's histogram as it was last looked at.
#[derive(Clone, Debug)]
struct Seen {
    /// The count that tells whether there is anything new.
    at: u64,
    /// Everything counted in it so far.
    count: u64,
    sum: u64,
    buckets: [u32; BUCKETS],
}

impl Default for Seen {
    fn default() -> Self {
        Self { at: 0, count: 0, sum: 0, buckets: [0; BUCKETS] }
    }
}

impl Histograms {
    /// Of the map of `capacity` histograms.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub(super) fn map(map: impl AsFd, capacity: u32) -> io::Result<Self> {
        let capacity = usize::try_from(capacity).map_err(io::Error::other)?;
        let each = slots_each(rustix::param::page_size());
        let map = map.as_fd().try_clone_to_owned()?;
        let mut all = Self { map, capacity, each, parts: HashMap::new(), seen: HashMap::new() };
        // whoever cannot map must know at the start
        all.words(Slot(0))?;
        Ok(all)
    }

    /// A slot's words.
    fn words(&mut self, slot: Slot) -> io::Result<&[AtomicU64]> {
        let (part, within) = (slot.0 as usize / self.each, slot.0 as usize % self.each);
        let words = match self.parts.entry(part) {
            Entry::Occupied(words) => words.into_mut(),
            Entry::Vacant(none) => {
                let first = part * self.each;
                let n_slots = self.each.min(self.capacity.saturating_sub(first));
                let offset = (first * WORDS * 8) as u64;
                let part = Part { offset, n_words: n_slots * WORDS };
                none.insert(SharedWords::map_part(self.map.as_fd(), part, Pages::WhenTouched)?)
            }
        };
        let words = words.words().get(within * WORDS..(within + 1) * WORDS);
        words.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// What a slot counted since the last look; `None` when `at`, a count that the programs raise
    /// afterwards, is as it was then.
    pub(super) fn growth(&mut self, slot: Slot, at: u64) -> Option<Histogram> {
        if self.seen.get(&slot).map_or(0, |seen| seen.at) == at {
            return None;
        }
        let mut seen = self.seen.remove(&slot).unwrap_or_default();
        let grown = self.words(slot).map(|words| seen.grow(words, at));
        self.seen.insert(slot, seen);
        grown
            .inspect_err(|err| tracing::debug!(slot = slot.0, error = %err, "durations not read"))
            .ok()
    }

    /// Everything that a slot has counted so far, as of the last look.
    #[must_use]
    pub(super) fn count(&self, slot: Slot) -> u64 {
        self.seen.get(&slot).map_or(0, |seen| seen.count)
    }

    /// Clears a slot's histogram for its next listener.
    pub(super) fn clear(&mut self, slot: Slot) {
        match self.words(slot) {
            Ok(words) => {
                words.iter().for_each(|word| word.store(0, Relaxed));
                self.seen.remove(&slot);
            }
            Err(err) => tracing::debug!(slot = slot.0, error = %err, "durations not cleared"),
        }
    }
}

/// The least number of histograms that fill whole pages, whose size is a power of two.
const fn slots_each(page_size: usize) -> usize {
    let two_to_the = (WORDS * 8).trailing_zeros();
    page_size >> two_to_the
}

impl Seen {
    fn grow(&mut self, words: &[AtomicU64], at: u64) -> Histogram {
        let mut grown = [0; BUCKETS];
        let sum = words[0].load(Relaxed);
        // two buckets to a word
        for (i, word) in words[1..].iter().enumerate() {
            let bytes = word.load(Relaxed).to_ne_bytes();
            for (half, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
                let (now, bucket) = (u32::from_ne_bytes(*bytes), 2 * i + half);
                // 32 bits wide: a step back is a step over 2^32
                grown[bucket] = now.wrapping_sub(self.buckets[bucket]).into();
                self.buckets[bucket] = now;
            }
        }
        let grown = Histogram::new(grown, Nanos(sum.wrapping_sub(self.sum)));
        (self.at, self.sum) = (at, sum);
        self.count += grown.count();
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot's words with two counts in each of two buckets.
    fn words(sum: u64, low: u32, high: u32) -> Vec<AtomicU64> {
        let mut words: Vec<_> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let [a, b] = [low, high].map(u32::to_ne_bytes);
        words[0] = AtomicU64::new(sum);
        words[3] = AtomicU64::new(u64::from_ne_bytes([a, b].concat().try_into().expect("eight")));
        words
    }

    #[test]
    fn a_histogram_grows_by_what_was_counted_since() {
        let mut seen = Seen::default();
        let first = seen.grow(&words(100, 3, 0), 3);
        assert_eq!((3, Nanos(100), 3), (first.count(), first.sum(), first.buckets()[4]));
        let second = seen.grow(&words(130, 3, 2), 5);
        assert_eq!((2, Nanos(30), 2), (second.count(), second.sum(), second.buckets()[5]));
        assert_eq!((5, 5), (seen.count, seen.at));
    }

    #[test]
    fn parts_begin_at_pages() {
        for page_size in [4096, 16_384, 65_536] {
            let bytes = slots_each(page_size) * WORDS * 8;
            assert_eq!(0, bytes % page_size, "{page_size}");
            assert_ne!(0, bytes / 2 % page_size, "{page_size}");
        }
    }

    #[test]
    fn a_bucket_that_wraps_loses_nothing() {
        let mut seen = Seen::default();
        seen.grow(&words(0, u32::MAX, 0), 1);
        assert_eq!(3, seen.grow(&words(0, 2, 0), 2).count());
    }
}
