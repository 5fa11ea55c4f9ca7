//! How much of a limit is taken, by up to three generations of a server, in one word.
//!
//! A restart without a gap has two processes that serve, and one limit. So the word has a lane for
//! each generation: taking is one compare-and-swap that checks the sum of the lanes and adds to its
//! own, which never goes over the limit and never refuses what fits. A process that died gives its
//! lane back as a whole.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a lane, so that three fit into a word.
const BITS: u32 = 21;
const LANE: u64 = (1 << BITS) - 1;

/// The part of the words that belongs to one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane(u32);

impl Lane {
    pub(crate) const FIRST: Self = Self(0);
    /// All of a word.
    pub(crate) const ALL: [Self; 3] = [Self(0), Self(1), Self(2)];

    const fn shift(self) -> u32 {
        self.0 * BITS
    }
}

/// Takes one of `limit`, unless as many are taken.
pub(crate) fn take(word: &AtomicU64, lane: Lane, limit: usize) -> bool {
    let one = 1 << lane.shift();
    // SeqCst: the gate's waiting relies on one order of words and flags (gate.rs)
    word.try_update(Ordering::SeqCst, Ordering::Relaxed, |lanes| {
        (sum(lanes) < limit).then(|| lanes + one)
    })
    .is_ok()
}

/// Gives one back that was taken.
pub(crate) fn give_back(word: &AtomicU64, lane: Lane) {
    let before = word.fetch_sub(1 << lane.shift(), Ordering::SeqCst);
    debug_assert_ne!(before >> lane.shift() & LANE, 0, "given back once more than taken");
}

/// How many are taken, by all generations.
pub(crate) fn taken(word: &AtomicU64) -> usize {
    sum(word.load(Ordering::SeqCst))
}

/// How many are taken by the generation of `lane`.
pub(crate) fn taken_by(word: &AtomicU64, lane: Lane) -> usize {
    let taken = word.load(Ordering::SeqCst) >> lane.shift() & LANE;
    usize::try_from(taken).expect("a number of 21 bits")
}

/// Gives back all that the generation of `lane` took: it is dead.
pub(crate) fn clear(word: &AtomicU64, lane: Lane) {
    word.fetch_and(!(LANE << lane.shift()), Ordering::SeqCst);
}

fn sum(lanes: u64) -> usize {
    let sum = (lanes & LANE) + (lanes >> BITS & LANE) + (lanes >> (2 * BITS) & LANE);
    usize::try_from(sum).expect("three numbers of 21 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_a_limit() {
        let word = AtomicU64::new(0);
        assert!(take(&word, Lane(0), 2));
        assert!(take(&word, Lane(2), 2));
        assert!(!take(&word, Lane(1), 2));
        assert_eq!(taken(&word), 2);
        give_back(&word, Lane(0));
        assert!(take(&word, Lane(1), 2));
        assert_eq!(word.load(Ordering::Relaxed), 1 << 21 | 1 << 42);
        clear(&word, Lane(2));
        assert_eq!(Lane::ALL.map(|lane| taken_by(&word, lane)), [0, 1, 0]);
    }

    #[test]
    fn threads_never_go_over_the_limit() {
        let word = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if take(&word, Lane::FIRST, 3) {
                            assert!(taken(&word) <= 3);
                            give_back(&word, Lane::FIRST);
                        }
                    }
                });
            }
        });
        assert_eq!(taken(&word), 0);
    }
}
