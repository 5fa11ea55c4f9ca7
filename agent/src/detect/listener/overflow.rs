//! The accept queue is full, and the kernel drops SYNs or last ACKs (`tcp_conn_request`,
//! net/ipv4/tcp_input.c; `tcp_v4_syn_recv_sock`, net/ipv4/tcp_ipv4.c).

use std::fmt::Write as _;

use super::{
    At, ESTABLISHED, FULL, OVERFLOWS, SYNS,
    small_backlog::{Reason, reason},
};
use crate::{
    detect::{
        LIMIT_WANTED,
        command::ACCEPT_FASTER,
        history::Growth,
        phase::{Severity, Timing},
        rule::{About, COUNTERS, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
        shell::noted,
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
    let is_whole = WINDOW <= window.over;
    // who is seldom asked shows less
    let is_quiet = is_whole && look.it.counters.syns.is_ok() && window.per_second(SYNS) < 1.0;
    if !is_quiet && (n as f64) < drops {
        return Ok(Sight::Between);
    }
    let share = share(look, &window);
    let full = window.by[FULL] as f64 / 1_000.0;
    let is_critical = is_whole
        && drops <= n as f64
        && (share.is_some_and(|share| critical_share < share)
            || critical_full_share < full / window.over.as_seconds());
    let severity = if is_critical { Severity::Critical } else { Severity::Warning };
    let reason = reason(look);
    let wanted = reason.wanted;
    let (cause, mend) = cause(look, reason);
    wrong(
        severity,
        Evidence {
            seen: seen(look, &window),
            cause: Some(cause),
            mend,
            values: vec![
                ("overflows", n as f64),
                ("length", look.it.length as f64),
                ("limit", look.it.limit as f64),
                ("full_seconds", full),
                (LIMIT_WANTED, wanted as f64),
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
fn cause(look: &At<'_, '_>, reason: Reason) -> (String, String) {
    let waits = look.it.accept_wait.as_ref().map(|waits| &**waits).map_err(|absent| *absent);
    let Reason { cause, raise, .. } = reason;
    match look.memory.waits.keeps_up(waits) {
        Some(true) => {
            (format!("accept is fast, and bursts are larger than the queue: {cause}"), raise.mend())
        }
        Some(false) => (
            "accept is too slow: a longer queue only turns drops into waiting".to_owned(),
            noted("", ACCEPT_FASTER),
        ),
        None => {
            let also = format!("if the program keeps up with accept, {}", raise.note);
            (
                format!("{cause}; whether accept is fast enough is not known"),
                noted(&raise.command, &format!("{also}; else {ACCEPT_FASTER}")),
            )
        }
    }
}

/// Which share of the SYNs met a full queue. Without a hook that counts SYNs, of those that are known to
/// have come: handshakes that completed, and what was dropped. There were at least so many but where one
/// last ACK was dropped again and again, so the share is the largest that it can have been: it is less when
/// many SYNs came to nothing, and then the clients that mean it are as badly off as it says.
fn share(look: &At<'_, '_>, window: &Growth<COUNTERS>) -> Option<f64> {
    let n = window.by[OVERFLOWS];
    let counters = &look.it.counters;
    let syns = match (counters.syns, counters.established) {
        (Ok(_), _) => window.by[SYNS],
        (Err(_), Ok(_)) => window.by[ESTABLISHED] + n,
        (Err(_), Err(_)) => return None,
    };
    Some(n as f64 / syns.max(1) as f64)
}
