//! What is logged of shedding, and of pauses in which nothing is accepted: that they begin, how much
//! there is of them, and that they are over; and how a drain ended. One line for each connection
//! would be one more thing that an attack fills.

use std::time::{Duration, Instant};

use backlogd_shed::{Bound, Cause, Drain, Handle, Pause, Reason, Stats};
use tokio::time;

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// While it sheds, or stands still now and then, there is a line in so long; without that for so long,
/// it is over.
const EVERY: Duration = Duration::from_secs(10);

/// Tells of `handle`, for ever.
pub(super) async fn run(handle: Handle) {
    let mut looks = time::interval(LOOK);
    let mut shedding = Spells::new();
    let mut pauses = Pause::ALL.map(|cause| (cause, Spells::new()));
    let mut bounds = (handle.bounds(), handle.bound());
    loop {
        looks.tick().await;
        let (stats, at) = (handle.stats(), Instant::now());
        tell_shed(&handle, shedding.next(&n_shed(&stats), at).as_ref());
        for (cause, spells) in &mut pauses {
            tell_paused(&handle, *cause, spells.next(&[paused(&stats, *cause)], at));
        }
        let new = (handle.bounds(), handle.bound());
        tell_bounds(&handle, bounds, new);
        bounds = new;
    }
}

fn tell_shed(handle: &Handle, line: Option<&Line<{ Reason::ALL.len() }>>) {
    let listener = handle.name();
    match line {
        Some(Line::Begins(n)) => tracing::warn!(listener, reasons = by_reason(n), "sheds"),
        Some(Line::GoesOn(n)) => {
            tracing::warn!(listener, reasons = by_reason(n), "goes on to shed");
        }
        Some(Line::Over(n)) => {
            let n_shed: u64 = n.iter().sum();
            tracing::info!(listener, n_shed, "sheds no more");
        }
        None => {}
    }
}

fn tell_paused(handle: &Handle, because: Pause, line: Option<Line<1>>) {
    let (listener, cause) = (handle.name(), because.as_str());
    let paused = |[micros]: [u64; 1]| Duration::from_micros(micros);
    match (line, because) {
        (Some(Line::Begins(_)), Pause::Hard) => tracing::warn!(
            listener,
            cause,
            hard = handle.bounds().1,
            "stands still: the hard limit is reached, who connects waits in the accept queue"
        ),
        (Some(Line::Begins(_)), Pause::Backoff) => tracing::warn!(
            listener,
            cause,
            "stands still: accept(2) fails for want of descriptors or memory"
        ),
        (Some(Line::GoesOn(time)), _) => {
            tracing::warn!(listener, cause, paused = ?paused(time), "goes on to stand still");
        }
        (Some(Line::Over(time)), _) => {
            tracing::info!(listener, cause, paused = ?paused(time), "stands still no more");
        }
        (None, _) => {}
    }
}

/// The soft and the hard limit, and what the hard one was taken from.
type InForce = ((usize, usize), Bound);

fn tell_bounds(handle: &Handle, old: InForce, new: InForce) {
    let ((soft, hard), bound) = new;
    // others are logged where they are asked for
    if new != old && (bound == Bound::Descriptors || old.1 == Bound::Descriptors) {
        let (listener, bound) = (handle.name(), bound.to_string());
        tracing::warn!(listener, soft, hard, bound, "RLIMIT_NOFILE makes other limits of these");
    }
}

/// Drains `handle`, and tells what became of its connections.
pub(super) async fn drained(handle: &Handle, drain: Drain) {
    let (begun, before) = (Instant::now(), n_finished(&handle.stats()));
    let reset = handle.drain(drain).await.reset;
    let (finished, took) = (n_finished(&handle.stats()) - before, begun.elapsed());
    tracing::info!(listener = handle.name(), finished, reset, ?took, "drained");
}

/// Connections that ended, neither shed nor reset by a drain.
fn n_finished(stats: &Stats) -> u64 {
    let ended = stats.closed.iter();
    ended.filter(|(cause, _)| !matches!(cause, Cause::Shed | Cause::Drain)).map(|(_, n)| n).sum()
}

