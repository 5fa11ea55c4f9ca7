//! How long a connection may take, and for what.
//!
//! One [wheel] per listener looks at its connections; reads and writes only note that they happened
//! ([`cell`]). What is judged when is pure ([`plan`]), so is the time that counts ([`clock`]), and
//! one task turns the wheel ([`ticker`]).

pub(crate) mod cell;
mod clock;
mod plan;
pub(crate) mod ticker;
pub(crate) mod wheel;

use std::{error::Error, fmt, time::Duration};

/// What a connection took too long for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deadline {
    /// Its first byte.
    FirstByte,
    /// The handshake before its first request.
    Handshake,
    /// The header of a request.
    Header,
    /// Anything at all: nothing moved.
    Idle,
    /// Acknowledging what was sent to it.
    WriteStall,
    /// Its bytes: they came or went too slowly.
    MinRate,
    /// All of it.
    Lifetime,
    /// The end of its second direction, after the first one ended. No listener watches it: who
    /// passes connections on does, and [says so](crate::Permit::ends_by_deadline).
    HalfClose,
}

impl Deadline {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::FirstByte,
        Self::Handshake,
        Self::Header,
        Self::Idle,
        Self::WriteStall,
        Self::MinRate,
        Self::Lifetime,
        Self::HalfClose,
    ];

    /// The value of the label `deadline`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Handshake => "handshake",
            Self::Header => "header",
            Self::Idle => "idle",
            Self::WriteStall => "write_stall",
            Self::MinRate => "min_rate",
            Self::Lifetime => "lifetime",
            Self::HalfClose => "half_close",
        }
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long connections may take. `None`: for ever, which is the default of each.
///
/// A connection whose deadline passed is ended within the next tick of 100 ms: its next read or
/// write fails with [`io::ErrorKind::TimedOut`](std::io::ErrorKind::TimedOut) and a [`TimedOut`],
/// and it counts as closed by [`Cause::Deadline`](crate::Cause::Deadline). That is final: what was
/// not written is lost. Who got nothing from us, did not end its handshake, or did not take what it
/// got, is reset; everybody else gets an end.
///
/// All but its lifetime begin when a connection is given to whoever serves it: when it is admitted
/// or, where it has a PROXY header, which has a [deadline](crate::ProxyProtocol::deadline) of its
/// own, when that came; and where a thread accepts, when it is taken from there.
///
/// Where the process stood still, half a second of that counts at most: what its peers sent
/// meanwhile waits to be read.
///
/// Unit: each a duration from 100 ms to 7 days, in steps of 100 ms.
///
/// ```
/// use std::time::Duration;
/// use backlogd_shed::Deadlines;
///
/// let deadlines = Deadlines {
///     first_byte: Some(Duration::from_secs(3)),
///     write_stall: Some(Duration::from_secs(30)),
///     ..Deadlines::default()
/// };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// Until its first byte.
    pub first_byte: Option<Duration>,
    /// Until [`handshake_done`](crate::ShedStream::handshake_done), which whoever serves has to
    /// call; a `TlsListener` does it by itself.
    pub handshake: Option<Duration>,
    /// From its begin or the end of its handshake, and for later requests from their first byte,
    /// until [`header_done`](crate::ShedStream::header_done), which whoever serves has to call. Who
    /// cannot, since hyper, tonic or whoever takes a stream reads by itself, leaves it off: it
    /// would end connections in which all is well. hyper's `header_read_timeout` is for that. For
    /// `axum::serve` it is off whatever is said.
    pub header: Option<Duration>,
    /// Since a byte was last read, written, or, as far as that is seen, acknowledged. The time
    /// that whoever serves needs for an answer counts, too.
    pub idle: Option<Duration>,
    /// Since its peer last acknowledged a byte, while there are some to acknowledge. It is looked
    /// at four times within. Where the kernel ends it first, ETIMEDOUT counts as this.
    ///
    /// TCP_USER_TIMEOUT is left alone. It would also end a peer that reads all the time, but
    /// slowly: for the kernel, a window stays shut until all of the next segment fits into it,
    /// whatever is acknowledged meanwhile (`tcp_ack_probe`, net/ipv4/tcp_input.c).
    pub write_stall: Option<Duration>,
    /// The least that has to be read and written, together. Between two requests it does not count,
    /// which [`request_done`](crate::ShedStream::request_done) tells. Who cannot call that leaves
    /// it off, as [`header`](Self::header): it would end connections that are kept alive.
    pub min_rate: Option<MinRate>,
    /// From its admission to its end, the wait for a PROXY header included, which it does not cut
    /// short.
    pub lifetime: Option<Duration>,
}

