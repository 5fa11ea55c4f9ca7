//! What was counted, without a library of metrics.
//!
//! Two identities hold at rest: accepted = admitted + shed at the stage of accept, and admitted =
//! closed + open. In a [`Stats`] of a moving listener they hold within what moved while it was
//! read.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    close::Answer,
    deadline::Deadline,
    histogram::Histogram,
    meter::{Lives, Meter, Tallies},
    reason::{Cause, Reason, Stage},
};

/// Why the accept loop stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pause {
    /// The hard limit is reached.
    Hard,
    /// accept(2) fails for want of descriptors or memory.
    Backoff,
}

impl Pause {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hard, Self::Backoff];

    /// The value of the label `cause`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Backoff => "backoff",
        }
    }
}

/// The counters of one listener. Whoever accepts adds to most of them, alone.
#[derive(Debug)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    admitted: AtomicU64,
    exempt_admitted: AtomicU64,
    exempt_closed: AtomicU64,
    shed: [[AtomicU64; Stage::ALL.len()]; Reason::ALL.len()],
    answers: [AtomicU64; Answer::ALL.len()],
    time_wait_closes: AtomicU64,
    closed: [AtomicU64; Cause::ALL.len()],
    lingering: AtomicU64,
    handshaking: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    timeouts: [AtomicU64; Deadline::ALL.len()],
    oversized: AtomicU64,
    accept_errors: Mutex<BTreeMap<i32, u64>>,
    pauses: [Mutex<Pauses>; Pause::ALL.len()],
    tallies: Tallies,
    lives: Lives,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            exempt_admitted: AtomicU64::new(0),
            exempt_closed: AtomicU64::new(0),
            shed: Default::default(),
            answers: Default::default(),
            time_wait_closes: AtomicU64::new(0),
            closed: Default::default(),
            lingering: AtomicU64::new(0),
            handshaking: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            timeouts: Default::default(),
            oversized: AtomicU64::new(0),
            accept_errors: Mutex::default(),
            pauses: Default::default(),
            tallies: Tallies::default(),
            lives: Lives::new(),
        }
    }

    /// For one more accept loop.
    pub(crate) fn meter(&self) -> Meter {
        self.tallies.meter()
    }

    pub(crate) fn accepted(&self) {
        add(&self.accepted, 1);
    }

    pub(crate) fn admitted(&self, exempt: bool) {
        add(&self.admitted, 1);
        add(&self.exempt_admitted, exempt.into());
    }

    pub(crate) fn shed(&self, reason: Reason, stage: Stage) {
        add(&self.shed[reason as usize][stage as usize], 1);
    }

    /// Connections that were shed for want of descriptors, and those that had one of their own.
    pub(crate) fn by_descriptor(&self) -> (u64, u64) {
        let accepted = read(&self.accepted);
        let shed = read(&self.shed[Reason::Emfile as usize][Stage::Accept as usize]);
        (shed, accepted.saturating_sub(shed))
    }

    pub(crate) fn answered(&self, answer: Answer, leaves_time_wait: bool) {
        add(&self.answers[answer as usize], 1);
        add(&self.time_wait_closes, leaves_time_wait.into());
    }

    /// An admitted connection ended, so long after it was.
    pub(crate) fn closed(&self, cause: Cause, exempt: bool, after: Duration) {
        self.lives.ended(after);
        add(&self.closed[cause as usize], 1);
        add(&self.exempt_closed, exempt.into());
    }

    /// Counts one more that lingers, unless as many do as may.
    pub(crate) fn lingers(&self, most: u64) -> bool {
        let more = |n: u64| (n < most).then(|| n + 1);
        self.lingering.try_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(crate) fn n_lingering(&self) -> u64 {
        read(&self.lingering)
    }

    pub(crate) fn lingered(&self) {
        self.lingering.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn handshakes(&self) {
        add(&self.handshaking, 1);
    }

    pub(crate) fn handshaken(&self) {
        self.handshaking.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn moved(&self, bytes_in: u64, bytes_out: u64) {
        for (counter, n) in [(&self.bytes_in, bytes_in), (&self.bytes_out, bytes_out)] {
            if n != 0 {
                add(counter, n);
            }
        }
    }

    pub(crate) fn timed_out(&self, deadline: Deadline) {
        add(&self.timeouts[deadline as usize], 1);
    }

    pub(crate) fn oversized(&self) {
        add(&self.oversized, 1);
    }

    pub(crate) fn accept_failed(&self, errno: i32) {
        let mut errors = self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner);
        *errors.entry(errno).or_default() += 1;
    }

    /// Counts as standing still until the guard is dropped.
    pub(crate) fn pause(&self, cause: Pause) -> Paused<'_> {
        let mut pauses = self.pauses(cause);
        pauses.n += 1;
        pauses.since.get_or_insert_with(Instant::now);
        drop(pauses);
        Paused { counters: self, cause }
    }

    fn pauses(&self, cause: Pause) -> MutexGuard<'_, Pauses> {
        self.pauses[cause as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it stood still, what goes on included.
    fn paused(&self, cause: Pause) -> Duration {
        let pauses = self.pauses(cause);
        pauses.over + pauses.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Why it stands still.
    pub(crate) fn is_paused(&self) -> Option<Pause> {
        Pause::ALL.into_iter().find(|&cause| self.pauses(cause).since.is_some())
    }

    pub(crate) fn snapshot(&self) -> Stats {
        // ends before beginnings, so that no difference is negative
        let closed = Cause::ALL.map(|cause| (cause, read(&self.closed[cause as usize])));
        let exempt_closed = read(&self.exempt_closed);
        let shed = Reason::ALL
            .into_iter()
            .flat_map(|reason| Stage::ALL.map(|stage| (reason, stage)))
            .map(|(reason, stage)| {
                ((reason, stage), read(&self.shed[reason as usize][stage as usize]))
            })
            .collect();
        let exempt_open = read(&self.exempt_admitted).saturating_sub(exempt_closed);
        let admitted = read(&self.admitted);
        let errors = self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats = Stats {
            accepted: read(&self.accepted),
            admitted,
            shed,
            answers: Answer::ALL.map(|it| (it, read(&self.answers[it as usize]))).into(),
            time_wait_closes: read(&self.time_wait_closes),
            open: admitted.saturating_sub(closed.iter().map(|(_, n)| n).sum()),
            closed: closed.into(),
            exempt_open,
            lingering: read(&self.lingering),
            handshaking: read(&self.handshaking),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            deadline_timeouts: Deadline::ALL
                .map(|it| (it, read(&self.timeouts[it as usize])))
                .into(),
            oversized_requests: read(&self.oversized),
            accept_errors: errors.clone(),
            paused: Pause::ALL.map(|cause| (cause, self.paused(cause))).into(),
            is_paused: self.is_paused(),
            connection_duration: self.lives.read(),
            ..Stats::default()
        };
        self.tallies.count(&mut stats);
        stats
    }
}

/// Accept loops that stand still, for one cause.
#[derive(Debug, Default)]
struct Pauses {
    n: usize,
    /// When the first of them began.
    since: Option<Instant>,
    /// How long there was one, before.
    over: Duration,
}

/// While it lives, an accept loop stands still.
#[derive(Debug)]
pub(crate) struct Paused<'a> {
    counters: &'a Counters,
    cause: Pause,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let mut pauses = self.counters.pauses(self.cause);
        pauses.n -= 1;
        if pauses.n == 0 {
            let over = pauses.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            pauses.over += over;
        }
    }
}

