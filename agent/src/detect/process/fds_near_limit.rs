//! A process has hardly a descriptor left: accept(2), open(2) and socket(2) are about to fail with `EMFILE`
//! (`alloc_fd`, fs/file.c).

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
    time::Nanos,
};

/// For how long it must be near.
const WARNING_FOR: Nanos = minutes(10);
const CRITICAL_FOR: Nanos = minutes(2);
/// It must fall so far below before it is over.
const BELOW: f64 = 0.05;

pub(super) const RULE: Rule<super::Processes> = Rule {
    about: About {
        name: "ProcessFdsNearLimit",
        summary: "A process has hardly a descriptor left",
        why: "At the limit accept fails: connections wait in the queue, and clients believe that they are \
              connected.",
        // sooner over than what inhibits it
        timing: Timing { raise_for: seconds(0), clear_for: seconds(20) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "ratio",
                default: 0.8,
                range: Range::Of(0.1, 1.0),
                help: "Open descriptors of those allowed, for ten minutes",
            },
            Threshold {
                name: "critical_ratio",
                default: 0.95,
                range: Range::From("ratio", 1.0),
                help: "Critical from this share on, after two minutes",
            },
        ],
        inhibited_by: &["AcceptErrors", "ListenerStalled"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [warning, critical] = look.thresholds();
    let (open, max) = look.it.fds()?;
    if look.it.ratio <= warning.min(critical) - BELOW {
        return Ok(Sight::Fine);
    }
    let lasts = |ratio: f64, over| {
        let lowest = look.memory.lowest(over);
        lowest.is_some_and(|lowest| ratio < lowest as f64 / max.max(1) as f64)
    };
    // nothing is left and a listener is not served: that is the same, whatever hooks there are
    let stalled = || look.it.listeners(look.now).find(|it| it.stalled == Ok(true));
    let stalled = if max <= open { stalled() } else { None };
    let severity = if stalled.is_some() || lasts(critical, CRITICAL_FOR) {
        Severity::Critical
    } else if lasts(warning, WARNING_FOR) {
        Severity::Warning
    } else {
        return Ok(Sight::Between);
    };
    let cause = stalled.map(|listener| {
        format!(
            "no descriptor is left, and nobody accepts the {} connections that wait on port {}",
            listener.length, listener.key.port
        )
    });
    wrong(
        severity,
        Evidence {
            seen: look.it.describe(look.now),
            cause: cause.or_else(|| look.it.cause(look.now)),
            mend: look.it.mend(),
            values: vec![
                ("open_fds", open as f64),
                ("max_fds", max as f64),
                ("ratio", look.it.ratio),
            ],
        },
    )
}
