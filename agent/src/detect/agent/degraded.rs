//! The agent cannot read any more what it could.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Rule, Sight, minutes, seconds, wrong},
    },
    input::Known,
    intern::Name,
    model::snapshot::{Listener, Snapshot},
};

pub(super) const RULE: Rule<super::Agent> = Rule {
    about: About {
        name: "AgentDegraded",
        summary: "The agent cannot read what it could before",
        why: "What it cannot read is unknown, and so are the detections that need it.",
        timing: Timing { raise_for: minutes(1), clear_for: minutes(1) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[],
        inhibited_by: &[],
    },
    judge,
};

/// The source that is tried first when a listener stalls: what it needs, tracefs, may never have been
/// there.
const CLOSER_LOOK: &str = "closer look";

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let is_new = |(source, _): &(&Name, _)| {
        **source != CLOSER_LOOK
            && !look.memory.from_start.contains(*source)
            && !is_harmless(source, look.now)
    };
    let mut degraded = look.now.degraded.iter().filter(is_new);
    let Some((what, why)) = degraded.next() else { return Ok(Sight::Fine) };
    let others: Vec<&str> = degraded.map(|(source, _)| &**source).collect();
    let mut seen = format!("not readable: {what} ({why})");
    if !others.is_empty() {
        seen.push_str(&format!(", {}", others.join(", ")));
    }
    wrong(
        Severity::Warning,
        Evidence {
            seen,
            cause: None,
            mend: "backlogd doctor".to_owned(),
            values: vec![("sources", (1 + others.len()) as f64)],
        },
    )
}

/// Whether nothing is unknown for it. Some process of most hosts may not be looked into, as by a
/// security module; that matters when it may be the one that listens.
fn is_harmless(what: &str, now: &Snapshot) -> bool {
    let is_known = |it: &Listener| it.members.is_empty() || !it.owners.is_empty();
    what == "owners" && now.listeners.iter().all(is_known)
}
