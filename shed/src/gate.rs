//! What may be open, and the wait for room at the hard limit.
//!
//! A slot is taken before a connection is served, or lingers, and given back after its close(2). The
//! accept loop waits here; whoever gives back wakes it. No wake-up is lost: the loop says that it
//! waits and then looks at the count, the other side counts down and then looks whether anybody
//! waits, all in one order (SeqCst). tests/loom.rs tries all orders in which threads can meet here.

use crate::{
    limits::Bounds,
    slots::{self, Lane},
    sync::{AtomicBool, AtomicU64, AtomicUsize, Notify, Ordering},
};

/// The limits in force, what is taken of them, and who waits.
#[derive(Debug)]
pub(crate) struct Gate {
    soft_limit: AtomicUsize,
    hard_limit: AtomicUsize,
    resume: AtomicUsize,
    /// Connections that are served, without exempt ones.
    soft: AtomicU64,
    /// Descriptors of connections: served, exempt, lingering.
    hard: AtomicU64,
    lane: Lane,
    waits: AtomicBool,
    wake: Notify,
}

impl Gate {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            soft_limit: bounds.soft().into(),
            hard_limit: bounds.hard().into(),
            resume: bounds.resume().into(),
            soft: AtomicU64::new(0),
            hard: AtomicU64::new(0),
            lane: Lane::FIRST,
            waits: AtomicBool::new(false),
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

    pub(crate) fn hard_limit(&self) -> usize {
        self.hard_limit.load(Ordering::Relaxed)
    }

    /// Connections that count towards the soft limit.
    pub(crate) fn soft_taken(&self) -> usize {
        slots::taken(&self.soft)
    }

    /// Connections that count towards the hard limit.
    pub(crate) fn hard_taken(&self) -> usize {
        slots::taken(&self.hard)
    }

    pub(crate) fn take_soft(&self) -> bool {
        slots::take(&self.soft, self.lane, self.soft_limit())
    }

    pub(crate) fn give_back_soft(&self) {
        slots::give_back(&self.soft, self.lane);
    }

    pub(crate) fn take_hard(&self) -> bool {
        slots::take(&self.hard, self.lane, self.hard_limit())
    }

    pub(crate) fn give_back_hard(&self) {
        slots::give_back(&self.hard, self.lane);
        if self.waits.load(Ordering::SeqCst) {
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

    /// Has the accept loop look at what it waits for.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends when something was given back, limits changed or [`wake`](Self::wake) was called, since
    /// the last call; at once, if `is_over` is true already. For one waiter.
    pub(crate) async fn changed(&self, is_over: impl Fn() -> bool) {
        self.waits.store(true, Ordering::SeqCst);
        if !is_over() {
            self.wake.notified().await;
        }
        self.waits.store(false, Ordering::SeqCst);
    }
}
