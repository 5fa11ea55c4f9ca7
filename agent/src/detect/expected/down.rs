//! Nobody listens where the configuration wants a listener.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Rule, Sight, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::ExpectedListeners> = Rule {
    about: About {
        name: "ExpectedListenerDown",
        summary: "Nobody listens where somebody should",
        why: "Connections are refused at once.",
        timing: Timing { raise_for: seconds(0), clear_for: seconds(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let Some(since) = look.memory.0 else { return Ok(Sight::Fine) };
    let missing = look.now.at - since;
    if missing < look.it.within {
        return Ok(Sight::Between);
    }
    wrong(
        Severity::Critical,
        Evidence {
            seen: format!("no listener for {:.0} s", missing.as_seconds()),
            cause: None,
            mend: format!("ss -ltnp sport = :{}", look.it.port),
            values: vec![("seconds", missing.as_seconds())],
        },
    )
}
