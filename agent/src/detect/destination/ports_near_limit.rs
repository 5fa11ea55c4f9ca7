//! Hardly a local port is left for connections to one destination (`__inet_hash_connect`,
//! net/ipv4/inet_hashtables.c).

use super::{At, cause, describe, mend};
use crate::{
    detect::{
        climb::FIVE_MINUTES,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::{Absent, Known},
};

/// It must fall so far below before it is over.
const BELOW: f64 = 0.1;
/// Fewer are many only where there are few.
const MANY: u64 = 1_000;
const RATIO_OF_FEW: f64 = 0.9;
/// Steady growth is looked at from this share on.
const GROWING_RATIO: f64 = 0.5;

pub(super) const RULE: Rule<super::Destinations> = Rule {
    about: About {
        name: "EphemeralPortsNearLimit",
        summary: "Hardly a local port is left towards a destination",
        why: "Without one connect fails with EADDRNOTAVAIL, and long before that each connect searches \
              longer.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(2) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "ratio",
                default: 0.8,
                range: Range::Of(0.2, 1.0),
                help: "Ports in use of those usable",
            },
            Threshold {
                name: "critical_ratio",
                default: 0.95,
                range: Range::From("ratio", 1.0),
                help: "Critical from this share on",
            },
            Threshold {
                name: "seconds_left",
                default: 900.0,
                range: Range::SECONDS,
                help: "Time left, by five minutes of steady growth",
            },
        ],
        inhibited_by: &["ConnectAddressesExhausted"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [ratio, critical, soon] = look.thresholds();
    let ports = look.it.ports?;
    if ports.usable == 0 {
        // the range could not be read
        return Err(Absent::Unreadable);
    }
    let few = ports.usable < MANY;
    let least = if few { ratio.max(RATIO_OF_FEW) } else { ratio };
    // the lower of two reads
    let used = look.memory.before.map_or(0, |before| before.used.min(ports.used));
    let share = used as f64 / ports.usable as f64;
    let left = look.memory.climb.seconds_left(FIVE_MINUTES, ports.used, ports.usable);
    let left = left.filter(|left| *left <= soon && GROWING_RATIO < share && MANY <= used);
    let is_near = least < share && (few || MANY <= used);
    if !is_near && left.is_none() {
        let is_over = ports.ratio() < least - BELOW && share < GROWING_RATIO.max(least - BELOW);
        return Ok(if is_over { Sight::Fine } else { Sight::Between });
    }
    // what is near its limit in two reads, and there in the newest, has reached it
    let severity =
        if is_near && critical <= ports.ratio() { Severity::Critical } else { Severity::Warning };
    let mut seen = describe(ports);
    if let Some(left) = left {
        seen.push_str(&format!("; at this pace none left in {:.0} min", left / 60.0));
    }
    let sysctls = &look.it.namespace.sysctls;
    let mut values = vec![
        ("ports_used", ports.used as f64),
        ("ports_usable", ports.usable as f64),
        ("time_wait", ports.destination.time_wait as f64),
        ("open", ports.destination.open as f64),
    ];
    values.extend(left.map(|left| ("seconds_left", left)));
    wrong(
        severity,
        Evidence {
            seen,
            cause: cause(ports, sysctls),
            mend: mend(ports, look.it.namespace, look.now),
            values,
        },
    )
}
