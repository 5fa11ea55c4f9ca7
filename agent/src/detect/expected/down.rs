//! Nobody listens where the configuration wants a listener.

use super::{At, Memory};
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
    let since = match *look.memory {
        Memory::Up => return Ok(Sight::Fine),
        Memory::Missing { since } => since,
        Memory::Unknown(why) => return Err(why),
    };
    let (missing, within) = (look.now.at - since, look.it.within);
    if missing < look.it.look.map_or(within, |look| look.min(within)) {
        return Ok(Sight::Between);
    }
    // a look that is shorter does not know whether it has been missing for as long as it may
    let severity = if missing < within { Severity::Warning } else { Severity::Critical };
    wrong(
        severity,
        Evidence {
            seen: format!("no listener for {:.0} s", missing.as_seconds()),
            cause: None,
            mend: format!("ss -ltnp sport = :{}", look.it.port),
            values: vec![("seconds", missing.as_seconds())],
        },
    )
}
