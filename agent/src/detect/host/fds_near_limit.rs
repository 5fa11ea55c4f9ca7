//! The host has hardly room for another open file (`alloc_empty_file`, fs/file_table.c): without, whatever
//! makes a descriptor fails with `ENFILE`, but for root.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

/// It must fall so far below before it is over.
const BELOW: f64 = 0.05;

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
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [warning, critical] = look.thresholds();
    let (open, max) = (look.it.open_fds?, look.it.max_fds?);
    let ratio = open as f64 / max.max(1) as f64;
    if ratio <= warning {
        return Ok(if ratio <= warning - BELOW { Sight::Fine } else { Sight::Between });
    }
    let severity = if critical < ratio { Severity::Critical } else { Severity::Warning };
    wrong(
        severity,
        Evidence {
            seen: format!("{open} of {max} files open, {:.0} %", 100.0 * ratio),
            cause: None,
            mend: format!("sysctl -w fs.file-max={}", max.saturating_mul(2)),
            values: vec![("open_fds", open as f64), ("max_fds", max as f64), ("ratio", ratio)],
        },
    )
}
