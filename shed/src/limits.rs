//! The two limits, and whether they can hold.
//!
//! Above the soft limit a connection is accepted and closed at once. At the hard limit nothing is
//! accepted: the last resort, which protects the process and shows as a full accept queue. So the
//! hard one stands well above the soft one, and below what the process has descriptors for.

use std::{error::Error, fmt};

/// The most that a limit can be: 2^21 - 1.
pub const MAX_LIMIT: usize = (1 << 21) - 1;

/// How many connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Above this many, connections are shed. 1 to [`MAX_LIMIT`].
    pub soft: usize,
    /// At this many, nothing is accepted. At least 1.2 times `soft`. `None`: the larger of 1.25
    /// times `soft` and `soft` + 16, or as many as there are descriptors for.
    pub hard: Option<usize>,
    /// Descriptors that connections must leave to the rest of the process. `None`: an eighth of
    /// RLIMIT_NOFILE, at least 16, at most 256.
    pub fd_reserve: Option<usize>,
    /// Descriptors that one connection takes: 1, or 2 where each has one to a backend.
    pub fds_per_connection: usize,
}

impl Limits {
    /// Limits with everything derived from `soft`.
    #[must_use]
    pub const fn soft(soft: usize) -> Self {
        Self { soft, hard: None, fd_reserve: None, fds_per_connection: 1 }
    }
}

/// What the hard limit was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It was given.
    Given,
    /// From the soft limit.
    Soft,
    /// RLIMIT_NOFILE, less the reserve.
    Descriptors,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "as given",
            Self::Soft => "from the soft limit",
            Self::Descriptors => "from RLIMIT_NOFILE",
        })
    }
}

/// Limits that hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    soft: usize,
    hard: usize,
    bound: Bound,
}

impl Bounds {
    /// Checks `limits` for a process that may open `nofile` descriptors (RLIMIT_NOFILE).
    ///
    /// # Errors
    /// They cannot hold; the numbers are in the error.
    pub fn new(limits: Limits, nofile: usize) -> Result<Self, LimitError> {
        let Limits { soft, hard, fd_reserve, fds_per_connection } = limits;
        if !(1..=MAX_LIMIT).contains(&soft) {
            return Err(LimitError::Soft { got: soft });
        }
        if fds_per_connection == 0 {
            return Err(LimitError::FdsPerConnection);
        }
        let least = least_hard(soft);
        if let Some(got) = hard.filter(|&hard| hard < least) {
            return Err(LimitError::Hard { got, soft, least });
        }
        let reserve = fd_reserve.unwrap_or_else(|| (nofile / 8).clamp(16, 256));
        let most = (nofile.saturating_sub(reserve) / fds_per_connection).min(MAX_LIMIT);
        let wanted = hard.unwrap_or(least);
        if most < wanted {
            let descriptors = wanted.saturating_mul(fds_per_connection).saturating_add(reserve);
            return Err(LimitError::Descriptors {
                hard: wanted,
                most,
                reserve,
                nofile,
                descriptors,
            });
        }
        let derived = soft.saturating_add(soft.div_ceil(4)).max(soft + 16);
        let (hard, bound) = match hard {
            Some(hard) => (hard, Bound::Given),
            None if most < derived => (most, Bound::Descriptors),
            None => (derived, Bound::Soft),
        };
        Ok(Self { soft, hard, bound })
    }

    /// Above this many, connections are shed.
    #[must_use]
    pub const fn soft(&self) -> usize {
        self.soft
    }

    /// At this many, nothing is accepted.
    #[must_use]
    pub const fn hard(&self) -> usize {
        self.hard
    }

    /// What the hard limit was taken from.
    #[must_use]
    pub const fn bound(&self) -> Bound {
        self.bound
    }

    /// After a pause, accepting goes on at this many: 8 or 2 % below the hard limit, whichever is
    /// less, though never below the soft one, where there is room for who is shed.
    #[must_use]
    pub fn resume(&self) -> usize {
        let distance = (self.hard / 50).max(8);
        self.hard.saturating_sub(distance).max(self.soft.min(self.hard - 1))
    }
}

