//! The gate and its slots between threads, in all orders that the memory model allows (loom).
//!
//! The sources are those of the crate; `sync`, by which their threads meet, is loom's here. Loom
//! gives SeqCst to fences alone, so one follows each SeqCst write. A wake-up that
//! is lost leaves a thread waiting for ever, which loom reports as a deadlock.

#[path = "../src/gate.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod gate;
mod limits {
    /// Limits that hold, as the gate sees them.
    #[derive(Clone, Copy)]
    pub(crate) struct Bounds(pub(crate) usize);

    impl Bounds {
        pub(crate) fn soft(&self) -> usize {
            self.0
        }

        pub(crate) fn hard(&self) -> usize {
            self.0
        }

        pub(crate) fn resume(&self) -> usize {
            self.0 - 1
        }
    }
}
#[path = "../src/slots.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod slots;
#[path = "loom/sync.rs"]
mod sync;
#[path = "loom/words.rs"]
mod words;

use loom::{future, model::Builder, sync::Arc, thread};

use self::{gate::Gate, limits::Bounds, slots::Lane, sync::AtomicU64, words::Words};

/// Runs `threads` in all orders with up to two switches between them that nothing forces.
fn model(threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(threads);
}

/// A gate all of whose places are taken.
fn full(limit: usize) -> Arc<Gate> {
    let gate = Gate::new(&Bounds(limit), Words::own());
    assert!((0..limit).all(|_| gate.take_hard()));
    assert!(gate.is_full() && !gate.take_hard());
    Arc::new(gate)
}

/// As the accept loop does at the hard limit.
fn wait_for_room(gate: &Gate) {
    future::block_on(async {
        while !gate.has_room() {
            gate.changed(|| gate.has_room()).await;
        }
    });
}

#[test]
fn whoever_gives_a_place_back_wakes_the_accept_loop() {
    model(|| {
        let gate = full(1);
        let connection = Arc::clone(&gate);
        let ends = thread::spawn(move || connection.give_back_hard());
        wait_for_room(&gate);
        assert!(gate.take_hard(), "nobody else takes");
        ends.join().expect("no panic");
        assert_eq!(gate.hard_taken(), 1);
    });
}

#[test]
fn of_two_that_give_back_at_once_one_is_enough() {
    model(|| {
        let gate = full(2);
        let ends = [(); 2].map(|()| {
            let connection = Arc::clone(&gate);
            thread::spawn(move || connection.give_back_hard())
        });
        wait_for_room(&gate);
        assert!(gate.take_hard());
        for end in ends {
            end.join().expect("no panic");
        }
        assert_eq!(gate.hard_taken(), 1);
    });
}

#[test]
fn the_accept_loop_that_waits_again_is_woken_again() {
    model(|| {
        let gate = full(1);
        let connection = Arc::clone(&gate);
        let ends = thread::spawn(move || {
            connection.give_back_hard();
            // admitted meanwhile, and over
            while !connection.take_hard() {
                thread::yield_now();
            }
            connection.give_back_hard();
        });
        wait_for_room(&gate);
        ends.join().expect("no panic");
        wait_for_room(&gate);
        assert_eq!(gate.hard_taken(), 0);
    });
}

#[test]
fn a_limit_that_is_raised_wakes_the_accept_loop() {
    model(|| {
        let gate = full(1);
        let handle = Arc::clone(&gate);
        let raises = thread::spawn(move || handle.set(&Bounds(2)));
        wait_for_room(&gate);
        assert!(gate.take_hard());
        raises.join().expect("no panic");
    });
}

#[test]
fn threads_never_go_over_the_limit() {
    model(|| {
        let word = Arc::new(AtomicU64::new(0));
        let threads = [(); 2].map(|()| {
            let word = Arc::clone(&word);
            thread::spawn(move || {
                if slots::take(&word, Lane::FIRST, 1) {
                    assert_eq!(slots::taken(&word), 1);
                    slots::give_back(&word, Lane::FIRST);
                }
            })
        });
        if slots::take(&word, Lane::FIRST, 1) {
            assert_eq!(slots::taken(&word), 1);
            slots::give_back(&word, Lane::FIRST);
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(slots::taken(&word), 0);
        assert!(slots::take(&word, Lane::FIRST, 1), "it was refused to nobody for ever");
    });
}

#[test]
fn lanes_share_a_limit() {
    model(|| {
        let word = AtomicU64::new(0);
        assert!(slots::take(&word, Lane(0), 2));
        assert!(slots::take(&word, Lane(2), 2));
        assert!(!slots::take(&word, Lane(1), 2));
        assert_eq!(slots::taken(&word), 2);
        slots::give_back(&word, Lane(0));
        assert!(slots::take(&word, Lane(1), 2));
        assert_eq!(word.load(sync::Ordering::Relaxed), 1 << 21 | 1 << 42);
    });
}

#[test]
fn of_two_that_leave_something_to_each_other_one_is_left_with_it() {
    model(|| {
        let word = Arc::new(AtomicU64::new(0));
        slots::add(&word, Lane(0));
        slots::add(&word, Lane(2));
        let other = Arc::clone(&word);
        let leaves = thread::spawn(move || slots::leave_to_others(&other, Lane(2), |_| true));
        let is_left = slots::leave_to_others(&word, Lane(0), |_| true);
        assert_ne!(leaves.join().expect("no panic"), is_left);
        assert_eq!(slots::taken_by(&word, Lane(if is_left { 2 } else { 0 })), 1);
        assert_eq!(slots::taken(&word), 1);
    });
}

#[test]
fn nothing_is_left_to_who_is_gone() {
    model(|| {
        let word = AtomicU64::new(0);
        slots::add(&word, Lane(0));
        assert!(!slots::leave_to_others(&word, Lane(0), |_| true), "nobody else has it");
        slots::add(&word, Lane(1));
        assert!(!slots::leave_to_others(&word, Lane(0), |lane| lane != Lane(1)));
        slots::add(&word, Lane(2));
        assert!(slots::leave_to_others(&word, Lane(0), |lane| lane != Lane(1)));
        assert_eq!([0, 1, 2].map(|lane| slots::taken_by(&word, Lane(lane))), [0, 1, 1]);
    });
}
