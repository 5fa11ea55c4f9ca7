//! Turns the wheel of one listener, as long as it has connections.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    sync::Notify,
    task,
    time::{self, MissedTickBehavior},
};

use super::{
    Deadline, Deadlines, TimedOut,
    cell::{Cell, Loan},
    clock::Clock,
    plan::{Look, Phase, Plan, TICK},
    wheel::{Tick, Wheel},
};
use crate::shared::Shared;

/// So many connections are looked at before other tasks have their turn.
const BATCH: usize = 256;

/// The deadlines of one listener.
#[derive(Debug)]
pub(crate) struct Watcher {
    deadlines: Deadlines,
    plan: Plan,
    /// The tick of the last turn, or of who came since: for those who read and write.
    now: AtomicU64,
    arrivals: Mutex<Arrivals>,
    wake: Arc<Notify>,
}

/// The time, and connections that are not on the wheel so far.
#[derive(Debug)]
struct Arrivals {
    clock: Clock,
    list: Vec<Watched>,
    /// The wheel stands still, for want of connections.
    is_parked: bool,
}

#[derive(Debug)]
struct Watched {
    cell: Arc<Cell>,
    look: Look,
}

impl Watcher {
    pub(crate) fn new(deadlines: Deadlines) -> Self {
        let clock = Clock::new(Instant::now());
        Self {
            deadlines,
            plan: Plan::new(&deadlines),
            now: AtomicU64::new(0),
            arrivals: Mutex::new(Arrivals { clock, list: Vec::new(), is_parked: true }),
            wake: Arc::default(),
        }
    }

    /// The tick of a connection that is admitted at `at`, and has its place already. The wheel
    /// turns from here on: a standstill is none of its lifetime even while nobody serves it.
    pub(crate) fn admit(&self, at: Instant) -> Tick {
        let mut arrivals = self.arrivals();
        if mem::take(&mut arrivals.is_parked) {
            arrivals.clock.wake(at);
            self.wake.notify_one();
        }
        arrivals.clock.tick(at)
    }

    /// Has the wheel look at a connection.
    pub(crate) fn watch(&self, stream: &TcpStream, admitted: Tick) -> (Arc<Cell>, Loan) {
        let cell = self.take(admitted, Instant::now());
        let loan = cell.lend(stream);
        (cell, loan)
    }

    /// A connection that is served from `at` on: on the wheel at its next turn.
    fn take(&self, admitted: Tick, at: Instant) -> Arc<Cell> {
        let phase = match self.deadlines.handshake {
            Some(_) => Phase::Handshake,
            None => Phase::Header,
        };
        let mut arrivals = self.arrivals();
        let begun = arrivals.clock.tick(at);
        self.now.fetch_max(begun, Ordering::Relaxed);
        let look = Look::new(admitted, begun);
        let cell = Arc::new(Cell::new(phase, begun));
        arrivals.list.push(Watched { cell: Arc::clone(&cell), look });
        cell
    }

    /// The tick, as of the last turn.
    pub(crate) fn now(&self) -> Tick {
        self.now.load(Ordering::Relaxed)
    }

    #[cfg(feature = "tls")]
    pub(crate) fn handshake_begins(&self, cell: &Cell) {
        cell.enter(Phase::Handshake, self.now());
    }

    #[cfg(feature = "tls")]
    pub(crate) fn is_in_handshake(&self, cell: &Cell) -> bool {
        cell.see(self.now()).phase == Phase::Handshake
    }

    pub(crate) fn handshake_done(&self, cell: &Cell) {
        cell.enter(Phase::Header, self.now());
    }

    pub(crate) fn header_done(&self, cell: &Cell) {
        cell.enter(Phase::Body, self.now());
    }

    pub(crate) fn request_done(&self, cell: &Cell) {
        cell.enter(Phase::Between, self.now());
    }

    /// What a read or a write of a connection that `deadline` ended fails with.
    pub(crate) fn timed_out(&self, deadline: Deadline) -> TimedOut {
        TimedOut { deadline, allowed: self.deadlines.of(deadline).unwrap_or_default() }
    }

    /// Notes that the kernel ended a connection whose peer acknowledged nothing; whether that
    /// counts.
    pub(crate) fn stalled(&self, cell: &Cell) -> bool {
        self.deadlines.write_stall.is_some() && cell.note_end(Deadline::WriteStall)
    }

    pub(crate) fn lifetime(&self) -> Option<Duration> {
        self.deadlines.lifetime
    }

