//! What accept loops measure of themselves, and connections of their lives.
//!
//! Each loop has a tally that nobody else adds to, so that loops do not wait for each other's
//! caches; lives, which end on any thread, are counted into one of a few places, chosen by the
//! thread.

use std::{
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task;

use crate::{
    histogram::{self, Cells, Histogram, in_nanos},
    stats::Stats,
};

/// 1 to 64: as many are accepted in a turn at most.
const BATCHES: [u64; 7] = histogram::numbers();
/// 0.95 µs to 16 s.
const LAGS: [u64; 25] = histogram::nanos(-20);
/// 0.98 ms to 64 s: the kernel tells milliseconds.
const WAITS: [u64; 17] = histogram::nanos(-10);
/// 0.95 µs to 62.5 ms.
const DECISIONS: [u64; 17] = histogram::nanos(-20);
/// 0.98 ms to 4,096 s.
const LIVES: [u64; 23] = histogram::nanos(-10);

/// What one accept loop measured, and after it others in its place.
#[derive(Debug)]
struct Tally {
    batches: Cells<7>,
    lags: Cells<25>,
    waits: Cells<17>,
    decisions: Cells<17>,
}

impl Tally {
    fn new() -> Self {
        Self {
            batches: Cells::new(&BATCHES),
            lags: Cells::new(&LAGS),
            waits: Cells::new(&WAITS),
            decisions: Cells::new(&DECISIONS),
        }
    }
}

/// The tallies of a listener.
#[derive(Debug, Default)]
pub(crate) struct Tallies(Mutex<Vec<Arc<Tally>>>);

impl Tallies {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one more accept loop. It goes on with the tally of one that left, so that there are no
    /// more than there were loops at once, and no count goes back.
    pub(crate) fn meter(&self) -> Meter {
        let mut all = self.lock();
        // what was written to it is seen here: the last one to let go of it did that before
        let free = all.iter_mut().position(|it| Arc::get_mut(it).is_some());
        let place = free.unwrap_or_else(|| {
            all.push(Arc::new(Tally::new()));
            all.len() - 1
        });
        let tally = Arc::clone(&all[place]);
        Meter { tally, in_turn: 0, n_emptied: 0, yielded: None }
    }

    /// Adds what all loops measured to `stats`.
    pub(crate) fn count(&self, stats: &mut Stats) {
        let all = self.lock();
        let tallies = all.iter();
        let number: fn(u64) -> u64 = |it| it;
        stats.accept_batch_size =
            histogram::read(&BATCHES, tallies.clone().map(|it| &it.batches), number, number);
        let nanos = Duration::from_nanos;
        stats.accept_loop_lag =
            histogram::read(&LAGS, tallies.clone().map(|it| &it.lags), nanos, nanos);
        stats.queue_wait =
            histogram::read(&WAITS, tallies.clone().map(|it| &it.waits), nanos, nanos);
        stats.decision = histogram::read(&DECISIONS, tallies.map(|it| &it.decisions), nanos, nanos);
    }
}

/// What one accept loop measures with.
#[derive(Debug)]
pub(crate) struct Meter {
    tally: Arc<Tally>,
    /// Connections that were accepted since others had their turn.
    in_turn: u64,
    /// How often the queue was empty.
    n_emptied: u64,
    /// When it gave way to others, until it runs again.
    yielded: Option<Instant>,
}

impl Meter {
    /// So many times that the queue is empty, the loop gives way once, to see how long that takes:
    /// one that has little to do would not know.
    const EMPTIED: u64 = 64;

    /// A connection was accepted.
    pub(crate) fn accepted(&mut self) {
        self.in_turn += 1;
    }

    /// The queue is empty, the loop stands still, or others have their turn.
    pub(crate) fn ends_turn(&mut self) {
        if self.in_turn != 0 {
            self.tally.batches.put(self.in_turn);
            self.in_turn = 0;
        }
    }

    /// The queue is empty; whether to [give way](Self::yields), though others have their turn
    /// anyway.
    pub(crate) fn empties(&mut self) -> bool {
        self.n_emptied += 1;
        self.n_emptied % Self::EMPTIED == 1
    }

    /// Lets others have their turn. Where it is cancelled, [`runs`](Self::runs) knows of it.
    pub(crate) async fn yields(&mut self) {
        self.ends_turn();
        self.yielded.get_or_insert_with(Instant::now);
        task::yield_now().await;
        self.runs();
    }

    /// The loop runs.
    pub(crate) fn runs(&mut self) {
        if let Some(yielded) = self.yielded.take() {
            self.tally.lags.put(in_nanos(yielded.elapsed()));
        }
    }

    /// A connection was in the queue for so long.
    pub(crate) fn waited(&self, age: Duration) {
        self.tally.waits.put(in_nanos(age));
    }

    /// It took so long until it was closed, or had its permit.
    pub(crate) fn decided(&self, took: Duration) {
        self.tally.decisions.put(in_nanos(took));
    }
}

/// What is asked about a connection, of which that would cost too much of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// How long it was in the queue: one of 16, the first among them.
    pub(crate) wait: bool,
    /// How long it takes to decide about it: one of 64, the second among them.
    pub(crate) decision: bool,
}

impl Asked {
    /// Of the connection before which `n` were accepted.
    ///
    /// They are spread evenly but are at no fixed distance: clients come in groups, often of a
    /// power of two, and each sixteenth connection would be always the first of its group.
    pub(crate) fn of(n: u64) -> Self {
        // 2^64 divided by the golden ratio: of any number of steps, no two meet and no gap is wide
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let place = n.wrapping_mul(STEP) >> 58;
        // no connection is asked for both, since to ask for the wait would be part of the decision
        Self { wait: place < 4, decision: place == 39 }
    }
}

