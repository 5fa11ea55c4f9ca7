//! Serves one receiver: waits for what is due, sends it, keeps account.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    account::Account,
    client::{Client, SendError},
    payload::{self, Style},
    queue::{Outcome, Queue, Telling},
};
use crate::{
    detect::alert::Verdicts,
    error,
    time::{Monotonic, Nanos, UnixTime},
};

/// How often it is logged that a receiver refuses alerts.
const REFUSED_EVERY: Duration = Duration::from_secs(60);
/// As good as for ever; a change ends the wait.
const LONG: Nanos = Nanos(3600 * 1_000_000_000);

/// All that one receiver needs.
pub(super) struct Courier {
    pub(super) style: Style,
    pub(super) client: Client,
    pub(super) queue: Queue,
    pub(super) account: Account,
    pub(super) verdicts: watch::Receiver<Arc<Verdicts>>,
    /// Its end tells to stop.
    pub(super) stop: watch::Receiver<()>,
    /// When it began: times of the queue count from here.
    pub(super) began: Instant,
    /// When it was logged last that alerts were refused.
    pub(super) refused: Option<Instant>,
    /// Whether the last request failed.
    pub(super) is_failing: bool,
}

impl Courier {
    /// Until it is told to stop, and for at most `grace` after that.
    pub(super) async fn run(mut self, grace: Duration) {
        let mut stop = self.stop.clone();
        let late = async {
            // nothing is ever sent: it ends
            let _ = stop.changed().await;
            sleep(grace).await;
        };
        tokio::select! {
            () = self.serve() => {}
            () = late => {}
        }
    }

    /// Until it is told to stop, or nobody judges any more; then it sends once what the receiver
    /// does not know.
    async fn serve(&mut self) {
        self.look();
        loop {
            let now = self.now();
            let due = self.queue.due(now);
            if !due.is_empty() {
                self.deliver(due).await;
                if self.stop.has_changed().is_err() {
                    break;
                }
                continue;
            }
            let wait = self.queue.next_at().map_or(LONG, |at| at - now);
            tokio::select! {
                biased;
                _ = self.stop.changed() => break,
                changed = self.verdicts.changed() => match changed {
                    Ok(()) => self.look(),
                    Err(_) => break,
                },
                () = sleep(Duration::from_nanos(wait.0)) => {}
            }
        }
        // what was told right before
        self.look();
        loop {
            let untold = self.queue.untold();
            if untold.is_empty() || !self.deliver(untold).await {
                return;
            }
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic(Nanos::from(self.began.elapsed()).0)
    }

    fn look(&mut self) {
        let verdicts = self.verdicts.borrow_and_update().clone();
        let now = self.now();
        let left_out = self.queue.look(now, &verdicts);
        self.account.set_pending(self.queue.pending() + left_out);
    }

    /// Whether the receiver has answered for good. Looks go on meanwhile.
    async fn deliver(&mut self, mut told: Vec<Telling>) -> bool {
        let (body, n) = match payload::body(&self.style, unix_now(), &told) {
            Ok(body) => body,
            Err(err) => {
                tracing::error!(error = %err, "alerts that cannot be encoded are dropped");
                self.answered(&told, Outcome::Refused);
                return true;
            }
        };
        told.truncate(n);
        let result = {
            let post = self.client.post(body);
            tokio::pin!(post);
            loop {
                tokio::select! {
                    result = &mut post => break result,
                    Ok(()) = self.verdicts.changed() => {
                        let verdicts = self.verdicts.borrow_and_update().clone();
                        let now = Monotonic(Nanos::from(self.began.elapsed()).0);
                        let left_out = self.queue.look(now, &verdicts);
                        self.account.set_pending(self.queue.pending() + left_out);
                    }
                }
            }
        };
        let outcome = self.judge(&result);
        self.answered(&told, outcome);
        outcome != Outcome::Failed
    }

    fn answered(&mut self, told: &[Telling], outcome: Outcome) {
        let now = self.now();
        self.queue.answered(now, told, outcome);
        self.account.count(outcome, told.len());
        self.account.set_pending(self.queue.pending());
    }

    /// What a result means; what people should know of it is logged, on change or once a minute.
    fn judge(&mut self, result: &Result<(), SendError>) -> Outcome {
        let receiver = self.account.receiver();
        let was_failing = std::mem::replace(&mut self.is_failing, false);
        match result {
            Ok(()) => {
                if was_failing {
                    tracing::info!(receiver, "the receiver takes alerts again");
                }
                Outcome::Taken
            }
            Err(err) if err.is_final() => {
                if self.refused.is_none_or(|at| REFUSED_EVERY <= at.elapsed()) {
                    self.refused = Some(Instant::now());
                    let error = error::chain(err);
                    tracing::error!(
                        receiver,
                        error,
                        "the receiver refuses alerts, which are dropped"
                    );
                }
                Outcome::Refused
            }
            Err(err) => {
                self.is_failing = true;
                if !was_failing {
                    let error = error::chain(err);
                    tracing::warn!(receiver, error, "alerts not delivered: they are tried again");
                }
                Outcome::Failed
            }
        }
    }
}

fn unix_now() -> UnixTime {
    // a clock before 1970 is none
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime(Nanos::from(since).0)
}
