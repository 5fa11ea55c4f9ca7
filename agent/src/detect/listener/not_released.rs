//! Nobody listens, and connections that were accepted live on: they hold the port, so that bind(2)
//! without `SO_REUSEADDR` fails (`inet_csk_bind_conflict`, net/ipv4/inet_connection_sock.c).
//!
//! Not where that is how it is meant: who listens for one connection, as FTP does for its data and `nc -l`,
//! or at a port that the kernel gave it, does not come back for that port.

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
        some,
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
        thresholds: &[Threshold {
            name: "accepted",
            default: 3.0,
            range: Range::COUNT,
            help: "Connections that were accepted since it came: who takes fewer does not serve the port",
        }],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least] = look.thresholds();
    let Some(gone) = look.memory.presence.gone() else { return Ok(Sight::Fine) };
    let (open, accepted) = (look.it.open?, look.it.counters.accepted?);
    let served = look.memory.presence.accepted(accepted) as f64;
    if open == 0 || served < least || super::is_moved(look) || super::is_ephemeral(look)? {
        return Ok(Sight::Fine);
    }
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "nobody listens for {:.0} s; {} still open; last held{}",
                (look.now.at - gone.since).as_seconds(),
                some(open, "of its connections is", "of its connections are"),
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
                ("accepted", served),
            ],
        },
    )
}
