//! A listener goes and comes back again and again: its program does not stay up.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
        shell::quoted,
    },
    input::Known,
    time::Nanos,
};

/// In which time returns are counted.
const WINDOW: Nanos = minutes(10);

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "ListenerFlapping",
        summary: "A listener goes and comes back",
        why: "Each time its queue is thrown away, and who connects meanwhile is refused.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(5) },
        min_age: seconds(0),
        outlives: minutes(10),
        thresholds: &[Threshold {
            name: "returns",
            default: 3.0,
            range: Range::Of(1.0, 8.0),
            help: "Times in ten minutes that it comes back with another socket",
        }],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least] = look.thresholds();
    let n = look.memory.presence.returns(look.now.at, WINDOW);
    if (n as f64) < least {
        return Ok(if n == 0 { Sight::Fine } else { Sight::Between });
    }
    let state = if look.it.members.is_empty() { "nobody listens now" } else { "it listens now" };
    let unit = look.it.workload.unit.as_deref();
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!("came back with another socket {n} times in 10 min; {state}"),
            cause: None,
            mend: unit.map_or_else(
                || format!("backlogd trace --port {}", look.it.key.port),
                |unit| format!("journalctl -u {} -n 50", quoted(unit)),
            ),
            values: vec![("returns", n as f64)],
        },
    )
}
