//! Nobody listens, and connections that were accepted live on: they hold the port, so that bind(2)
//! without `SO_REUSEADDR` fails (`inet_csk_bind_conflict`, net/ipv4/inet_connection_sock.c).

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
        name: "PortNotReleased",
        summary: "Nobody listens, and old connections hold the port",
        why: "A program that starts again without SO_REUSEADDR cannot bind the port, and serves nobody.",
        timing: Timing { raise_for: seconds(10), clear_for: seconds(0) },
        min_age: seconds(0),
        outlives: minutes(60),
        thresholds: &[],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let Some(gone) = look.memory.presence.gone() else { return Ok(Sight::Fine) };
    let open = look.it.open?;
    if open == 0 || super::is_moved(look) {
        return Ok(Sight::Fine);
    }
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "nobody listens for {:.0} s; {open} of its connections are still open; last held{}",
                (look.now.at - gone.since).as_seconds(),
                look.memory.presence.last_held()
            ),
            cause: Some(
                "whoever holds them was not ended with the listener; bind without SO_REUSEADDR \
                 fails with EADDRINUSE until they are closed, and for TIME_WAIT after that"
                    .to_owned(),
            ),
            mend: super::ss(look, "-tanp"),
            values: vec![
                ("gone_seconds", (look.now.at - gone.since).as_seconds()),
                ("open", open as f64),
            ],
        },
    )
}
