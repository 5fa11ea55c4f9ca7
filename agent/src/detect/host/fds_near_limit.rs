//! The host has hardly room for another open file (`alloc_empty_file`, fs/file_table.c): without, whatever
//! makes a descriptor fails with `ENFILE`, but for root. Or it will soon have none: they grow steadily.

use super::At;
use crate::{
    detect::{
        climb::FIVE_MINUTES,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

/// It must fall so far below before it is over.
const BELOW: f64 = 0.05;
/// Steady growth is looked at from this share on.
const GROWING_RATIO: f64 = 0.5;

pub(super) const RULE: Rule<super::Host> = Rule {
    about: About {
        name: "HostFdsNearLimit",
        summary: "The host has hardly room for another open file",
        why: "At the limit accept, open and socket fail with ENFILE in all programs but those of root.",
        timing: Timing { raise_for: minutes(1), clear_for: minutes(2) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "ratio",
                default: 0.9,
                range: Range::Of(0.1, 1.0),
                help: "Open files of those allowed",
            },
            Threshold {
                name: "critical_ratio",
                default: 0.97,
                range: Range::From("ratio", 1.0),
                help: "Critical from this share on",
            },
            Threshold {
                name: "seconds_left",
                default: 900.0,
                range: Range::SECONDS,
                help: "Time left, by five minutes of steady growth",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [warning, critical, soon] = look.thresholds();
    let (open, max) = (look.it.open_fds?, look.it.max_fds?);
    let ratio = open as f64 / max.max(1) as f64;
    let files = &look.memory.files;
    let left = files.seconds_left(FIVE_MINUTES, open, max);
    let left = left.filter(|left| *left <= soon && GROWING_RATIO < ratio);
    if ratio <= warning && left.is_none() {
        let is_growing = GROWING_RATIO - BELOW < ratio && files.grows(FIVE_MINUTES);
        let is_over = ratio <= warning - BELOW && !is_growing;
        return Ok(if is_over { Sight::Fine } else { Sight::Between });
    }
    let severity = if critical < ratio { Severity::Critical } else { Severity::Warning };
    let mut seen = format!("{open} of {max} files open, {:.0} %", 100.0 * ratio);
    if let Some(left) = left {
        seen.push_str(&format!("; at this pace none left in {:.0} min", left / 60.0));
    }
    let mut values = vec![("open_fds", open as f64), ("max_fds", max as f64), ("ratio", ratio)];
    values.extend(left.map(|left| ("seconds_left", left)));
    wrong(
        severity,
        Evidence {
            seen,
            cause: None,
            mend: format!("sysctl -w fs.file-max={}", max.saturating_mul(2)),
            values,
        },
    )
}
