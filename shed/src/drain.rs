//! How a listener ends without cutting anybody off: told, closed, waited for.
//!
//! Serving → announced (not ready, so that balancers turn away; still accepting) → closing (nobody
//! new begins a handshake; who finished one is accepted; the socket is closed) → draining (what is
//! open goes on until the deadline) → done. What decides is a function of what was seen and a time;
//! the driver below looks, waits and acts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;

use crate::{
    leave::{Exit, LONGEST},
    life::Progress,
    shared::Shared,
};

/// How to drain. `delay` + `deadline` + 2 s is to be below the time after which the process is
/// killed: `terminationGracePeriodSeconds` of Kubernetes, `TimeoutStopSec` of systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it accepts as before, though it says that it is not ready: what a balancer needs to
    /// learn of it. Unsaid: 5 s.
    pub delay: Duration,
    /// How long connections have after that; those that are left are reset. Unsaid: 20 s.
    pub deadline: Duration,
    /// What becomes of connections that are in the accept queue when it closes. Unsaid: they are
    /// served.
    pub queued: Queued,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            deadline: Duration::from_secs(20),
            queued: Queued::Serve,
        }
    }
}

/// What becomes of connections that came before the listener closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// They are served, within the limits.
    Serve,
    /// They are shed, for [`Reason::Draining`](crate::Reason::Draining).
    Shed,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// There is none.
    Serving,
    /// Not ready, still accepting.
    Announced,
    /// Accepting who finished a handshake, nobody else.
    Closing,
    /// Accepting nobody.
    Draining,
    /// Over.
    Done,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Connections that were served at the deadline, and were reset.
    pub reset: u64,
}

/// What a drain depends on.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Instant,
    is_closed: bool,
    open: usize,
    is_hurried: bool,
}

/// Where a drain is, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Announced { until: Instant },
    Closing { until: Instant, end: Instant },
    Draining { end: Instant },
    Done,
}

impl State {
    fn begin(drain: &Drain, at: Instant) -> Self {
        Self::Announced { until: after(at, drain.delay) }
    }

    /// Begins, or goes on with what another one has left, which has no time any more.
    fn from(stage: Stage, drain: &Drain, at: Instant) -> Self {
        match stage {
            Stage::Serving => Self::begin(drain, at),
            Stage::Announced => Self::Announced { until: at },
            Stage::Closing => Self::Closing { until: at, end: at },
            Stage::Draining => Self::Draining { end: at },
            Stage::Done => Self::Done,
        }
    }

    /// At most one step further.
    fn next(self, drain: &Drain, seen: &Seen) -> Self {
        let is_over = |until| seen.is_hurried || until <= seen.at;
        match self {
            Self::Announced { until } if is_over(until) => {
                Self::Closing { until: seen.at + LONGEST, end: after(seen.at, drain.deadline) }
            }
            Self::Closing { until, end } if seen.is_closed || is_over(until) => {
                Self::Draining { end }
            }
            // a queue that is not empty may give it another connection
            Self::Draining { end } if (seen.is_closed && seen.open == 0) || is_over(end) => {
                Self::Done
            }
            Self::Announced { .. } | Self::Closing { .. } | Self::Draining { .. } | Self::Done => {
                self
            }
        }
    }

    fn stage(self) -> Stage {
        match self {
            Self::Announced { .. } => Stage::Announced,
            Self::Closing { .. } => Stage::Closing,
            Self::Draining { .. } => Stage::Draining,
            Self::Done => Stage::Done,
        }
    }

    /// When it is over at the latest.
    fn end(self, drain: &Drain) -> Option<Instant> {
        match self {
            Self::Announced { until } => Some(after(until, drain.deadline)),
            Self::Closing { end, .. } | Self::Draining { end } => Some(end),
            Self::Done => None,
        }
    }

    /// When it goes on, whatever is seen.
    fn until(self) -> Option<Instant> {
        match self {
            Self::Announced { until } | Self::Closing { until, .. } => Some(until),
            Self::Draining { end } => Some(end),
            Self::Done => None,
        }
    }
}

/// `time` after `at`; what no clock shows is a century.
fn after(at: Instant, time: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    at + time.min(CENTURY)
}