/// The least that a connection has to move, but between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes per second, both directions together; at least 1.
    pub bytes_per_second: u32,
    /// The time over which they are averaged, again and again; 10 s say.
    pub over: Duration,
}

impl Deadlines {
    pub(crate) fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// How long it may take for what `deadline` says.
    #[must_use]
    pub fn of(&self, deadline: Deadline) -> Option<Duration> {
        match deadline {
            Deadline::FirstByte => self.first_byte,
            Deadline::Handshake => self.handshake,
            Deadline::Header => self.header,
            Deadline::Idle => self.idle,
            Deadline::WriteStall => self.write_stall,
            Deadline::MinRate => self.min_rate.map(|rate| rate.over),
            Deadline::Lifetime => self.lifetime,
            Deadline::HalfClose => None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), DeadlineError> {
        if self.min_rate.is_some_and(|rate| rate.bytes_per_second == 0) {
            return Err(DeadlineError::Rate);
        }
        for deadline in Deadline::ALL {
            match self.of(deadline) {
                Some(got) if !(SHORTEST..=LONGEST).contains(&got) => {
                    return Err(DeadlineError::Time { deadline, got });
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

const SHORTEST: Duration = plan::TICK;
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Deadlines that cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadlineError {
    /// Too short or too long.
    Time {
        /// Which one.
        deadline: Deadline,
        /// What was given.
        got: Duration,
    },
    /// A rate of nothing.
    Rate,
}

impl fmt::Display for DeadlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { deadline, got } => {
                write!(f, "deadline {deadline} is {got:?}, expected 100ms to 7 days")
            }
            Self::Rate => f.write_str("min_rate is 0 bytes per second, expected at least 1"),
        }
    }
}

impl Error for DeadlineError {}

/// Why a read or a write failed: the source of its [`io::Error`](std::io::Error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimedOut {
    /// What it took too long for.
    pub deadline: Deadline,
    /// How long it might have taken.
    pub allowed: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection passed its deadline {} of {:?}", self.deadline, self.allowed)
    }
}

impl Error for TimedOut {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_each_is_its_number() {
        for (place, deadline) in Deadline::ALL.into_iter().enumerate() {
            assert_eq!(deadline as usize, place, "{deadline}");
        }
    }

    #[track_caller]
    fn check(deadlines: Deadlines, expected: &str) {
        let got = deadlines.check().err().map(|err| err.to_string()).unwrap_or_default();
        assert_eq!(got, expected, "{deadlines:?}");
    }

    #[test]
    fn what_cannot_hold_is_named() {
        let off = Deadlines::default();
        let millis = |n| Some(Duration::from_millis(n));
        let rate = |bytes_per_second, over| {
            Some(MinRate { bytes_per_second, over: Duration::from_millis(over) })
        };
        check(off, "");
        check(Deadlines { idle: millis(100), lifetime: millis(604_800_000), ..off }, "");
        check(
            Deadlines { idle: millis(99), ..off },
            "deadline idle is 99ms, expected 100ms to 7 days",
        );
        check(
            Deadlines { lifetime: millis(604_800_001), ..off },
            "deadline lifetime is 604800.001s, expected 100ms to 7 days",
        );
        check(
            Deadlines { min_rate: rate(0, 1_000), ..off },
            "min_rate is 0 bytes per second, expected at least 1",
        );
        check(
            Deadlines { min_rate: rate(1, 0), ..off },
            "deadline min_rate is 0ns, expected 100ms to 7 days",
        );
    }
}
