//! A listener that served connections is there no more. Which ones should be there is learnt: those
//! known for a while that accepted within the hour.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Rule, Sight, minutes, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "ListenerGone",
        summary: "A listener that served connections is gone",
        why: "Who connects is refused.",
        timing: Timing { raise_for: seconds(60), clear_for: seconds(0) },
        min_age: minutes(10),
        outlives: minutes(60),
        thresholds: &[],
        inhibited_by: &["PortNotReleased", "ListenerFlapping"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let Some(gone) = look.memory.presence.gone() else { return Ok(Sight::Fine) };
    look.it.counters.accepted?;
    if gone.accepted == 0 || super::is_moved(look) || super::is_ephemeral(look)? {
        return Ok(Sight::Fine);
    }
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "nobody listens for {:.0} s; last held{}; {} connections accepted in the hour before",
                (look.now.at - gone.since).as_seconds(),
                look.memory.presence.last_held(),
                gone.accepted
            ),
            cause: None,
            mend: super::ss(look, "-tlnp"),
            values: vec![
                ("gone_seconds", (look.now.at - gone.since).as_seconds()),
                ("accepted", gone.accepted as f64),
            ],
        },
    )
}