/// The counters of a listener at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Successes of accept(2).
    pub accepted: u64,
    /// Connections that were given a permit.
    pub admitted: u64,
    /// Connections that were shed, all pairs of reason and stage.
    pub shed: Vec<((Reason, Stage), u64)>,
    /// What those that were shed got.
    pub answers: Vec<(Answer, u64)>,
    /// Sheds where our FIN went first: each leaves a TIME_WAIT here.
    pub time_wait_closes: u64,
    /// Admitted connections that ended.
    pub closed: Vec<(Cause, u64)>,
    /// Admitted connections that did not, exempt ones included.
    pub open: u64,
    /// Exempt ones among them.
    pub exempt_open: u64,
    /// Shed connections that wait for their answer to arrive.
    pub lingering: u64,
    /// Admitted connections that are not served so far: their PROXY header is awaited.
    pub handshaking: u64,
    /// Peers that are kept in mind, for the connections they have or opened of late.
    pub peers_tracked: u64,
    /// Peers without connections that were forgotten early, to keep others in mind.
    pub peers_evicted: u64,
    /// Connections for whose peers there was no place, whatever became of them.
    pub peers_full: u64,
    /// Bytes read from admitted connections.
    pub bytes_in: u64,
    /// Bytes written to them.
    pub bytes_out: u64,
    /// Connections that a deadline ended.
    pub deadline_timeouts: Vec<(Deadline, u64)>,
    /// Requests that were larger than they may be.
    pub oversized_requests: u64,
    /// Failures of accept(2), by errno.
    pub accept_errors: BTreeMap<i32, u64>,
    /// How long nothing was accepted.
    pub paused: Vec<(Pause, Duration)>,
    /// Why nothing is accepted at this moment.
    pub is_paused: Option<Pause>,
    /// The soft limit in force, where it is adaptive.
    pub adaptive_limit: Option<usize>,
    /// Connections by which the listener asked itself whether it accepts
    /// ([`health`](crate::health)); they are not among the accepted ones.
    pub probes: u64,
    /// What each member of a [`Group`](crate::Group) accepted, of those that are there.
    pub members: Vec<u64>,
    /// How many were accepted in each turn of an accept loop that accepted some: until the queue
    /// was empty, the hard limit reached, or others had their turn, which they have after
    /// eight that were admitted or shed in a row. Where it is always eight or more, the loop
    /// has all it can do. At rest, the sum is what was accepted.
    pub accept_batch_size: Histogram<u64>,
    /// How long an accept loop that gave way to others had to wait until it ran again: whenever it
    /// does so, and once in 64 times that the queue is empty.
    pub accept_loop_lag: Histogram<Duration>,
    /// How long connections were in the accept queue, by the kernel's clock of milliseconds: of
    /// one in 16 that were accepted, and of all after a pause, until the queue is empty, or
    /// where CoDel asks. What is shed while the listener drains is not asked.
    pub queue_wait: Histogram<Duration>,
    /// How long it took from accept(2) until a connection was closed, with its answer sent, or had
    /// its permit: of one in 64.
    pub decision: Histogram<Duration>,
    /// How long connections were open, from their permit to close(2), of all that ended. At rest,
    /// as many as [`closed`](Self::closed).
    pub connection_duration: Histogram<Duration>,
}

impl Stats {
    /// Connections that were shed for `reason`, at both stages.
    #[must_use]
    pub fn shed_for(&self, reason: Reason) -> u64 {
        self.shed.iter().filter(|((it, _), _)| *it == reason).map(|(_, n)| n).sum()
    }

    /// Connections that were shed at `stage`.
    #[must_use]
    pub fn shed_at(&self, stage: Stage) -> u64 {
        self.shed.iter().filter(|((_, it), _)| *it == stage).map(|(_, n)| n).sum()
    }

    /// Connections that `deadline` ended.
    #[must_use]
    pub fn timeouts_of(&self, deadline: Deadline) -> u64 {
        self.deadline_timeouts.iter().filter(|(it, _)| *it == deadline).map(|(_, n)| n).sum()
    }

    /// Connections that ended for `cause`.
    #[must_use]
    pub fn closed_for(&self, cause: Cause) -> u64 {
        self.closed.iter().filter(|(it, _)| *it == cause).map(|(_, n)| n).sum()
    }
}
