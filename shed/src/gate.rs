//! What may be open, and the wait for room at the hard limit.
//!
//! A slot is taken before a connection is served, or lingers, and given back after its close(2).
//! The accept loops wait here; whoever gives back wakes them. No wake-up is lost: a loop says that
//! it waits and then looks at the count, the other side counts down and then looks whether anybody
//! waits, all in one order (SeqCst). tests/loom.rs tries all orders in which threads can meet here.

use crate::{
    limits::Bounds,
    slots::{self, Lane},
    sync::{AtomicUsize, Notify, Ordering},
    words::Words,
};

/// The limits in force, what is taken of them, and who waits.
#[derive(Debug)]
pub(crate) struct Gate {
    soft_limit: AtomicUsize,
    hard_limit: AtomicUsize,
    resume: AtomicUsize,
    /// The soft limit that was found by [`adaptive`](crate::adaptive); above the given one, it is
    /// not in force.
    adaptive: AtomicUsize,
    words: Words,
    lane: Lane,
    waits: AtomicUsize,
    wake: Notify,
}

impl Gate {
    pub(crate) fn new(bounds: &Bounds, words: Words) -> Self {
        Self {
            soft_limit: bounds.soft().into(),
            hard_limit: bounds.hard().into(),
            resume: bounds.resume().into(),
            adaptive: usize::MAX.into(),
            lane: words.lane(),
            words,
            waits: AtomicUsize::new(0),
            wake: Notify::new(),
        }
    }

    /// Puts other limits in force. What is open above them stays open.
    pub(crate) fn set(&self, bounds: &Bounds) {
        self.soft_limit.store(bounds.soft(), Ordering::Relaxed);
        self.hard_limit.store(bounds.hard(), Ordering::Relaxed);
        // whoever sees this one sees the others, too
        self.resume.store(bounds.resume(), Ordering::Release);
        self.wake();
    }

    pub(crate) fn soft_limit(&self) -> usize {
        self.soft_limit.load(Ordering::Relaxed)
    }

    /// Sets the adaptive limit.
    pub(crate) fn adapt(&self, limit: usize) {
        self.adaptive.store(limit, Ordering::Relaxed);
    }

    /// The soft limit or the adaptive one, whichever is less.
    pub(crate) fn soft_in_force(&self) -> usize {
        self.soft_limit().min(self.adaptive.load(Ordering::Relaxed))
    }

    pub(crate) fn hard_limit(&self) -> usize {
        self.hard_limit.load(Ordering::Relaxed)
    }

    /// Connections that count towards the soft limit.
    pub(crate) fn soft_taken(&self) -> usize {
        slots::taken(self.words.soft())
    }

    /// Connections that count towards the hard limit.
    pub(crate) fn hard_taken(&self) -> usize {
        slots::taken(self.words.hard())
    }

    pub(crate) fn take_soft(&self) -> bool {
        slots::take(self.words.soft(), self.lane, self.soft_in_force())
    }

    pub(crate) fn give_back_soft(&self) {
        slots::give_back(self.words.soft(), self.lane);
    }

    pub(crate) fn take_hard(&self) -> bool {
        slots::take(self.words.hard(), self.lane, self.hard_limit())
    }

    pub(crate) fn give_back_hard(&self) {
        slots::give_back(self.words.hard(), self.lane);
        if self.waits.load(Ordering::SeqCst) != 0 {
            self.wake();
        }
    }

    /// Whether the accept loop has to stop.
    pub(crate) fn is_full(&self) -> bool {
        self.hard_limit() <= self.hard_taken()
    }

    /// Whether it may go on, once it stopped.
    pub(crate) fn has_room(&self) -> bool {
        self.hard_taken() <= self.resume.load(Ordering::Acquire)
    }

    /// Connections of this process that count towards the hard limit.
    pub(crate) fn own_taken(&self) -> usize {
        slots::taken_by(self.words.hard(), self.lane)
    }

    /// Where it is counted.
    pub(crate) fn words(&self) -> &Words {
        &self.words
    }

    /// Has all that wait look at what they wait for.
    pub(crate) fn wake(&self) {
        self.wake.notify_waiters();
    }

    /// Ends when something was given back, limits changed or [`wake`](Self::wake) was called; at
    /// once, if `is_over` is true already. Where generations share the limit, it may end for
    /// nothing.
    pub(crate) async fn changed(&self, is_over: impl Fn() -> bool) {
        self.words.wait(self.told(is_over)).await;
    }

    /// As [`changed`](Self::changed), but for what other generations give back: it never ends for
    /// nothing.
    pub(crate) async fn told(&self, is_over: impl Fn() -> bool) {
        let _waiting = Waiting::new(&self.waits);
        // has all that is told from here on, even before it is polled
        let told = self.wake.notified();
        if is_over() {
            return;
        }
        told.await;
    }
}

/// Somebody waits at the gate, while it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waits: &'a AtomicUsize) -> Self {
        waits.fetch_add(1, Ordering::SeqCst);
        Self(waits)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
