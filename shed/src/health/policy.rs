//! When a listener is ready. Pure: load and time are passed in.

use std::{error::Error, fmt, time::Duration};

use crate::range::OutOfRange;

/// No answer of the accept loop for longer is none.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// Without descriptors for longer, nobody is served.
const BACKOFF: Duration = Duration::from_secs(1);

/// At which limit readiness fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailAt {
    /// At none: more connections are shed, which is seen elsewhere.
    Never,
    /// At the soft limit.
    Soft,
    /// At the hard limit.
    Hard,
}

/// When readiness fails, and when it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// At which limit. Default: the hard one.
    pub fail_at: FailAt,
    /// After so long, during which the limit was reached and then not left by 10 %. Default: 2 s;
    /// 0: at once.
    pub fail_after: Duration,
    /// It comes back after so long below 90 % of the soft limit. Default: 5 s.
    pub recover_after: Duration,
    /// How often the server asks itself whether it accepts. Default: 1 s; 10 ms to 4 s, within the
    /// 5 s after which no answer is a no; `None`: it does not.
    pub probe: Option<Duration>,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            fail_at: FailAt::Hard,
            fail_after: Duration::from_secs(2),
            recover_after: Duration::from_secs(5),
            probe: Some(Duration::from_secs(1)),
        }
    }
}

impl HealthConfig {
    /// # Errors
    /// It cannot hold.
    pub(super) fn check(&self) -> Result<(), OutOfRange> {
        let Some(probe) = self.probe else { return Ok(()) };
        // rounded up: what is above a bound is out of it
        let us = u64::try_from(probe.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
        OutOfRange::check("probe of health checks in us", us, 10_000, 4_000_000)
    }
}

/// Why a listener is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unready {
    /// It is about to end.
    Draining,
    /// Its limit was reached, or it is not long enough below it.
    Overloaded,
    /// There was no descriptor for connections for more than a second.
    Backoff,
    /// Its accept loop did not answer for 5 s.
    Stale,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::Backoff => "no descriptors",
            Self::Stale => "the accept loop does not answer",
        })
    }
}

impl Error for Unready {}

/// What a listener is like at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) open: usize,
    pub(super) soft: usize,
    /// Places of the hard limit that are taken.
    pub(super) taken: usize,
    pub(super) hard: usize,
    pub(super) is_draining: bool,
    pub(super) is_backing_off: bool,
    /// How long all were refused for want of descriptors.
    pub(super) lacking: Duration,
    /// How long the accept loop did not answer.
    pub(super) silent: Duration,
}

/// The state of readiness.
#[derive(Debug)]
pub(super) struct Readiness {
    fail_at: FailAt,
    fail_after: Duration,
    recover_after: Duration,
    pressed_since: Option<Duration>,
    backing_off_since: Option<Duration>,
    /// Why it is not ready, and since when nothing speaks for that.
    failed: Option<Unready>,
    calm_since: Option<Duration>,
}

impl Readiness {
    pub(super) fn new(config: &HealthConfig) -> Self {
        Self {
            fail_at: config.fail_at,
            fail_after: config.fail_after,
            recover_after: config.recover_after,
            pressed_since: None,
            backing_off_since: None,
            failed: None,
            calm_since: None,
        }
    }

    /// The state at `now`, which never goes back.
    pub(super) fn next(&mut self, seen: &Seen, now: Duration) -> Result<(), Unready> {
        match self.failing(seen, now) {
            Some(why) => {
                self.failed = Some(why);
                self.calm_since = None;
            }
            None if self.failed.is_some() && is_below(seen.open, seen.soft) => {
                let since = *self.calm_since.get_or_insert(now);
                if self.recover_after <= now - since {
                    self.failed = None;
                }
            }
            None => self.calm_since = None,
        }
        if seen.is_draining {
            return Err(Unready::Draining);
        }
        self.failed.map_or(Ok(()), Err)
    }

