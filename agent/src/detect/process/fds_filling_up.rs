//! Open descriptors of a process grow steadily towards their limit.
//!
//! Neither a burst nor a pool that fills and is kept grows in each part of five minutes alike.

use super::At;
use crate::{
    detect::{
        climb::{FIVE_MINUTES, FORTY_MINUTES, Parts},
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

/// It must fall so far below before it is over.
const BELOW: f64 = 0.05;
/// Fewer in five minutes, or in forty, are no trend.
const LEAST: f64 = 20.0;

pub(super) const RULE: Rule<super::Processes> = Rule {
    about: About {
        name: "ProcessFdsFillingUp",
        summary: "A process will soon have no descriptor left",
        why: "At the limit accept fails: connections wait in the queue, and clients believe that they are \
              connected.",
        // not later over than what inhibits it
        timing: Timing { raise_for: seconds(0), clear_for: seconds(20) },
        min_age: minutes(5),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "ratio",
                default: 0.5,
                range: Range::SHARE,
                help: "Open descriptors of those allowed",
            },
            Threshold {
                name: "seconds_left",
                default: 900.0,
                range: Range::SECONDS,
                help: "Time left, by five minutes of steady growth",
            },
            Threshold {
                name: "slow_seconds_left",
                default: 3_600.0,
                range: Range::SECONDS,
                help: "Time left, by forty minutes of steady growth",
            },
            Threshold {
                name: "critical_seconds_left",
                default: 300.0,
                range: Range::UpTo("seconds_left"),
                help: "Critical below this",
            },
        ],
        inhibited_by: &["AcceptErrors", "ListenerStalled", "ProcessFdsNearLimit"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [ratio, soon, slow, critical] = look.thresholds();
    let (open, max) = look.it.fds()?;
    if look.it.ratio <= ratio - BELOW {
        return Ok(Sight::Fine);
    }
    let left = |parts: Parts| {
        let slope = look.memory.slope(parts)?;
        let is_trend = LEAST <= slope * parts.over().as_seconds();
        is_trend.then(|| (max.saturating_sub(open) as f64 / slope, slope, parts))
    };
    let found = [(FIVE_MINUTES, soon), (FORTY_MINUTES, slow)];
    let found = found.into_iter().filter_map(|(parts, most)| Some((left(parts)?, most)));
    for ((seconds_left, slope, parts), most) in found {
        if seconds_left <= most && ratio < look.it.ratio {
            let severity =
                if seconds_left < critical { Severity::Critical } else { Severity::Warning };
            return wrong(severity, evidence(look, [open, max], seconds_left, slope, parts));
        }
    }
    Ok(if look.memory.grows(FIVE_MINUTES) { Sight::Between } else { Sight::Fine })
}

fn evidence(
    look: &At<'_, '_>,
    [open, max]: [u64; 2],
    seconds_left: f64,
    slope: f64,
    parts: Parts,
) -> Evidence {
    Evidence {
        seen: format!(
            "{}; {:.0} more each minute for {:.0} min: none left in {:.0} min",
            look.it.describe(look.now),
            slope * 60.0,
            parts.over().as_seconds() / 60.0,
            seconds_left / 60.0
        ),
        cause: look.it.cause(look.now),
        mend: look.it.mend(),
        values: vec![
            ("open_fds", open as f64),
            ("max_fds", max as f64),
            ("fds_per_second", slope),
            ("seconds_left", seconds_left),
        ],
    }
}
