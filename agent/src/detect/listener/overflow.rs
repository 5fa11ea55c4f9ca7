//! The accept queue is full, and the kernel drops SYNs or last ACKs (`tcp_conn_request`,
//! net/ipv4/tcp_input.c; `tcp_v4_syn_recv_sock`, net/ipv4/tcp_ipv4.c).

use std::fmt::Write as _;

use super::{At, FULL, OVERFLOWS, SYNS, small_backlog};
use crate::{
    detect::{
        command::ACCEPT_FASTER,
        history::Growth,
        phase::{Severity, Timing},
        rule::{About, COUNTERS, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
    time::Nanos,
};

/// Over which time drops are counted.
const WINDOW: Nanos = minutes(5);

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
            Threshold {
                name: "drops",
                default: 10.0,
                range: Range::COUNT,
                help: "Overflows in five minutes; one where SYNs come less than once a second",
            },
            Threshold {
                name: "critical_share",
                default: 0.01,
                range: Range::SHARE,
                help: "Critical from this share of the SYNs on",
            },
            Threshold {
                name: "critical_full_share",
                default: 0.1,
                range: Range::SHARE,
                help: "Critical when full for this share of five minutes",
            },
        ],
        inhibited_by: &["ListenerStalled", "AcceptErrors"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [drops, critical_share, critical_full_share] = look.thresholds();
    if super::overflows(look.it)? == 0 {
        return Ok(Sight::Fine);
    }
    let window = look.within(WINDOW);
    let n = window.by[OVERFLOWS];
    if n == 0 {
        return Ok(Sight::Fine);
    }
    let syns = look.it.counters.syns.ok().map(|_| window.by[SYNS]);
    let is_whole = WINDOW <= window.over;
    // who is seldom asked shows less
    let is_quiet = is_whole && syns.is_some_and(|_| window.per_second(SYNS) < 1.0);
    if !is_quiet && (n as f64) < drops {
        return Ok(Sight::Between);
    }
    let share = syns.map(|syns| n as f64 / syns.max(1) as f64);
    let full = window.by[FULL] as f64 / 1_000.0;
    let is_critical = is_whole
        && drops <= n as f64
        && (share.is_some_and(|share| critical_share < share)
            || critical_full_share < full / window.over.as_seconds());
    let severity = if is_critical { Severity::Critical } else { Severity::Warning };
    let (cause, mend) = cause(look);
    wrong(
        severity,
        Evidence {
            seen: seen(look, &window),
            cause,
            mend,
            values: vec![
                ("overflows", n as f64),
                ("length", look.it.length as f64),
                ("limit", look.it.limit as f64),
                ("full_seconds", full),
            ],
        },
    )
}

fn seen(look: &At<'_, '_>, window: &Growth<COUNTERS>) -> String {
    let (length, limit) = (look.it.length, look.it.limit);
    let n = window.by[OVERFLOWS];
    let mut seen = format!(
        "{n} overflow{} in {:.0} s; {length} of {limit} places taken now",
        if n == 1 { "" } else { "s" },
        window.over.as_seconds()
    );
    // a sample seldom meets a queue that is full for a moment
    let full = window.by[FULL] as f64 / 1_000.0;
    if 0.5 <= full {
        _ = write!(seen, ", full for {full:.0} s");
    }
    let (spans, of) = look.history.spans(OVERFLOWS);
    if 1 < spans {
        _ = write!(seen, "; overflowed in {spans} of the last {of} spans of five minutes");
    }
    seen
}

/// Why, and what mends it, as far as the waits tell.
fn cause(look: &At<'_, '_>) -> (Option<String>, String) {
    let waits = look.it.accept_wait.as_ref().map(|waits| &**waits).map_err(|absent| *absent);
    let small_backlog::Reason { cause, mend } = small_backlog::reason(look);
    match look.memory.waits.keeps_up(waits) {
        Some(true) => {
            (Some(format!("accept is fast, and bursts are larger than the queue: {cause}")), mend)
        }
        Some(false) => (
            Some("accept is too slow: a longer queue only turns drops into waiting".to_owned()),
            ACCEPT_FASTER.to_owned(),
        ),
        None => (
            Some(format!("{cause}; whether accept is fast enough is not known")),
            format!("if the program keeps up with accept: {mend}; else {ACCEPT_FASTER}"),
        ),
    }
}
