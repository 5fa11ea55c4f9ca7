//! Connections wait, and nobody accepts.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Rule, Sight, Threshold, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "ListenerStalled",
        summary: "Connections wait and nobody accepts them",
        why: "The kernel completes handshakes for the program: clients believe that they are connected, \
              and get no answer.",
        timing: Timing { raise_for: seconds(0), clear_for: seconds(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[Threshold {
            name: "critical_seconds",
            default: 60.0,
            help: "Critical when nobody has accepted for so long",
        }],
        inhibited_by: &["AcceptErrors"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [critical] = look.thresholds();
    if !look.it.stalled? {
        return Ok(Sight::Fine);
    }
    let since = look.it.since_accept.map_or(0.0, |since| since.as_seconds());
    let severity = if critical <= since { Severity::Critical } else { Severity::Warning };
    wrong(
        severity,
        Evidence {
            seen: format!(
                "{} connections wait; nobody has accepted for {since:.0} s",
                look.it.length
            ),
            cause: None,
            mend: format!("backlogd explain {}", look.it.key.port),
            values: vec![("length", look.it.length as f64), ("seconds_since_accept", since)],
        },
    )
}