/// Drains, or hurries the drain that goes on.
pub(crate) async fn run(shared: &Shared, drain: &Drain) -> Drained {
    let mut progress = shared.life.progress.subscribe();
    shared.life.hurry();
    let driver = loop {
        if let Some(driver) = shared.life.drive() {
            break driver;
        }
        let seen = *progress.borrow_and_update();
        // an error: nobody is left that could tell
        if seen.is_done() || progress.changed().await.is_err() {
            return seen.drained;
        }
    };
    let mut state = State::from(driver.from, drain, Instant::now());
    tell_end(shared, state.end(drain));
    loop {
        let is_hurried = progress.borrow_and_update().is_hurried;
        let open = shared.gate.own_taken();
        let seen = Seen { at: Instant::now(), is_closed: shared.is_closed(), open, is_hurried };
        let next = state.next(drain, &seen);
        if next != state {
            state = next;
            tell_end(shared, state.end(drain));
            if let Some(drained) = enter(shared, drain, state.stage(), is_hurried) {
                return drained;
            }
            continue;
        }
        let is_drained = || shared.is_closed() && shared.gate.own_taken() == 0;
        let until = state.until().unwrap_or(seen.at);
        tokio::select! {
            () = time::sleep_until(until.into()) => {}
            // no error: `shared` has the other end
            _ = progress.changed() => {}
            () = shared.closing(), if !seen.is_closed => {}
            () = shared.gate.changed(is_drained), if state.stage() == Stage::Draining => {}
        }
    }
}

/// For those who ask when it is over; nobody waits for it.
fn tell_end(shared: &Shared, ends: Option<Instant>) {
    shared.life.progress.send_if_modified(|it| {
        it.ends = ends;
        false
    });
}

/// Does what belongs to the beginning of a stage.
fn enter(shared: &Shared, drain: &Drain, stage: Stage, is_hurried: bool) -> Option<Drained> {
    match stage {
        Stage::Serving | Stage::Announced => {}
        Stage::Closing => {
            // first: a handover looks at it after it said that it is one
            shared.life.progress.send_modify(|it| it.stage = stage);
            let queued = drain.queued;
            shared.leave(if is_hurried { Exit::Now } else { Exit::Filter { queued } });
            return None;
        }
        Stage::Draining => {
            if is_hurried {
                shared.leave(Exit::Now);
            }
        }
        Stage::Done => {
            let drained = Drained { reset: shared.life.end_all() };
            shared.life.progress.send_modify(|it| {
                it.stage = stage;
                it.drained = drained;
            });
            return Some(drained);
        }
    }
    shared.life.progress.send_modify(|it| it.stage = stage);
    None
}

/// Ends when the listener is about to close.
pub(crate) fn told(shared: &Arc<Shared>) -> impl Future<Output = ()> + Send + use<> {
    let mut progress = shared.life.progress.subscribe();
    async move {
        // an error: the listener is gone, with all that it had open
        drop(progress.wait_for(|it| Stage::Closing <= it.stage).await);
    }
}

/// Ends when a drain is over; where there is none, never.
pub(crate) fn over(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let mut progress = shared.life.progress.subscribe();
    async move {
        // an error: the listener is gone
        drop(progress.wait_for(Progress::is_done).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds, closed, open, hurried, and what it gives.
    type Case = (u64, bool, usize, bool, Stage);

    #[track_caller]
    fn check(cases: &[Case]) {
        let drain = Drain {
            delay: Duration::from_secs(5),
            deadline: Duration::from_secs(20),
            queued: Queued::Serve,
        };
        let begun = Instant::now();
        let mut state = State::begin(&drain, begun);
        for &(millis, is_closed, open, is_hurried, expected) in cases {
            let at = begun + Duration::from_millis(millis);
            state = state.next(&drain, &Seen { at, is_closed, open, is_hurried });
            assert_eq!(state.stage(), expected, "after {millis} ms of {cases:?}");
        }
    }

    #[test]
    fn each_stage_waits_for_its_own() {
        use Stage::{Announced, Closing, Done, Draining};
        // nobody is connected, and still the delay is for those that come
        check(&[
            (0, false, 0, false, Announced),
            (4_999, false, 0, false, Announced),
            (5_000, false, 0, false, Closing),
            (5_010, true, 0, false, Draining),
            (5_010, true, 0, false, Done),
        ]);
        check(&[
            (5_000, false, 9, false, Closing),
            (5_499, false, 9, false, Closing),
            (5_500, false, 9, false, Draining),
            // its last look at the queue is late: who is there has the deadline, too
            (5_600, false, 0, false, Draining),
            (5_700, false, 1, false, Draining),
            (24_999, true, 1, false, Draining),
            (25_000, true, 1, false, Done),
            (30_000, true, 1, false, Done),
        ]);
    }

    #[test]
    fn a_second_request_ends_it() {
        use Stage::{Announced, Closing, Done, Draining};
        check(&[
            (1, false, 9, false, Announced),
            (2, false, 9, true, Closing),
            (2, false, 9, true, Draining),
            (2, false, 9, true, Done),
        ]);
        check(&[
            (5_000, false, 9, false, Closing),
            (6_000, true, 9, false, Draining),
            (6_001, true, 9, true, Done),
        ]);
    }
}
