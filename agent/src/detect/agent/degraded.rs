//! The agent cannot read something that it should.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Rule, Sight, minutes, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Agent> = Rule {
    about: About {
        name: "AgentDegraded",
        summary: "The agent cannot read all that it should",
        why: "What it cannot read is unknown, and so are the detections that need it.",
        timing: Timing { raise_for: minutes(1), clear_for: minutes(1) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let degraded = &look.now.degraded;
    let Some((what, why)) = degraded.first_key_value() else { return Ok(Sight::Fine) };
    let mut seen = format!("not readable: {what} ({why})");
    let others: Vec<&str> = degraded.keys().skip(1).copied().collect();
    if !others.is_empty() {
        seen.push_str(&format!(", {}", others.join(", ")));
    }
    wrong(
        Severity::Warning,
        Evidence {
            seen,
            cause: None,
            mend: "backlogd doctor".to_owned(),
            values: vec![("sources", degraded.len() as f64)],
        },
    )
}
