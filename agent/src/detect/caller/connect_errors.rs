//! connect(2) finds no local port that is left (`EADDRNOTAVAIL`; `__inet_hash_connect`,
//! net/ipv4/inet_hashtables.c).
//!
//! The same error has harmless reasons, such as `::1` where IPv6 is switched off; only with a destination
//! whose ports are in use it is this one.

use super::{At, absent_everywhere};
use crate::{
    detect::{
        destination,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
    model::snapshot::{Namespace, PortUse},
    time::Nanos,
};

/// Errors that come for so long are not those of one burst.
const LASTING: Nanos = seconds(4);
/// Destinations that are named.
const SHOWN: usize = 4;

pub(super) const RULE: Rule<super::Callers> = Rule {
    about: About {
        name: "ConnectAddressesExhausted",
        summary: "connect finds no local port that is left",
        why: "New connections to that destination fail at once, until others have ended and left \
              TIME_WAIT.",
        // later over than what it inhibits
        timing: Timing { raise_for: seconds(0), clear_for: minutes(3) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "errors",
                default: 3.0,
                range: Range::COUNT,
                help: "Errors in a row",
            },
            Threshold {
                name: "ratio",
                default: 0.9,
                range: Range::SHARE,
                help: "Share of the usable ports that a destination has in use",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [errors, ratio] = look.thresholds();
    look.it.connect?;
    let Some(grown) = look.memory.connect.grown() else { return Ok(Sight::Fine) };
    let namespaces = &look.now.namespaces;
    if let Some(absent) =
        absent_everywhere(namespaces.iter().map(|it| it.ports.as_ref().map_err(|it| *it)))
    {
        return Err(absent);
    }
    let full: Vec<(&Namespace, &PortUse)> = namespaces
        .iter()
        .flat_map(|it| it.ports.iter().flat_map(|ports| ports.iter()).map(move |use_| (it, use_)))
        .filter(|(_, it)| 0 < it.usable && ratio <= it.ratio())
        .collect();
    let Some((namespace, worst)) = full.first() else { return Ok(Sight::Fine) };
    if (grown.by as f64) < errors || grown.lasting < LASTING {
        return Ok(Sight::Between);
    }
    let mut seen =
        format!("EADDRNOTAVAIL from connect: {} in {:.0} s", grown.by, grown.over.as_seconds());
    for (_, ports) in full.iter().take(SHOWN) {
        seen.push_str("; ");
        seen.push_str(&destination::describe(ports));
    }
    wrong(
        Severity::Critical,
        Evidence {
            seen,
            cause: destination::cause(worst, &namespace.sysctls),
            mend: destination::mend(worst, namespace, look.now),
            values: vec![
                ("errors", grown.by as f64),
                ("errors_per_second", grown.per_second()),
                ("ports_used", worst.used as f64),
                ("ports_usable", worst.usable as f64),
                ("time_wait", worst.destination.time_wait as f64),
            ],
        },
    )
}
