//! One deadline over several calls.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, Instant},
};

use tokio::time;

/// A deadline that travels with a connection, over all the calls that are made for it: each may
/// take what is its own, and no more than is left.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn serve(conn: &mut backlogd_shed::ShedStream) -> std::io::Result<()> {
/// let budget = conn.begin_budget(Duration::from_millis(500));
/// let backend = tokio::net::TcpStream::connect("127.0.0.1:5432");
/// let backend = budget.run(Duration::from_secs(1), backend).await??; // at most 500 ms
/// # drop(backend);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    end: Option<Instant>,
}

impl Budget {
    /// Without an end.
    pub const ENDLESS: Self = Self { end: None };

    /// Ends after `time`; never, where that is later than can be said.
    #[must_use]
    pub fn of(time: Duration) -> Self {
        Self { end: Instant::now().checked_add(time) }
    }

    /// Ends at `end`.
    #[must_use]
    pub fn until(end: Instant) -> Self {
        Self { end: Some(end) }
    }

    /// Ends with this one, and after `time` at the latest.
    #[must_use]
    pub fn within(self, time: Duration) -> Self {
        self.min(Self::of(time))
    }

    /// The one that ends first.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { end: [self.end, other.end].into_iter().flatten().min() }
    }

    /// When it ends; `None`: never.
    #[must_use]
    pub fn end(&self) -> Option<Instant> {
        self.end
    }

    /// What a call may take at `now`: `own`, and no more than is left.
    #[must_use]
    pub fn allows_at(&self, now: Instant, own: Duration) -> Duration {
        self.end.map_or(own, |end| own.min(end.saturating_duration_since(now)))
    }

    /// What a call that begins at this moment may take: `own`, and no more than is left.
    #[must_use]
    pub fn allows(&self, own: Duration) -> Duration {
        self.allows_at(Instant::now(), own)
    }

    /// The result of `call`, if it is there in time: within `own`, and before the budget ends.
    ///
    /// # Errors
    /// It is not; `call` is dropped. Where nothing is left it is polled once.
    pub async fn run<F: IntoFuture>(&self, own: Duration, call: F) -> Result<F::Output, Spent> {
        let allowed = self.allows(own);
        time::timeout(allowed, call).await.map_err(|_| Spent { allowed, own })
    }
}

/// A call took longer than it might.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spent {
    /// What it might take, in the end.
    pub allowed: Duration,
    /// What it might take by itself.
    pub own: Duration,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allowed, own } = self;
        if allowed < own {
            write!(f, "the budget is spent: {allowed:?} were left, expected {own:?}")
        } else {
            write!(f, "took longer than {own:?}")
        }
    }
}

impl Error for Spent {}

impl From<Spent> for io::Error {
    fn from(spent: Spent) -> Self {
        Self::new(io::ErrorKind::TimedOut, spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_the_less_of_its_own_and_what_is_left() {
        let now = Instant::now();
        let millis = Duration::from_millis;
        let check = |budget: Budget, own, expected| {
            assert_eq!(budget.allows_at(now, millis(own)), millis(expected), "{budget:?}");
        };
        check(Budget::ENDLESS, 300, 300);
        check(Budget::until(now + millis(500)), 300, 300);
        check(Budget::until(now + millis(200)), 300, 200);
        check(Budget::until(now), 300, 0);
        check(Budget::until(now.checked_sub(millis(100)).expect("booted before")), 300, 0);
        check(Budget::until(now + millis(900)).min(Budget::until(now + millis(50))), 300, 50);
        assert_eq!(Budget::of(Duration::MAX), Budget::ENDLESS);
        assert!(Budget::of(millis(10)).within(millis(1_000)).end() < Some(now + millis(900)));
    }
}
