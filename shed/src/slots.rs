//! How much of a limit is taken, by up to three generations of a server, in one word; or which of
//! them have something, without a limit.
//!
//! A restart without a gap has two processes that serve, and one limit. So the word has a lane for
//! each generation: taking is one compare-and-swap that checks the sum of the lanes and adds to its
//! own, which never goes over the limit and never refuses what fits. A process that died gives its
//! lane back as a whole.
//!
//! Its tests are in tests/loom.rs, which tries all orders in which threads can meet here.

use crate::sync::{AtomicU64, Ordering};

/// Bits of a lane, so that three fit into a word.
const BITS: u32 = 21;
const LANE: u64 = (1 << BITS) - 1;

/// The part of the words that belongs to one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane(pub(crate) u32);

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
    let mut lanes = word.load(Ordering::Relaxed);
    while sum(lanes) < limit {
        match word.compare_exchange_weak(lanes, lanes + one, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(other) => lanes = other,
        }
    }
    false
}

/// Takes one of what has no limit.
pub(crate) fn add(word: &AtomicU64, lane: Lane) {
    word.fetch_add(1 << lane.shift(), Ordering::SeqCst);
}

/// Gives one back that was taken.
pub(crate) fn give_back(word: &AtomicU64, lane: Lane) {
    let mut lanes = word.load(Ordering::Relaxed);
    while let Some(left) = one_less(lanes, lane) {
        match word.compare_exchange_weak(lanes, left, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return,
            Err(other) => lanes = other,
        }
    }
    debug_assert_ne!(part(lanes, lane), 0, "given back once more than taken");
}

/// Gives one back, if the generation of another lane took some and `is_there`; whether it did. Of
/// all that do so at once, one is left.
pub(crate) fn leave_to_others(
    word: &AtomicU64,
    lane: Lane,
    is_there: impl Fn(Lane) -> bool,
) -> bool {
    let mut lanes = word.load(Ordering::SeqCst);
    // who is there is asked after the look: whoever took some since has it from one that was there
    while Lane::ALL.into_iter().any(|it| it != lane && part(lanes, it) != 0 && is_there(it)) {
        let left = one_less(lanes, lane).unwrap_or(lanes);
        match word.compare_exchange_weak(lanes, left, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return true,
            Err(other) => lanes = other,
        }
    }
    false
}

/// How many are taken, by all generations.
pub(crate) fn taken(word: &AtomicU64) -> usize {
    sum(word.load(Ordering::SeqCst))
}

/// How many are taken by the generation of `lane`.
pub(crate) fn taken_by(word: &AtomicU64, lane: Lane) -> usize {
    part(word.load(Ordering::SeqCst), lane)
}

/// Gives back all that the generation of `lane` took: it is dead.
pub(crate) fn clear(word: &AtomicU64, lane: Lane) {
    word.fetch_and(!(LANE << lane.shift()), Ordering::SeqCst);
}

/// `None`: it has none. It would take it from the next lane.
fn one_less(lanes: u64, lane: Lane) -> Option<u64> {
    (part(lanes, lane) != 0).then(|| lanes - (1 << lane.shift()))
}

fn sum(lanes: u64) -> usize {
    let sum = (lanes & LANE) + (lanes >> BITS & LANE) + (lanes >> (2 * BITS) & LANE);
    usize::try_from(sum).expect("three numbers of 21 bits")
}

fn part(lanes: u64, lane: Lane) -> usize {
    usize::try_from(lanes >> lane.shift() & LANE).expect("a number of 21 bits")
}
