//! A limit that follows what the server can do. Off unless
//! [asked for](crate::Builder::adaptive), and never above the soft limit that was given.
//!
//! Two ways, for two bottlenecks:
//! - [`Adaptive::Codel`] watches how long connections wait in the accept queue. It is for a server
//!   whose accept loop is late. While even the shortest wait stays above the target, it sheds, more
//!   and more often ([`Reason::Codel`](crate::Reason::Codel)).
//! - [`Adaptive::Gradient`] watches how long requests take, which the server says by
//!   [`Permit::sample`](crate::Permit::sample) or, where it has not got the connections,
//!   [`Handle::sample`](crate::Handle::sample). While they take longer than they use to, it lowers
//!   the soft limit. Whoever gives no samples has the limit that was given.
//!
//! ```no_run
//! use std::time::Instant;
//! use backlogd_shed::{ShedListener, adaptive::Adaptive};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let mut listener =
//!     ShedListener::bind("[::]:8080").soft(10_000).adaptive(Adaptive::gradient()).build()?;
//! let handle = listener.handle();
//! loop {
//!     let mut conn = listener.accept().await?;
//!     let begun = Instant::now();
//!     // … one request and its answer
//!     conn.permit().sample(begun.elapsed());
//!     assert!(handle.stats().adaptive_limit.is_some_and(|limit| limit <= 10_000));
//! }
//! # }
//! ```

use std::{
    error::Error,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

mod codel;
mod gradient;
#[cfg(test)]
mod tests;

pub(crate) use codel::Codel;
use gradient::{Gradient, Window};

use crate::gate::Gate;

/// How the limit follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adaptive {
    /// By the wait in the accept queue.
    Codel {
        /// A wait that is fine. 1 ms to 1 s; the kernel counts it in ticks of 1 to 10 ms.
        target: Duration,
        /// For so long even the shortest wait has to be above it. 10 ms to 10 s, at least `target`.
        interval: Duration,
    },
    /// By what requests take (Gradient2): while the mean of a window is above 1.5 times the mean of
    /// the last ten minutes, the limit falls, by at most 10 % a second; else it rises, by at most
    /// 2 % a second. A window with less than 50 samples changes nothing, and after ten windows
    /// without any the limit is the one that was given. What lasts longer than some ten minutes is
    /// taken for usual, and so is how a server begins.
    Gradient {
        /// It does not fall below. 1 to the soft limit; `None`: 64, or a tenth of the soft limit if
        /// that is more.
        floor: Option<usize>,
        /// How often it is set. 100 ms to 10 s.
        window: Duration,
    },
}

impl Adaptive {
    /// By the wait in the accept queue: 20 ms, for 100 ms.
    #[must_use]
    pub const fn codel() -> Self {
        Self::Codel { target: Duration::from_millis(20), interval: Duration::from_millis(100) }
    }

    /// By what requests take, once a second.
    #[must_use]
    pub const fn gradient() -> Self {
        Self::Gradient { floor: None, window: Duration::from_secs(1) }
    }

    /// Checks it for a soft limit of `soft`.
    ///
    /// # Errors
    /// It cannot hold; the numbers are in the error.
    pub fn check(&self, soft: usize) -> Result<(), AdaptiveError> {
        let milli = Duration::from_millis;
        let check = |what, got, least, most| {
            if (least..=most).contains(&got) {
                return Ok(());
            }
            Err(AdaptiveError::Time { what, got, least, most })
        };
        match *self {
            Self::Codel { target, interval } => {
                check("target", target, milli(1), milli(1_000))?;
                check("interval", interval, target.max(milli(10)), milli(10_000))
            }
            Self::Gradient { floor, window } => {
                if let Some(got) = floor.filter(|floor| !(1..=soft).contains(floor)) {
                    return Err(AdaptiveError::Floor { got, soft });
                }
                check("window", window, milli(100), milli(10_000))
            }
        }
    }
}

/// An adaptive limit that cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdaptiveError {
    /// Too short or too long.
    Time {
        /// Which one.
        what: &'static str,
        /// What was given.
        got: Duration,
        /// The least.
        least: Duration,
        /// The most.
        most: Duration,
    },
    /// Nobody could be served, or it is above the soft limit.
    Floor {
        /// What was given.
        got: usize,
        /// The soft limit.
        soft: usize,
    },
}

impl fmt::Display for AdaptiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { what, got, least, most } => {
                write!(f, "adaptive: {what} is {got:?}, expected {least:?} to {most:?}")
            }
            Self::Floor { got, soft } => {
                write!(f, "adaptive: floor is {got}, expected 1 to the soft limit of {soft}")
            }
        }
    }
}

impl Error for AdaptiveError {}

/// What a gradient has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdaptiveStats {
    /// The soft limit in force.
    pub limit: usize,
    /// Thousandths by which the last window would have it: 500 to 1,000.
    pub gradient: u64,
    /// What a request takes usually; `None` before the first window with enough samples.
    pub usual: Option<Duration>,
}

/// The adaptive limit of one listener, shared by its accept loop and its connections.
#[derive(Debug)]
pub(crate) struct Controller {
    config: Adaptive,
    since: Instant,
    /// Samples since the last window, and the sum of their nanoseconds.
    n: AtomicU64,
    sum: AtomicU64,
    /// When the window ends: nanoseconds from `since`.
    ends: AtomicU64,
    gradient: Mutex<Gradient>,
}

impl Controller {
    pub(crate) fn new(config: Adaptive, soft: usize) -> Self {
        Self {
            config,
            since: Instant::now(),
            n: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            ends: AtomicU64::new(match config {
                Adaptive::Codel { .. } => u64::MAX,
                Adaptive::Gradient { window, .. } => nanos(window),
            }),
            gradient: Mutex::new(Gradient::new(soft)),
        }
    }

    /// The judge of one accept queue, where waits are watched.
    pub(crate) fn codel(&self) -> Option<Codel> {
        match self.config {
            Adaptive::Codel { target, interval } => Some(Codel::new(target, interval)),
            Adaptive::Gradient { .. } => None,
        }
    }

    /// A request took so long.
    pub(crate) fn sample(&self, took: Duration) {
        self.n.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos(took), Ordering::Relaxed);
    }

    /// Since it began.
    pub(crate) fn now(&self) -> Duration {
        self.since.elapsed()
    }

    /// Sets the limit of `gate`, if it is time to.
    pub(crate) fn tick(&self, gate: &Gate) {
        let Adaptive::Gradient { floor, window } = self.config else { return };
        let (now, ends) = (nanos(self.now()), self.ends.load(Ordering::Relaxed));
        if now < ends {
            return;
        }
        let next = now + nanos(window);
        let won = self.ends.compare_exchange(ends, next, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_err() {
            return; // another member of the listener does it
        }
        let window = Window {
            n: self.n.swap(0, Ordering::Relaxed),
            sum: self.sum.swap(0, Ordering::Relaxed),
            in_use: gate.soft_taken(),
            lasted: window + Duration::from_nanos(now - ends),
        };
        let mut gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        gate.adapt(gradient.next(&window, floor, gate.soft_limit()));
    }

    pub(crate) fn stats(&self, gate: &Gate) -> AdaptiveStats {
        let gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        AdaptiveStats {
            limit: gate.soft_in_force(),
            gradient: gradient.last(),
            usual: gradient.usual(),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
