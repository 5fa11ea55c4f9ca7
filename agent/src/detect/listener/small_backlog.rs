//! Bursts overflow the accept queue again and again though accept is fast: the limit is too small. It
//! is the lower of the program's backlog argument and `net.core.somaxconn` of its namespace, latched at
//! listen(2) (`__sys_listen_socket`, net/socket.c).

use super::{At, OVERFLOWS};
use crate::{
    detect::{
        LIMIT_WANTED,
        backlog::{self, Origin, Raise},
        history::History,
        phase::{Severity, Timing},
        rule::{About, COUNTERS, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::{Absent, Known},
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "ListenBacklogTooSmall",
        summary: "Bursts overflow the accept queue although accept is fast",
        why: "Each burst costs some clients a second or more, and nothing is wrong but a number.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "drops",
                default: 10.0,
                range: Range::COUNT,
                help: "Overflows in two hours",
            },
            Threshold {
                name: "spans",
                default: 3.0,
                range: Range::Of(1.0, 24.0),
                help: "Spans of five minutes, of these two hours, in which it overflowed",
            },
        ],
        inhibited_by: &["ListenerStalled", "AcceptErrors", "SlowAccept"],
    },
    judge,
};

/// How large a burst was.
#[derive(Default)]
pub(super) struct Bursts {
    /// The most overflows from one look to the next.
    largest: u64,
}

impl Bursts {
    /// Takes in how far the counters moved.
    pub(super) fn see(&mut self, history: &History<COUNTERS>) {
        let Ok(step) = history.step() else { return };
        if 0 < step.by[OVERFLOWS] {
            // clients try again after a second: more are the same ones
            let overflows = step.by[OVERFLOWS] as f64 / step.over.as_seconds().max(1.0);
            self.largest = self.largest.max(backlog::whole(overflows));
        }
    }
}

/// Why the limit is what it is.
pub(super) struct Reason {
    /// In words.
    pub(super) cause: String,
    /// The limit that the bursts need.
    pub(super) wanted: u64,
    /// What raises it to that.
    pub(super) raise: Raise,
}

/// Why the limit is what it is, and what raises it to what the bursts need.
pub(super) fn reason(look: &At<'_, '_>) -> Reason {
    let limit = look.it.members.iter().map(|member| member.limit).min().unwrap_or(0);
    let wanted = backlog::wanted(limit, look.memory.bursts.largest, look.it.members.len());
    let somaxconn = super::sysctl(look, "somaxconn").ok();
    let origin = somaxconn.map(|somaxconn| (Origin::of(limit, somaxconn), somaxconn));
    let cause = match origin {
        Some((Origin::Somaxconn, somaxconn)) => {
            format!("the limit of {limit} is capped by net.core.somaxconn = {somaxconn}")
        }
        Some((Origin::Argument, somaxconn)) => format!(
            "the limit of {limit} is the program's own: net.core.somaxconn = {somaxconn} allows more"
        ),
        Some((Origin::Lowered, somaxconn)) => format!(
            "the limit is {limit}, and net.core.somaxconn has been lowered to {somaxconn} since"
        ),
        None => format!("the limit is {limit}"),
    };
    let raise = Raise::new(look.now, look.it, limit, somaxconn, wanted);
    Reason { cause, wanted, raise }
}

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [drops, least_spans] = look.thresholds();
    look.it.accept_wait.as_ref().map_err(|absent| *absent)?;
    if super::overflows(look.it)? == 0 {
        return Ok(Sight::Fine);
    }
    let n = look.within(minutes(115)).by[OVERFLOWS];
    if n == 0 || look.it.members.is_empty() {
        return Ok(Sight::Fine);
    }
    let (spans, of) = look.history.spans(OVERFLOWS);
    if (n as f64) < drops || (spans as f64) < least_spans {
        return Ok(Sight::Between);
    }
    if !look.memory.waits.is_fast().ok_or(Absent::TooEarly)? {
        return Ok(Sight::Fine);
    }
    let Reason { cause, wanted, raise } = reason(look);
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{n} overflows in {spans} of the last {of} spans of five minutes; accept is fast"
            ),
            cause: Some(cause),
            mend: raise.mend(),
            values: vec![
                ("overflows", n as f64),
                ("spans", spans as f64),
                ("limit", look.it.limit as f64),
                (LIMIT_WANTED, wanted as f64),
            ],
        },
    )
}
