//! Connections to one destination are made and closed, one for each request: `TIME_WAIT` is many times
//! what is open.

use super::At;
use crate::{
    detect::{
        command::inside,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
        shell::quoted,
        subject::Place,
    },
    input::Known,
    model::snapshot::PortUse,
};

/// Below this share of the threshold it is over.
const BELOW: f64 = 0.7;

pub(super) const RULE: Rule<super::Destinations> = Rule {
    about: About {
        name: "ConnectionPerRequest",
        summary: "A new connection for each request towards a destination",
        why: "Each costs a handshake, and holds a local port for a minute after it has ended.",
        // sooner over than what inhibits it
        timing: Timing { raise_for: minutes(1), clear_for: seconds(30) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "time_wait",
                default: 5_000.0,
                range: Range::COUNT,
                help: "Connections in TIME_WAIT",
            },
            Threshold {
                name: "times_open",
                default: 10.0,
                range: Range::Of(0.0, f64::INFINITY),
                help: "As many times those that are open",
            },
        ],
        inhibited_by: &["EphemeralPortsNearLimit", "ConnectAddressesExhausted"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least, times] = look.thresholds();
    let ports = look.it.ports?;
    let is_beyond = |ports: &PortUse, part: f64| {
        let (waits, open) = (ports.destination.time_wait as f64, ports.destination.open as f64);
        part * least <= waits && part * times * open < waits
    };
    let both = |part| {
        let before = look.memory.before.as_ref();
        is_beyond(ports, part) && before.is_some_and(|before| is_beyond(before, part))
    };
    if !both(1.0) {
        return Ok(if is_beyond(ports, BELOW) { Sight::Between } else { Sight::Fine });
    }
    let to = ports.destination;
    wrong(
        Severity::Info,
        Evidence {
            seen: format!(
                "{} connections in TIME_WAIT and {} open, from {}",
                to.time_wait, to.open, to.source
            ),
            cause: Some("a new connection for each request: no keep-alive and no pool".to_owned()),
            mend: inside(
                look.now,
                look.it.namespace.netns,
                &format!("ss -tanp dst {}", quoted(&Place(to.addr, to.port).to_string())),
            ),
            values: vec![("time_wait", to.time_wait as f64), ("open", to.open as f64)],
        },
    )
}
