//! What a listener counted: waiting for it, and what always holds.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use backlogd_shed::{Candidate, Cause, Closed, Decide, Handle, Load, Stage, Stats, Verdict};
use tokio::time;

/// Waits until `is_so`, at most 5 s.
pub(crate) async fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    within(Duration::from_secs(5), handle, is_so).await
}

/// Waits until `is_so` and nobody is on the way from accept(2) to an answer, at most `limit`.
pub(crate) async fn within(
    limit: Duration,
    handle: &Handle,
    is_so: impl Fn(&Stats) -> bool,
) -> Stats {
    let end = Instant::now() + limit;
    loop {
        let stats = handle.stats();
        if is_so(&stats) && is_at_rest(&stats) {
            return stats;
        }
        assert!(Instant::now() < end, "{stats:?}");
        time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether each that was accepted is decided about, and each that is shed has its answer.
fn is_at_rest(stats: &Stats) -> bool {
    let shed: u64 = Stage::ALL.into_iter().map(|stage| stats.shed_at(stage)).sum();
    let answered: u64 = stats.answers.iter().map(|(_, n)| n).sum();
    stats.accepted == stats.admitted + stats.shed_at(Stage::Accept) && shed == answered
}

/// accepted = admitted + shed at accept, admitted = closed + open, and each that closed had its
/// time.
pub(crate) fn check_identities(stats: &Stats) {
    assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept), "{stats:?}");
    let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
    assert_eq!(stats.admitted, closed + stats.open, "{stats:?}");
    assert_eq!(stats.connection_duration.count(), closed, "{stats:?}");
}

/// Admits all, and keeps in mind how long those were open that ended for one cause.
#[derive(Clone)]
pub(crate) struct Times {
    cause: Cause,
    open: Arc<Mutex<Vec<Duration>>>,
}

impl Times {
    pub(crate) fn of(cause: Cause) -> Self {
        Self { cause, open: Arc::default() }
    }

    /// The shortest first.
    pub(crate) fn sorted(&self) -> Vec<Duration> {
        let mut times = self.open.lock().expect("no panic").clone();
        times.sort_unstable();
        times
    }
}

impl Decide for Times {
    fn decide(&self, _: &Candidate<'_>, _: &Load) -> Verdict {
        Verdict::Admit
    }

    fn closed(&self, closed: &Closed) {
        if closed.cause == self.cause {
            self.open.lock().expect("no panic").push(closed.after);
        }
    }
}
