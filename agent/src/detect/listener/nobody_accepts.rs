//! Handshakes succeed and nobody accepts, though no queue shows it: the program closes the socket with
//! what waits in it, or a group takes turns.

use super::{ACCEPTED, At, DISCARDED, ESTABLISHED};
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    id::Pid,
    input::Known,
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "NobodyAccepts",
        summary: "Handshakes succeed but no connection is accepted",
        why: "The kernel answers for the program: checks that only connect pass, and nobody is served.",
        timing: Timing { raise_for: seconds(0), clear_for: seconds(0) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[Threshold {
            name: "handshakes",
            default: 3.0,
            range: Range::COUNT,
            help: "Handshakes in five minutes (ten where systemd holds the socket) without an accept",
        }],
        inhibited_by: &["ListenerStalled", "AcceptErrors"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [handshakes] = look.thresholds();
    let counters = &look.it.counters;
    counters.accepted?;
    counters.established?;
    if look.it.members.is_empty() {
        return Ok(Sight::Fine);
    }
    // systemd hands the socket to a service that takes its time to start
    let is_activated = look.it.owners.first() == Some(&Pid(1));
    let window = look.history.growth(minutes(if is_activated { 10 } else { 5 }))?;
    let n = window.by[ESTABLISHED];
    if 0 < window.by[ACCEPTED] || (n as f64) < handshakes {
        return Ok(Sight::Fine);
    }
    let discarded = window.by[DISCARDED];
    let cause = (0 < discarded).then(|| {
        format!("{discarded} were reset unaccepted: the program closed its listening socket")
    });
    wrong(
        Severity::Critical,
        Evidence {
            seen: format!(
                "{n} handshakes in {:.0} s and no accept; {} connections wait",
                window.over.as_seconds(),
                look.it.length
            ),
            cause,
            mend: format!("backlogd explain {}", look.it.key.port),
            values: vec![
                ("handshakes", n as f64),
                ("discarded", discarded as f64),
                ("length", look.it.length as f64),
            ],
        },
    )
}