fn n_shed(stats: &Stats) -> [u64; Reason::ALL.len()] {
    Reason::ALL.map(|reason| stats.shed_for(reason))
}

/// How long it stood still for `cause`, in microseconds.
fn paused(stats: &Stats, cause: Pause) -> u64 {
    let time = stats.paused.iter().find(|(it, _)| *it == cause).map(|(_, time)| time.as_micros());
    // as many are half a million years
    time.map_or(0, |micros| u64::try_from(micros).unwrap_or(u64::MAX))
}

/// What there is to say of counters.
#[derive(Debug, PartialEq, Eq)]
enum Line<const N: usize> {
    /// They grow, so much so far.
    Begins([u64; N]),
    /// Since the line before.
    GoesOn([u64; N]),
    /// They are at rest, and grew so much since the beginning.
    Over([u64; N]),
}

/// Whether counters grow, and what was said of that.
#[derive(Debug)]
struct Spells<const N: usize> {
    /// As of the last look.
    seen: [u64; N],
    spell: Option<Spell<N>>,
}

/// A time in which they grow.
#[derive(Debug)]
struct Spell<const N: usize> {
    before: [u64; N],
    /// The last line: when, and what was counted by then.
    told: (Instant, [u64; N]),
    /// When they were seen to grow.
    last: Instant,
}

impl<const N: usize> Spells<N> {
    fn new() -> Self {
        Self { seen: [0; N], spell: None }
    }

    fn next(&mut self, counts: &[u64; N], at: Instant) -> Option<Line<N>> {
        let before = std::mem::replace(&mut self.seen, *counts);
        let grows = before != *counts;
        let Some(spell) = &mut self.spell else {
            if grows {
                self.spell = Some(Spell { before, told: (at, *counts), last: at });
                return Some(Line::Begins(growth(&before, counts)));
            }
            return None;
        };
        if grows {
            spell.last = at;
        }
        if spell.last + EVERY <= at {
            let grown = growth(&spell.before, counts);
            self.spell = None;
            return Some(Line::Over(grown));
        }
        let (told, old) = spell.told;
        if told + EVERY <= at && old != *counts {
            spell.told = (at, *counts);
            return Some(Line::GoesOn(growth(&old, counts)));
        }
        None
    }
}

fn growth<const N: usize>(old: &[u64; N], new: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|i| new[i] - old[i])
}

/// `soft 12, rate 3`.
fn by_reason(n: &[u64; Reason::ALL.len()]) -> String {
    let of = |(reason, n): (Reason, &u64)| (*n != 0).then(|| format!("{} {n}", reason.as_str()));
    Reason::ALL.into_iter().zip(n).filter_map(of).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_has_a_beginning_a_line_each_10_s_and_an_end() {
        let begun = Instant::now();
        let mut spells = Spells::new();
        let mut check = |second: u64, counts: [u64; 2], expected: Option<Line<2>>| {
            let line = spells.next(&counts, begun + Duration::from_secs(second));
            assert_eq!(line, expected, "after {second} s");
        };
        check(0, [0, 0], None);
        check(1, [12, 3], Some(Line::Begins([12, 3])));
        check(2, [20, 3], None);
        check(10, [20, 3], None);
        check(11, [25, 3], Some(Line::GoesOn([13, 0])));
        check(20, [25, 3], None);
        // since the last one, not since the last line
        check(21, [25, 3], Some(Line::Over([25, 3])));
        check(22, [25, 3], None);
        check(60, [25, 4], Some(Line::Begins([0, 1])));
        check(70, [25, 4], Some(Line::Over([0, 1])));
    }

    #[test]
    fn what_was_shed_is_told_by_reason() {
        let mut n = [0; Reason::ALL.len()];
        n[Reason::Soft as usize] = 12;
        n[Reason::Rate as usize] = 3;
        assert_eq!(by_reason(&n), "soft 12, rate 3");
    }
}
