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
    /// At this many, nothing is accepted. At least 1.2 times `soft`, at most [`MAX_LIMIT`]. `None`:
    /// the larger of 1.25 times `soft` and `soft` + 16, or as many as there are descriptors for.
    pub hard: Option<usize>,
    /// Descriptors that connections must leave to the rest of the process. `None`: an eighth of
    /// RLIMIT_NOFILE, at least 16, at most 256. Of several listeners, the most that one asks for.
    pub fd_reserve: Option<usize>,
    /// Descriptors that one connection takes: 1, or 2 where each has one to a backend.
    pub fds_per_connection: usize,
}

impl Limits {
    /// Limits with everything derived from `soft`. Where they take the place of others, by
    /// [`Handle::set_limits`](crate::Handle::set_limits) say, a hard limit that was given before is
    /// given no more.
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
    /// RLIMIT_NOFILE, less the reserve and what other listeners of the process claim.
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
    /// Checks `limits` for a process that may open `nofile` descriptors (RLIMIT_NOFILE), and has no
    /// other listener.
    ///
    /// # Errors
    /// They cannot hold; the numbers are in the error.
    pub fn new(limits: Limits, nofile: usize) -> Result<Self, LimitError> {
        let room = Room { nofile, reserve: Reserve::of(limits.fd_reserve), others: 0 };
        Self::within(Asked::new(limits)?, room)
    }

    /// What is in force of `asked`, where there is room for it.
    pub(crate) fn within(asked: Asked, room: Room) -> Result<Self, LimitError> {
        let most = room.left() / asked.fds;
        if most < asked.least {
            let claims = asked.least.saturating_mul(asked.fds).saturating_add(room.others);
            return Err(LimitError::Descriptors {
                hard: asked.least,
                soft: (asked.bound == Bound::Soft).then_some(asked.soft),
                fds_per_connection: asked.fds,
                most,
                reserve: room.reserve.at(room.nofile),
                others: room.others,
                nofile: room.nofile,
                descriptors: room.reserve.nofile_for(claims),
            });
        }
        Ok(asked.at_most(most))
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

/// What limits ask for, whatever there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    soft: usize,
    /// The hard limit that it has to have.
    pub(crate) least: usize,
    /// The hard limit that it has where there is room for it.
    pub(crate) full: usize,
    bound: Bound,
    /// Descriptors of a connection.
    pub(crate) fds: usize,
}

impl Asked {
    /// # Errors
    /// They cannot hold, however many descriptors there are.
    pub(crate) fn new(limits: Limits) -> Result<Self, LimitError> {
        let Limits { soft, hard, fd_reserve: _, fds_per_connection: fds } = limits;
        if !(1..=MAX_LIMIT).contains(&soft) {
            return Err(LimitError::Soft { got: soft });
        }
        if fds == 0 {
            return Err(LimitError::FdsPerConnection);
        }
        let least = least_hard(soft);
        let (bound, least, full) = match hard {
            Some(got) if got < least => return Err(LimitError::Hard { got, soft, least }),
            Some(hard) => (Bound::Given, hard, hard),
            None => {
                let derived = (soft + soft.div_ceil(4)).max(soft + 16);
                (Bound::Soft, least, derived.min(MAX_LIMIT))
            }
        };
        if MAX_LIMIT < least {
            return Err(LimitError::TooHigh { hard: least, soft });
        }
        Ok(Self { soft, least, full, bound, fds })
    }

    /// With a hard limit of at most `most`, though not below 2. Where that is less than it has to
    /// have, the soft one is lower, too: the next connections are shed, and not left in the queue.
    pub(crate) fn at_most(self, most: usize) -> Bounds {
        let Self { soft, full, bound, .. } = self;
        if full <= most {
            return Bounds { soft, hard: full, bound };
        }
        let hard = most.max(2);
        Bounds { soft: soft.min(most_soft(hard)), hard, bound: Bound::Descriptors }
    }
}

/// The least hard limit for a soft one: 20 % above it, and at least one.
fn least_hard(soft: usize) -> usize {
    soft + soft.div_ceil(5)
}

/// The most that a soft limit can be for a hard one.
fn most_soft(hard: usize) -> usize {
    hard * 5 / 6
}

/// Descriptors that connections leave to the rest of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserve {
    given: usize,
    /// An eighth of RLIMIT_NOFILE, at least 16, at most 256, if that is more.
    is_derived: bool,
}

