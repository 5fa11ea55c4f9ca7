//! When a connection has to be looked at, and whether it took too long: pure.
//!
//! Times are ticks, rounded so that nothing ends early: it is late by a tick at most. A deadline
//! that may begin after a look cannot pass before that look and its own length, so that is when the
//! next look is: whoever reads or writes never touches the wheel.

use std::time::Duration;

use super::{Deadline, Deadlines, MinRate, wheel::Tick};

/// How often the wheel turns.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Each connection is looked at after so many ticks at the latest, which takes those that ended off
/// the wheel.
const LONGEST_LOOK: Tick = 100;

/// How often a stalled write is looked at within its deadline.
const LOOKS_AT_WRITES: Tick = 4;

/// [`Deadlines`] in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    first_byte: Option<Tick>,
    handshake: Option<Tick>,
    header: Option<Tick>,
    idle: Option<Tick>,
    write_stall: Option<Tick>,
    min_rate: Option<Rate>,
    lifetime: Option<Tick>,
    longest_look: Tick,
}

/// So many bytes within so many ticks.
#[derive(Clone, Copy, Debug)]
struct Rate {
    least: u64,
    over: Tick,
}

impl Plan {
    pub(super) fn new(deadlines: &Deadlines) -> Self {
        let of = |deadline| deadlines.of(deadline).map(ticks);
        let mut plan = Self {
            first_byte: of(Deadline::FirstByte),
            handshake: of(Deadline::Handshake),
            header: of(Deadline::Header),
            idle: of(Deadline::Idle),
            write_stall: of(Deadline::WriteStall),
            min_rate: deadlines.min_rate.map(rate),
            lifetime: of(Deadline::Lifetime),
            longest_look: LONGEST_LOOK,
        };
        let writes = plan.write_stall.map(|it| (it / LOOKS_AT_WRITES).max(1));
        let rate = plan.min_rate.map(|it| it.over);
        for look in [plan.header, writes, rate].into_iter().flatten() {
            plan.longest_look = plan.longest_look.min(look);
        }
        plan
    }
}

/// At least as long as `time`, for what began within a tick.
fn ticks(time: Duration) -> Tick {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2) + 1
}

fn rate(rate: MinRate) -> Rate {
    let millis = u64::try_from(rate.over.as_millis()).unwrap_or(u64::MAX);
    let least = u64::from(rate.bytes_per_second).saturating_mul(millis) / 1_000;
    Rate { least, over: ticks(rate.over) }
}

/// What whoever serves a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The handshake.
    Handshake,
    /// The header of a request.
    Header,
    /// The rest of a request, and its answer.
    Body,
    /// The wait for the next request.
    Between,
}

impl Phase {
    pub(super) const ALL: [Self; 4] = [Self::Handshake, Self::Header, Self::Body, Self::Between];
}

/// What there is to see of a connection at a tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) at: Tick,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// When a byte last was read or written.
    pub(super) progress: Tick,
    pub(super) phase: Phase,
    /// When the phase began.
    pub(super) since: Tick,
}

/// What is remembered of a connection from look to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Its lifetime began.
    admitted: Tick,
    /// All else began: somebody serves it.
    begun: Tick,
    /// So many of its bytes were acknowledged.
    acked: u64,
    /// Some were not, the last time.
    is_outstanding: bool,
    /// Since when nothing was acknowledged that could have been.
    stalled: Tick,
    /// When some were seen to be acknowledged while others were not.
    moved: Tick,
    /// Where the average of the rate begins, in time and bytes.
    window: (Tick, u64),
}

impl Look {
    pub(super) fn new(admitted: Tick, begun: Tick) -> Self {
        let (acked, is_outstanding, window) = (0, false, (begun, 0));
        Self { admitted, begun, acked, is_outstanding, stalled: begun, moved: begun, window }
    }

    /// When to look again. `unacked` tells how many bytes its peer did not acknowledge so far; it
    /// is asked only where that matters.
    ///
    /// # Errors
    /// A deadline passed.
    pub(super) fn judge(
        &mut self,
        plan: &Plan,
        seen: &Seen,
        unacked: impl FnOnce() -> u64,
    ) -> Result<Tick, Deadline> {
        if plan.write_stall.is_some() || plan.idle.is_some() {
            self.acknowledge(seen, unacked);
        }
        let due = |length: Option<Tick>, since| length.map(|length| since + length);
        let within = |phase, length| due(length, seen.since).filter(|_| seen.phase == phase);
        let dues = [
            (Deadline::FirstByte, due(plan.first_byte, self.begun).filter(|_| seen.bytes_in == 0)),
            (Deadline::Handshake, within(Phase::Handshake, plan.handshake)),
            (Deadline::Header, within(Phase::Header, plan.header)),
            (
                Deadline::WriteStall,
                due(plan.write_stall, self.stalled).filter(|_| self.is_outstanding),
            ),
            (Deadline::Idle, due(plan.idle, seen.progress.max(self.moved))),
            (Deadline::Lifetime, due(plan.lifetime, self.admitted)),
        ];
        let mut next = seen.at + plan.longest_look;
        for (deadline, due) in dues {
            match due {
                Some(due) if due <= seen.at => return Err(deadline),
                Some(due) => next = next.min(due),
                None => {}
            }
        }
        match plan.min_rate {
            Some(rate) => Ok(next.min(self.keep_pace(rate, seen)?)),
            None => Ok(next),
        }
    }

    fn acknowledge(&mut self, seen: &Seen, unacked: impl FnOnce() -> u64) {
        let is_settled = !self.is_outstanding && self.acked == seen.bytes_out;
        let unacked = if is_settled { 0 } else { unacked() };
        // written before it was counted: too few for once
        let acked = seen.bytes_out.saturating_sub(unacked).max(self.acked);
        if 0 < unacked && self.acked < acked {
            self.moved = seen.at;
        }
        if !self.is_outstanding || self.acked < acked {
            self.stalled = seen.at;
        }
        self.acked = acked;
        self.is_outstanding = 0 < unacked;
    }

    /// When the rate is to be looked at.
    fn keep_pace(&mut self, rate: Rate, seen: &Seen) -> Result<Tick, Deadline> {
        let moved = seen.bytes_in + seen.bytes_out;
        let (since, before) = self.window;
        if seen.phase == Phase::Between || since < seen.since {
            self.window = (seen.at, moved);
        } else if since + rate.over <= seen.at {
            if moved - before < rate.least {
                return Err(Deadline::MinRate);
            }
            self.window = (seen.at, moved);
        }
        Ok(self.window.0 + rate.over)
    }
}

#[cfg(test)]
mod tests;
