//! The accept queue comes close to its limit, by its high-water mark: it would overflow next
//! (`sk_acceptq_is_full`, include/net/sock.h).

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "AcceptQueueNearLimit",
        summary: "Accept queue comes close to its limit",
        why: "Nothing is lost so far; a burst that is a little larger is.",
        timing: Timing { raise_for: minutes(10), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "share",
                default: 0.8,
                range: Range::Of(0.01, 1.0),
                help: "Share of the limit",
            },
            Threshold {
                name: "clear_share",
                default: 0.6,
                range: Range::Below("share"),
                help: "Share of the limit below which it is over",
            },
            Threshold {
                name: "least_limit",
                default: 16.0,
                range: Range::Of(0.0, f64::INFINITY),
                help: "Queues with a lower limit are passed over",
            },
        ],
        inhibited_by: &[
            "ListenerStalled",
            "NobodyAccepts",
            "AcceptErrors",
            "AcceptQueueOverflow",
            "ListenBacklogTooSmall",
            "SlowAccept",
        ],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [share, clear_share, least_limit] = look.thresholds();
    let highest = look.it.length_max?;
    let Some(now) = look.it.fill_ratio_max else { return Ok(Sight::Fine) };
    let (limit, n) = (look.it.limit, look.it.members.len() as u64);
    if (limit as f64) < least_limit * n as f64 {
        return Ok(Sight::Fine);
    }
    let ratio = (highest as f64 / limit.max(1) as f64).max(now);
    if ratio <= share {
        return Ok(if ratio < clear_share { Sight::Fine } else { Sight::Between });
    }
    wrong(
        Severity::Info,
        Evidence {
            seen: format!(
                "{highest} of {limit} places were taken at the highest; fullest member now: {:.0} %",
                100.0 * now
            ),
            cause: None,
            mend: format!("backlogd explain {}", look.it.key.port),
            values: vec![("length_max", highest as f64), ("limit", limit as f64), ("ratio", ratio)],
        },
    )
}