/// How long connections lived. More than one thread counts, each into a place of its own, more or
/// less.
#[derive(Debug)]
pub(crate) struct Lives([Place; 8]);

/// Two cache lines: some processors fetch pairs of them.
#[derive(Debug)]
#[repr(align(128))]
struct Place(Cells<23>);

impl Lives {
    pub(crate) fn new() -> Self {
        Self([(); 8].map(|()| Place(Cells::new(&LIVES))))
    }

    pub(crate) fn ended(&self, after: Duration) {
        let nanos = in_nanos(after);
        // in microseconds, the sum is full after half a million years that connections are open: in
        // nanoseconds, 100,000 of them need two days
        self.0[place()].0.add(nanos, nanos.saturating_add(500) / 1_000);
    }

    pub(crate) fn read(&self) -> Histogram<Duration> {
        let cells = self.0.iter().map(|it| &it.0);
        histogram::read(&LIVES, cells, Duration::from_nanos, Duration::from_micros)
    }
}

/// One of eight places, the same one whenever this thread asks.
fn place() -> usize {
    // an address that no other thread has is a number of the thread, without a counter of threads
    thread_local! {
        static OWN: u8 = const { 0 };
    }
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let address = OWN.with(|own| ptr::from_ref(own).addr());
    let spread = (address as u64).wrapping_mul(STEP) >> 61;
    usize::try_from(spread).expect("three bits")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread};

    use super::*;

    #[test]
    fn of_any_thousand_connections_as_many_are_asked_as_is_said() {
        for begin in [0, 1, 17, 1_000_000, u64::MAX - 2_000] {
            let asked = (begin..begin + 1_024).map(Asked::of);
            let (waits, decisions) = asked.fold((0_i32, 0_i32), |(waits, decisions), it| {
                assert!(!(it.wait && it.decision));
                (waits + i32::from(it.wait), decisions + i32::from(it.decision))
            });
            assert!((waits - 64).abs() <= 2, "{waits} from {begin}");
            assert!((decisions - 16).abs() <= 2, "{decisions} from {begin}");
        }
        assert_eq!(Asked::of(0), Asked { wait: true, decision: false });
        assert_eq!(Asked::of(1), Asked { wait: false, decision: true });
    }

    #[test]
    fn of_groups_of_any_size_each_place_is_asked() {
        for size in [2_u64, 8, 16, 64] {
            let asked = (0..64 * 64 * size).filter(|&n| Asked::of(n).decision);
            let places: BTreeSet<_> = asked.map(|n| n % size).collect();
            assert_eq!(places.len() as u64, size, "of {size}");
        }
    }

    #[test]
    fn a_loop_goes_on_with_the_tally_of_one_that_left() {
        let (tallies, mut stats) = (Tallies::default(), Stats::default());
        let count = |meter: &mut Meter, n: u64| {
            (0..n).for_each(|_| meter.accepted());
            meter.ends_turn();
        };
        let (mut first, mut second) = (tallies.meter(), tallies.meter());
        count(&mut first, 3);
        count(&mut second, 5);
        drop(first);
        let mut third = tallies.meter();
        count(&mut third, 100);
        tallies.count(&mut stats);
        assert_eq!(tallies.lock().len(), 2);
        let got = &stats.accept_batch_size;
        let filled: Vec<_> = got.buckets.iter().filter(|(_, n)| *n != 0).collect();
        assert_eq!((filled, got.above, got.sum), (vec![&(4, 1), &(8, 1)], 1, 108));
    }

    #[test]
    fn a_turn_without_connections_is_none() {
        let (tallies, mut stats) = (Tallies::default(), Stats::default());
        let mut meter = tallies.meter();
        meter.ends_turn();
        meter.accepted();
        meter.ends_turn();
        meter.ends_turn();
        tallies.count(&mut stats);
        assert_eq!((stats.accept_batch_size.count(), stats.accept_batch_size.sum), (1, 1));
    }

    #[tokio::test]
    async fn who_gives_way_and_is_cancelled_is_late_all_the_same() {
        let (tallies, mut stats) = (Tallies::default(), Stats::default());
        let mut meter = tallies.meter();
        {
            let mut yields = Box::pin(meter.yields());
            let polled = is_ready(&mut yields).await;
            assert!(!polled, "it has given way");
        }
        tallies.count(&mut stats);
        assert_eq!(stats.accept_loop_lag.count(), 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(2) {}
        meter.runs();
        meter.runs();
        tallies.count(&mut stats);
        assert_eq!(stats.accept_loop_lag.count(), 1);
        assert!(Duration::from_millis(2) <= stats.accept_loop_lag.sum, "{stats:?}");
    }

    /// Whether `future` is ready when it is polled once.
    async fn is_ready(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready())
        })
        .await
    }

    #[test]
    fn lives_that_end_on_many_threads_are_all_counted() {
        let lives = Lives::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| lives.ended(Duration::from_millis(3))));
            }
        });
        let got = lives.read();
        assert_eq!((got.count(), got.sum), (4_000, Duration::from_secs(12)));
        assert_eq!(
            got.buckets[2],
            (Duration::from_micros(3_906) + Duration::from_nanos(250), 4_000)
        );
    }

    #[test]
    fn threads_have_different_places_and_keep_them() {
        let places: BTreeSet<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        let own = place();
                        assert_eq!(place(), own);
                        own
                    })
                })
                .collect();
            threads.into_iter().map(|it| it.join().expect("no panic")).collect()
        });
        assert!(1 < places.len(), "{places:?}");
    }
}