/// The least hard limit for a soft one: 20 % above it, and at least one.
fn least_hard(soft: usize) -> usize {
    soft + soft.div_ceil(5)
}

/// Limits that cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// No soft limit.
    Soft {
        /// What was given.
        got: usize,
    },
    /// Too close to the soft limit, or below it.
    Hard {
        /// What was given.
        got: usize,
        /// The soft limit.
        soft: usize,
        /// The least hard limit for it.
        least: usize,
    },
    /// More than the process has descriptors for.
    Descriptors {
        /// The hard limit that was given, or the least for the soft one.
        hard: usize,
        /// The most that it can be.
        most: usize,
        /// Descriptors that are left to the rest of the process.
        reserve: usize,
        /// RLIMIT_NOFILE.
        nofile: usize,
        /// What RLIMIT_NOFILE would have to be.
        descriptors: usize,
    },
    /// A connection takes at least one.
    FdsPerConnection,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soft { got } => {
                write!(f, "soft limit is {got}, expected 1 to {MAX_LIMIT} connections")
            }
            Self::Hard { got, soft, least } => write!(
                f,
                "hard limit is {got}, expected at least {least}: 20 % above the soft limit of \
                 {soft}"
            ),
            Self::Descriptors { hard, most, reserve, nofile, descriptors } => write!(
                f,
                "hard limit is {hard}, expected at most {most}: RLIMIT_NOFILE is {nofile}, of \
                 which {reserve} are reserved; it would have to be {descriptors}"
            ),
            Self::FdsPerConnection => {
                f.write_str("descriptors per connection is 0, expected at least 1")
            }
        }
    }
}

impl Error for LimitError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        soft: usize,
        hard: Option<usize>,
        nofile: usize,
        expected: Result<(usize, Bound), &str>,
    ) {
        let limits = Limits { hard, ..Limits::soft(soft) };
        let got = Bounds::new(limits, nofile)
            .map(|bounds| (bounds.hard(), bounds.bound()))
            .map_err(|err| err.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "soft {soft}, hard {hard:?}, {nofile}");
    }

    #[test]
    fn hard_is_given_or_derived_or_refused() {
        check(1_000, None, 20_000, Ok((1_250, Bound::Soft)));
        check(10, None, 20_000, Ok((26, Bound::Soft)));
        check(1_000, None, 1_456, Ok((1_250, Bound::Soft)));
        check(1_000, None, 1_400, Ok((1_225, Bound::Descriptors)));
        check(1_000, Some(1_200), 20_000, Ok((1_200, Bound::Given)));
        check(
            1_000,
            Some(1_199),
            20_000,
            Err("hard limit is 1199, expected at least 1200: 20 % above the soft limit of 1000"),
        );
        check(
            1,
            Some(1),
            20_000,
            Err("hard limit is 1, expected at least 2: 20 % above the soft limit of 1"),
        );
        check(
            1_000,
            Some(20_000),
            20_000,
            Err(
                "hard limit is 20000, expected at most 19744: RLIMIT_NOFILE is 20000, of which 256 \
                 are reserved; it would have to be 20256",
            ),
        );
        check(
            1_000,
            None,
            1_024,
            Err(
                "hard limit is 1200, expected at most 896: RLIMIT_NOFILE is 1024, of which 128 are \
                 reserved; it would have to be 1328",
            ),
        );
        check(0, None, 20_000, Err("soft limit is 0, expected 1 to 2097151 connections"));
    }

    #[test]
    fn resumes_below_hard_and_not_below_soft() {
        let resume = |soft, hard| {
            Bounds::new(Limits { hard: Some(hard), ..Limits::soft(soft) }, 1_000_000)
                .expect("they hold")
                .resume()
        };
        assert_eq!(resume(10_000, 12_500), 12_250);
        assert_eq!(resume(16, 32), 24);
        assert_eq!(resume(16, 20), 16);
        assert_eq!(resume(1, 2), 1);
    }
}