    /// The wheel turns at `at`: the tick, and who came since the last turn in `came`.
    fn turn(&self, at: Instant, came: &mut Vec<Watched>) -> Tick {
        let mut arrivals = self.arrivals();
        came.append(&mut arrivals.list);
        let tick = arrivals.clock.turn(at);
        self.now.fetch_max(tick, Ordering::Relaxed);
        tick
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the task that turns the wheel. It ends with the listener and its last connection.
    pub(crate) fn start(shared: &Arc<Shared>) {
        if let Some(watcher) = &shared.watcher {
            task::spawn(run(Arc::downgrade(shared), Arc::clone(&watcher.wake)));
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

async fn run(shared: Weak<Shared>, wake: Arc<Notify>) {
    let mut ticks = time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut wheel, mut due) = (Wheel::new(0), Vec::new());
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let Some(watcher) = &shared.watcher else { return };
        let at = watcher.turn(Instant::now(), &mut due);
        wheel.advance(at, &mut due);
        for (n, mut watched) in due.drain(..).enumerate() {
            if let Some(next) = watched.judge(watcher, &shared, at) {
                wheel.insert(next, watched);
            }
            if n % BATCH == BATCH - 1 {
                task::yield_now().await;
            }
        }
        if wheel.is_empty() && watcher.parks(&shared) {
            drop(shared);
            wake.notified().await;
        }
    }
}

impl Watcher {
    /// Whether there is nothing to turn the wheel for; who comes next wakes it.
    fn parks(&self, shared: &Shared) -> bool {
        let mut arrivals = self.arrivals();
        // whoever is admitted later took a place later, and finds it parked
        arrivals.is_parked = arrivals.list.is_empty() && shared.gate.own_taken() == 0;
        arrivals.is_parked
    }
}

impl Watched {
    /// When to look again; `None`: it ended.
    fn judge(&mut self, watcher: &Watcher, shared: &Shared, at: Tick) -> Option<Tick> {
        // nobody else has it: it is closed
        if Arc::strong_count(&self.cell) == 1 {
            return None;
        }
        match self.look.judge(&watcher.plan, &self.cell.see(at), || self.cell.unacked()) {
            Ok(next) => Some(next),
            Err(deadline) => {
                match self.cell.end(deadline, || shared.counters.timed_out(deadline)) {
                    Some(()) => None,
                    // about to be lent, or closed: the next look tells
                    None => Some(at + 1),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;
    use crate::ShedListener;

    /// When a connection is served that comes at `at`.
    fn begun(watcher: &Watcher, at: Instant) -> Tick {
        watcher.take(watcher.admit(at), at).see(0).since
    }

    #[test]
    fn who_comes_before_a_standstill_loses_half_a_second_to_it() {
        let (watcher, start) = (Watcher::new(Deadlines::default()), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        // the first one wakes the wheel, which did not turn so far; the other finds it turning
        for (came, turned) in [(2, 8), (8, 14)] {
            let begun = begun(&watcher, after(came));
            assert_eq!(watcher.turn(after(turned), &mut Vec::new()), begun + 5);
            assert_eq!(watcher.now(), begun + 5);
        }
    }

    #[test]
    fn all_who_come_after_a_standstill_begin_with_the_next_turn() {
        let (watcher, start) = (Watcher::new(Deadlines::default()), Instant::now());
        let first = begun(&watcher, start);
        let ends = start + Duration::from_secs(8);
        let begun: Vec<_> = (0..60).map(|_| begun(&watcher, ends)).collect();
        assert_eq!(begun, [first + 5; 60]);
        let mut came = Vec::new();
        assert_eq!(watcher.turn(ends + TICK / 2, &mut came), first + 5);
        assert_eq!(came.len(), 61);
        assert_eq!(watcher.turn(ends + TICK * 2, &mut came), first + 6);
    }

    #[test]
    fn a_standstill_before_somebody_serves_is_none_of_the_lifetime() {
        let lifetime = Some(Duration::from_secs(4));
        let watcher = Watcher::new(Deadlines { lifetime, ..Deadlines::default() });
        let (mut start, mut came) = (Instant::now(), Vec::new());
        for _ in 0..100 {
            start += TICK;
            watcher.turn(start, &mut came);
        }
        let admitted = watcher.admit(start);
        let stands_still = Duration::from_secs(6);
        watcher.turn(start + stands_still, &mut came);
        let _cell = watcher.take(admitted, start + stands_still);
        let ends = (0..100).find(|n| {
            let at = watcher.turn(start + stands_still + TICK * *n, &mut came);
            let Watched { cell, look } = &mut came[0];
            look.judge(&watcher.plan, &cell.see(at), || 0) == Err(Deadline::Lifetime)
        });
        // 0.5 s count before, and it is a tick late
        assert_eq!(ends, Some(36));
    }

    /// What this process used of the processor; fields 14 and 15 of proc(5), in 10 ms each.
    fn used() -> Duration {
        let stat = fs::read_to_string("/proc/self/stat").expect("procfs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(10 * ticks)
    }

    /// What the wheel costs by itself, sockets aside.
    #[test]
    #[ignore = "slow: 20 s, alone, in a release build"]
    fn a_hundred_thousand_connections_at_rest_cost_a_hundredth_of_a_core() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let _entered = runtime.enter();
        let seconds = |n| Some(Duration::from_secs(n));
        let deadlines = Deadlines {
            first_byte: seconds(3_600),
            header: seconds(3_600),
            idle: seconds(120),
            write_stall: seconds(30),
            lifetime: seconds(3_600),
            ..Deadlines::default()
        };
        let listener =
            ShedListener::bind("127.0.0.1:0").deadlines(deadlines).build().expect("a listener");
        let handle = listener.handle();
        let shared = handle.shared();
        let watcher = shared.watcher.as_ref().expect("it has deadlines");
        let mut cells = Vec::new();
        for _ in 0..100 {
            // as they come, some at a time
            thread::sleep(TICK);
            for _ in 0..1_000 {
                let at = Instant::now();
                cells.push(watcher.take(watcher.admit(at), at));
            }
        }
        let (before, begun) = (used(), Instant::now());
        thread::sleep(Duration::from_secs(10));
        let (used, time) = (used() - before, begun.elapsed());
        assert!(used * 100 <= time, "{used:?} in {time:?}");
        assert!(cells.iter().all(|cell| cell.ended_by().is_none()));
    }
}