    /// What speaks against it at present.
    fn failing(&mut self, seen: &Seen, now: Duration) -> Option<Unready> {
        let pressed = self.is_pressed(seen);
        let pressed = lasts(&mut self.pressed_since, pressed, now);
        let backing_off = lasts(&mut self.backing_off_since, seen.is_backing_off, now);
        if SILENCE < seen.silent {
            Some(Unready::Stale)
        } else if BACKOFF < backing_off.unwrap_or_default().max(seen.lacking) {
            Some(Unready::Backoff)
        } else if pressed.is_some_and(|lasted| self.fail_after <= lasted) {
            Some(Unready::Overloaded)
        } else {
            None
        }
    }

    /// Whether the limit is reached, or was and is not left by far.
    fn is_pressed(&self, seen: &Seen) -> bool {
        let (n, limit) = match self.fail_at {
            FailAt::Never => return false,
            FailAt::Soft => (seen.open, seen.soft),
            FailAt::Hard => (seen.taken, seen.hard),
        };
        limit <= n || (self.pressed_since.is_some() && !is_below(n, limit))
    }
}

/// Whether there are no descriptors, by what was refused for want of them. Whoever is shed in the
/// place of a spare descriptor lets the accept loop go on, so that it does not back off.
#[derive(Debug, Default)]
pub(super) struct Lack {
    refused: u64,
    served: u64,
    /// When one was refused first and last, with nothing that speaks against it in between.
    span: Option<(Duration, Duration)>,
}

