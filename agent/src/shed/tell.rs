//! What is logged of shedding: that it begins, how much there is of it, and that it is over; and how a
//! drain ended. One line for each connection would be one more thing that an attack fills.

use std::time::{Duration, Instant};

use backlogd_shed::{Bound, Cause, Drain, Handle, Reason, Stats};
use tokio::time;

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// While it sheds, there is a line in so long; without a shed connection for so long, it is over.
const EVERY: Duration = Duration::from_secs(10);

/// Tells of `handle`, for ever.
pub(super) async fn run(handle: Handle) {
    let mut looks = time::interval(LOOK);
    let (mut shedding, mut bounds) = (Shedding::default(), (handle.bounds(), handle.bound()));
    loop {
        looks.tick().await;
        let listener = handle.name();
        match shedding.next(&counts(&handle.stats()), Instant::now()) {
            Some(Line::Begins(reasons)) => tracing::warn!(listener, reasons, "sheds"),
            Some(Line::GoesOn(reasons)) => tracing::warn!(listener, reasons, "goes on to shed"),
            Some(Line::Over(n_shed)) => tracing::info!(listener, n_shed, "sheds no more"),
            None => {}
        }
        let new = (handle.bounds(), handle.bound());
        let ((soft, hard), bound) = new;
        // others are logged where they are asked for
        if new != bounds && (bound == Bound::Descriptors || bounds.1 == Bound::Descriptors) {
            let bound = bound.to_string();
            tracing::warn!(
                listener,
                soft,
                hard,
                bound,
                "RLIMIT_NOFILE makes other limits of these"
            );
        }
        bounds = new;
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

type Counts = [u64; Reason::ALL.len()];

fn counts(stats: &Stats) -> Counts {
    Reason::ALL.map(|reason| stats.shed_for(reason))
}

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// By reason.
    Begins(String),
    /// By reason, since the line before.
    GoesOn(String),
    /// Connections, since it began.
    Over(u64),
}

/// Whether it sheds, and what was said of that.
#[derive(Debug, Default)]
struct Shedding {
    /// As of the last look.
    seen: Counts,
    spell: Option<Spell>,
}

/// A time in which connections are shed.
#[derive(Debug)]
struct Spell {
    before: Counts,
    /// The last line: when, and what was counted by then.
    told: (Instant, Counts),
    /// When more were seen to be shed.
    last: Instant,
}

impl Shedding {
    fn next(&mut self, counts: &Counts, at: Instant) -> Option<Line> {
        let before = std::mem::replace(&mut self.seen, *counts);
        let has_shed = before != *counts;
        let Some(spell) = &mut self.spell else {
            if has_shed {
                self.spell = Some(Spell { before, told: (at, *counts), last: at });
                return Some(Line::Begins(by_reason(&before, counts)));
            }
            return None;
        };
        if has_shed {
            spell.last = at;
        }
        if spell.last + EVERY <= at {
            let n: u64 = counts.iter().zip(spell.before).map(|(new, old)| new - old).sum();
            self.spell = None;
            return Some(Line::Over(n));
        }
        let (told, old) = spell.told;
        if told + EVERY <= at && old != *counts {
            spell.told = (at, *counts);
            return Some(Line::GoesOn(by_reason(&old, counts)));
        }
        None
    }
}

/// `soft 12, rate 3`.
fn by_reason(old: &Counts, new: &Counts) -> String {
    let of = |reason: Reason| {
        let n = new[reason as usize] - old[reason as usize];
        (n != 0).then(|| format!("{} {n}", reason.as_str()))
    };
    Reason::ALL.into_iter().filter_map(of).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_has_a_beginning_a_line_each_10_s_and_an_end() {
        let begun = Instant::now();
        let mut shedding = Shedding::default();
        let mut check = |second: u64, soft: u64, rate: u64, expected: Option<Line>| {
            let mut counts = [0; Reason::ALL.len()];
            counts[Reason::Soft as usize] = soft;
            counts[Reason::Rate as usize] = rate;
            let line = shedding.next(&counts, begun + Duration::from_secs(second));
            assert_eq!(line, expected, "after {second} s");
        };
        check(0, 0, 0, None);
        check(1, 12, 3, Some(Line::Begins("soft 12, rate 3".into())));
        check(2, 20, 3, None);
        check(10, 20, 3, None);
        check(11, 25, 3, Some(Line::GoesOn("soft 13".into())));
        check(20, 25, 3, None);
        // since the last one, not since the last line
        check(21, 25, 3, Some(Line::Over(28)));
        check(22, 25, 3, None);
        check(60, 25, 4, Some(Line::Begins("rate 1".into())));
        check(70, 25, 4, Some(Line::Over(1)));
    }
}
