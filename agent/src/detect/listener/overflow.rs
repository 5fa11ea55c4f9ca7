//! The accept queue is full, and the kernel drops SYNs or last ACKs (`tcp_conn_request`,
//! net/ipv4/tcp_input.c; `tcp_v4_syn_recv_sock`, net/ipv4/tcp_ipv4.c).

use super::{At, FULL, OVERFLOWS, SYNS};
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

/// Over which time drops are counted.
const WINDOW: crate::time::Nanos = minutes(5);
/// A wait that is longer than this at its 99th percentile is an accept loop that is too slow, not a
/// burst.
const SLOW_SECONDS: f64 = 0.25;

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "AcceptQueueOverflow",
        summary: "Accept queue overflowed",
        why: "Clients see connects of a second and more, not errors: each tries again several times, so \
              drops are not clients.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold { name: "drops", default: 10.0, help: "Overflows in five minutes" },
            Threshold {
                name: "critical_share",
                default: 0.01,
                help: "Critical from this share of the SYNs on",
            },
            Threshold {
                name: "critical_full_share",
                default: 0.1,
                help: "Critical when full for this share of five minutes",
            },
        ],
        inhibited_by: &["ListenerStalled", "AcceptErrors"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [drops, critical_share, critical_full_share] = look.thresholds();
    super::overflows(look.it)?;
    let window = look.within(WINDOW);
    let n = window.by[OVERFLOWS];
    // who is seldom asked shows less
    let least =
        if window.per_second(SYNS) < 1.0 && look.it.counters.syns.is_ok() { 1.0 } else { drops };
    if (n as f64) < least.min(drops) {
        return Ok(if n == 0 { Sight::Fine } else { Sight::Between });
    }
    let share = look.it.counters.syns.ok().map(|_| n as f64 / (window.by[SYNS].max(1)) as f64);
    let full = window.by[FULL] as f64 / 1_000.0;
    let is_critical = minutes(5) <= window.over
        && (share.is_some_and(|share| critical_share < share)
            || critical_full_share < full / window.over.as_seconds());
    let severity = if is_critical { Severity::Critical } else { Severity::Warning };
    let (length, limit) = (look.it.length, look.it.limit);
    let wait = look.it.accept_wait.as_ref().ok().and_then(|waits| waits.quantile(0.99));
    let cause = wait.map(|wait| {
        if wait < SLOW_SECONDS {
            format!("bursts are larger than the queue: 99 % wait less than {wait:.3} s for accept")
        } else {
            format!("accept is too slow: 1 % wait longer than {wait:.1} s; a longer queue only turns drops into waiting")
        }
    });
    wrong(
        severity,
        Evidence {
            seen: format!(
                "{n} overflows in {:.0} s; {length} of {limit} places taken now, full for {full:.0} s",
                window.over.as_seconds()
            ),
            cause,
            mend: format!("backlogd explain {}", look.it.key.port),
            values: vec![
                ("overflows", n as f64),
                ("length", length as f64),
                ("limit", limit as f64),
                ("full_seconds", full),
            ],
        },
    )
}