impl Reserve {
    pub(crate) fn of(fd_reserve: Option<usize>) -> Self {
        Self { given: fd_reserve.unwrap_or(0), is_derived: fd_reserve.is_none() }
    }

    /// The larger one.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { given: self.given.max(other.given), is_derived: self.is_derived || other.is_derived }
    }

    /// Where RLIMIT_NOFILE is `nofile`.
    pub(crate) fn at(self, nofile: usize) -> usize {
        let derived = if self.is_derived { (nofile / 8).clamp(16, 256) } else { 0 };
        self.given.max(derived)
    }

    /// The least RLIMIT_NOFILE that leaves `claims`.
    fn nofile_for(self, claims: usize) -> usize {
        let (mut nofile, mut next) = (0, claims.saturating_add(self.at(0)));
        // what is reserved may grow with it, by less than it does
        while nofile < next {
            (nofile, next) = (next, claims.saturating_add(self.at(next)));
        }
        nofile
    }
}

/// Where a listener has to find room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// RLIMIT_NOFILE.
    pub(crate) nofile: usize,
    pub(crate) reserve: Reserve,
    /// Descriptors that other listeners of the process claim.
    pub(crate) others: usize,
}

impl Room {
    /// Descriptors that nobody claims.
    pub(crate) fn left(&self) -> usize {
        let Self { nofile, reserve, others } = *self;
        nofile.saturating_sub(reserve.at(nofile)).saturating_sub(others)
    }
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
    /// Above [`MAX_LIMIT`].
    TooHigh {
        /// The hard limit that was given, or the least for the soft one.
        hard: usize,
        /// The soft limit.
        soft: usize,
    },
    /// More than the process has descriptors for.
    Descriptors {
        /// The hard limit that was given, or the least for the soft one.
        hard: usize,
        /// The soft limit, where that is what the hard one was taken from.
        soft: Option<usize>,
        /// Descriptors that one connection takes.
        fds_per_connection: usize,
        /// The most that it can be.
        most: usize,
        /// Descriptors that are left to the rest of the process: the most that one of its listeners
        /// asks for.
        reserve: usize,
        /// Descriptors that other listeners of the process may take.
        others: usize,
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
            Self::TooHigh { hard, soft } => write!(
                f,
                "hard limit is {hard}, expected at most {MAX_LIMIT} connections, for a soft limit \
                 of {soft}"
            ),
            Self::Descriptors {
                hard,
                soft,
                fds_per_connection,
                most,
                reserve,
                others,
                nofile,
                descriptors,
            } => {
                write!(f, "hard limit is {hard}")?;
                if let Some(soft) = soft {
                    write!(f, ", 20 % above the soft limit of {soft}")?;
                }
                // one that leaves a place to who is shed
                if *most < least_hard(1) {
                    f.write_str(", expected descriptors for it: ")?;
                } else {
                    write!(f, ", expected at most {most}: ")?;
                }
                if *fds_per_connection != 1 {
                    write!(f, "a connection takes {fds_per_connection} descriptors, ")?;
                }
                write!(f, "RLIMIT_NOFILE is {nofile}, of which {reserve} are reserved")?;
                if *others != 0 {
                    write!(f, " and {others} claimed by other listeners of this process")?;
                }
                write!(f, "; it would have to be {descriptors}")
            }
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
            Err("hard limit is 1200, 20 % above the soft limit of 1000, expected at most 896: \
                 RLIMIT_NOFILE is 1024, of which 128 are reserved; it would have to be 1371"),
        );
        for (nofile, hard) in [(16, Some(11)), (17, Some(11)), (16, None)] {
            let whence = hard.map_or(", 20 % above the soft limit of 9", |_| "");
            let message = format!(
                "hard limit is 11{whence}, expected descriptors for it: RLIMIT_NOFILE is {nofile}, \
                 of which 16 are reserved; it would have to be 27"
            );
            check(9, hard, nofile, Err(&message));
        }
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
