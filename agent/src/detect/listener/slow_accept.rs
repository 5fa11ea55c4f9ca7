//! Accept keeps up, and late: connections wait for it. The queue need not be full.

use super::At;
use crate::{
    detect::{
        MIN_ACCEPTS, SLOW_ACCEPT,
        command::ACCEPT_FASTER,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
        shell::noted,
    },
    histogram::Histogram,
    input::{Absent, Known},
    time::{Monotonic, Nanos},
};

/// Minutes that are remembered.
const MINUTES: usize = 5;
/// In so many of them it must be slow: a pause is over sooner.
const MIN_SLOW_MINUTES: usize = 3;
/// The share of waits that may be longer than [`SLOW_ACCEPT`] while accept is fast.
const BURST_SHARE: f64 = 0.01;

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "SlowAccept",
        summary: "Connections wait long for accept",
        why: "Each client waits that much longer for its first byte, and the longer the queue, the \
              nearer is its limit.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "seconds",
                default: 0.5,
                range: Range::Of(0.001, 3_600.0),
                help: "A wait that is too long",
            },
            Threshold {
                name: "share",
                default: 0.1,
                range: Range::SHARE,
                help: "Share of the connections of five minutes, and of three of them, that wait longer",
            },
        ],
        inhibited_by: &["ListenerStalled", "AcceptErrors", "AcceptQueueOverflow"],
    },
    judge,
};

/// The place of `seconds`.
pub(super) const SECONDS: usize = 0;

/// How long connections waited, minute by minute.
#[derive(Default)]
pub(super) struct Waits {
    /// When the next minute ends.
    ends: Monotonic,
    totals: Option<[u64; 3]>,
    /// The newest first.
    minutes: [Counts; MINUTES],
    /// What is left of those before, of which each minute takes a sixtieth.
    hour: [f32; 2],
}

/// Accepts, those after more than [`SLOW_ACCEPT`], and those after more than is configured.
type Counts = [u32; 3];

impl Waits {
    /// Takes in what has been counted so far.
    pub(super) fn see(&mut self, at: Monotonic, waits: Known<&Histogram>, too_long: f64) {
        let Ok(waits) = waits else { return *self = Self::default() };
        if at < self.ends {
            return;
        }
        self.ends = at + minutes(1);
        let too_long = Nanos::from_seconds(too_long).unwrap_or(Nanos(u64::MAX));
        let totals = [waits.count(), waits.longer_than(SLOW_ACCEPT), waits.longer_than(too_long)];
        let Some(before) = self.totals.replace(totals) else { return };
        self.minutes.rotate_right(1);
        self.minutes[0] = std::array::from_fn(|i| {
            u32::try_from(totals[i].saturating_sub(before[i])).unwrap_or(u32::MAX)
        });
        for (hour, n) in self.hour.iter_mut().zip(self.minutes[0]) {
            *hour = *hour * (59.0 / 60.0) + n as f32;
        }
    }

    /// Whether accept is fast, so that what overflows is a burst. `None`: too few accepts to tell.
    pub(super) fn is_fast(&self) -> Option<bool> {
        let [accepts, slow, _] = self.recent();
        if MIN_ACCEPTS <= accepts {
            return Some(slow as f64 <= BURST_SHARE * accepts as f64);
        }
        let [accepts, slow] = self.hour.map(f64::from);
        (MIN_ACCEPTS as f64 <= accepts).then_some(slow <= BURST_SHARE * accepts)
    }

    /// The same, by all that was accepted where the minutes do not tell.
    pub(super) fn keeps_up(&self, all: Known<&Histogram>) -> Option<bool> {
        self.is_fast().or_else(|| {
            let all = all.ok().filter(|all| MIN_ACCEPTS <= all.count())?;
            Some(all.longer_than(SLOW_ACCEPT) as f64 <= BURST_SHARE * all.count() as f64)
        })
    }

    /// Of the minutes that are remembered.
    fn recent(&self) -> [u64; 3] {
        std::array::from_fn(|i| self.minutes.iter().map(|counts| u64::from(counts[i])).sum())
    }
}

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [too_long, share] = look.thresholds();
    look.it.accept_wait.as_ref().map_err(|absent| *absent)?;
    let waits = &look.memory.waits;
    waits.totals.ok_or(Absent::TooEarly)?;
    let [accepts, _, slow] = waits.recent();
    if slow == 0 || accepts < MIN_ACCEPTS {
        return Ok(Sight::Fine);
    }
    let is_slow = |accepts: u64, slow: u64, share: f64| share * (accepts as f64) < slow as f64;
    let of_minute = |counts: &&Counts| is_slow(counts[0].into(), counts[2].into(), share);
    let slow_minutes = waits.minutes.iter().filter(of_minute).count();
    if !is_slow(accepts, slow, share) || slow_minutes < MIN_SLOW_MINUTES {
        let is_better = !is_slow(accepts, slow, share / 2.0);
        return Ok(if is_better { Sight::Fine } else { Sight::Between });
    }
    let (length, limit) = (look.it.length, look.it.limit);
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{slow} of {accepts} connections waited longer than {too_long} s for accept in \
                 {MINUTES} min; {length} of {limit} places taken now"
            ),
            cause: None,
            mend: noted("", ACCEPT_FASTER),
            values: vec![
                ("accepts", accepts as f64),
                ("slow_accepts", slow as f64),
                ("slow_minutes", slow_minutes as f64),
            ],
        },
    )
}