impl Lack {
    /// How long it lasted, from the first that was refused to the last one, where by `now` as many
    /// were `refused` in all, and as many got a descriptor.
    pub(super) fn next(&mut self, refused: u64, served: u64, now: Duration) -> Duration {
        if self.served < served {
            self.span = None;
        } else if self.refused < refused {
            self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        } else if self.span.is_some_and(|(_, last)| SILENCE < now - last) {
            // nobody asked for one: it may be over
            self.span = None;
        }
        (self.refused, self.served) = (refused, served);
        self.span.map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

/// Below 90 %.
fn is_below(n: usize, limit: usize) -> bool {
    n * 10 < limit * 9
}

/// How long something is so; `None`: it is not.
fn lasts(since: &mut Option<Duration>, is_so: bool, now: Duration) -> Option<Duration> {
    if !is_so {
        *since = None;
        return None;
    }
    Some(now - *since.get_or_insert(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections inside at each 250 ms, `noise` more or less in turn; gives the changes of
    /// readiness, in milliseconds.
    fn play(fail_at: FailAt, load: &[(u64, usize)], noise: usize) -> Vec<(u64, bool)> {
        let mut readiness = Readiness::new(&HealthConfig { fail_at, ..HealthConfig::default() });
        let (mut changes, mut was, mut at) = (Vec::new(), true, 0);
        for &(millis, n) in load {
            for turn in 0..millis / 250 {
                let n = if turn % 2 == 0 { n + noise } else { n.saturating_sub(noise) };
                let seen = Seen {
                    open: n.min(100),
                    soft: 100,
                    taken: n.min(125),
                    hard: 125,
                    is_draining: false,
                    is_backing_off: false,
                    lacking: Duration::ZERO,
                    silent: Duration::ZERO,
                };
                let is = readiness.next(&seen, Duration::from_millis(at)).is_ok();
                if is != was {
                    changes.push((at, is));
                    was = is;
                }
                at += 250;
            }
        }
        changes
    }

    /// Calm, soft, calm, hard, at the edge of recovery, calm.
    const LOAD: [(u64, usize); 6] =
        [(5_000, 50), (10_000, 105), (10_000, 50), (10_000, 130), (20_000, 95), (10_000, 80)];

    #[test]
    fn fails_at_its_limit_and_comes_back_when_it_is_calm() {
        assert_eq!(play(FailAt::Never, &LOAD, 0), []);
        assert_eq!(
            play(FailAt::Soft, &LOAD, 0),
            [(7_000, false), (20_000, true), (27_000, false), (60_000, true)]
        );
        assert_eq!(play(FailAt::Hard, &LOAD, 0), [(27_000, false), (60_000, true)]);
    }

    #[test]
    fn one_more_or_less_changes_nothing() {
        for fail_at in [FailAt::Never, FailAt::Soft, FailAt::Hard] {
            assert_eq!(play(fail_at, &LOAD, 1), play(fail_at, &LOAD, 0), "{fail_at:?}");
        }
        for (fail_at, limit) in [(FailAt::Soft, 100), (FailAt::Hard, 125)] {
            let at_limit = [(1_000, 50), (30_000, limit), (1_000, limit - 1)];
            assert_eq!(play(fail_at, &at_limit, 1), [(3_000, false)], "{fail_at:?}");
            // at the edge of recovery: not long enough below it
            let at_edge = [(4_000, limit), (60_000, 90)];
            assert_eq!(play(fail_at, &at_edge, 1), [(2_000, false)], "{fail_at:?}");
        }
    }

    #[test]
    fn a_short_peak_is_none() {
        assert_eq!(play(FailAt::Soft, &[(1_750, 100), (10_000, 89)], 0), []);
    }

    #[test]
    fn drain_silence_and_backoff_fail_whatever_the_load() {
        let mut readiness = Readiness::new(&HealthConfig::default());
        let milli = Duration::from_millis;
        let calm = Seen {
            open: 0,
            soft: 100,
            taken: 0,
            hard: 125,
            is_draining: false,
            is_backing_off: false,
            lacking: Duration::ZERO,
            silent: SILENCE,
        };
        assert_eq!(readiness.next(&calm, milli(0)), Ok(()));
        let draining = Seen { is_draining: true, ..calm };
        assert_eq!(readiness.next(&draining, milli(1)), Err(Unready::Draining));
        assert_eq!(readiness.next(&calm, milli(2)), Ok(()), "it was taken back");
        let silent = Seen { silent: SILENCE + milli(1), ..calm };
        assert_eq!(readiness.next(&silent, milli(3)), Err(Unready::Stale));
        assert_eq!(readiness.next(&calm, milli(4)), Err(Unready::Stale));
        assert_eq!(readiness.next(&calm, milli(5_003)), Err(Unready::Stale));
        assert_eq!(readiness.next(&calm, milli(5_004)), Ok(()));
        let backing_off = Seen { is_backing_off: true, ..calm };
        assert_eq!(readiness.next(&backing_off, milli(6_000)), Ok(()));
        assert_eq!(readiness.next(&backing_off, milli(7_000)), Ok(()));
        assert_eq!(readiness.next(&backing_off, milli(7_001)), Err(Unready::Backoff));
        assert_eq!(readiness.next(&calm, milli(7_002)), Err(Unready::Backoff));
        assert_eq!(readiness.next(&calm, milli(12_002)), Ok(()));
        let lacking = |millis| Seen { lacking: milli(millis), ..calm };
        assert_eq!(readiness.next(&lacking(1_000), milli(13_000)), Ok(()));
        assert_eq!(readiness.next(&lacking(1_001), milli(13_001)), Err(Unready::Backoff));
    }

    #[test]
    fn a_lack_lasts_from_the_first_refusal_to_the_last_with_nobody_served_in_between() {
        let mut lack = Lack::default();
        // milliseconds, refused, served, and how long
        let looks = [
            (0, 0, 7, 0),
            (100, 1, 7, 0),
            (4_000, 1, 7, 0),
            (4_100, 3, 7, 4_000),
            (9_100, 3, 7, 4_000),
            (9_101, 3, 7, 0),
            (9_200, 4, 7, 0),
            (9_300, 5, 7, 100),
            (9_400, 6, 8, 0),
            (9_500, 7, 8, 0),
            (9_600, 8, 8, 100),
        ];
        for (millis, refused, served, expected) in looks {
            let lasted = lack.next(refused, served, Duration::from_millis(millis));
            assert_eq!(lasted.as_millis(), expected, "at {millis} ms");
        }
    }
}
