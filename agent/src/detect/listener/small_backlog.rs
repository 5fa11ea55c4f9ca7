//! Bursts overflow the accept queue again and again though accept is fast: the limit is too small. It
//! is the lower of the program's backlog argument and `net.core.somaxconn` of its namespace, latched at
//! listen(2) (`__sys_listen_socket`, net/socket.c).

use super::{At, OVERFLOWS};
use crate::{
    detect::{
        backlog,
        command::{RESTART, raise_somaxconn},
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
            self.largest = self.largest.max(whole(overflows));
        }
    }
}

/// Why the limit is what it is.
pub(super) struct Reason {
    /// In words.
    pub(super) cause: String,
    /// What raises it.
    pub(super) mend: String,
}

/// Why the limit is what it is, and what raises it to what the bursts need.
pub(super) fn reason(look: &At<'_, '_>) -> Reason {
    let limit = look.it.members.iter().map(|member| u64::from(member.limit)).min().unwrap_or(0);
    let wanted = wanted(limit, look.memory.bursts.largest, look.it.members.len() as u64);
    let raise_somaxconn = || raise_somaxconn(look.now, look.it, wanted);
    let setting = backlog::setting(look.it.comm.as_deref());
    let somaxconn = super::sysctl(look, "somaxconn").ok().and_then(|it| u64::try_from(it).ok());
    match somaxconn {
        Some(somaxconn) if somaxconn <= limit => Reason {
            cause: format!("the limit of {limit} is capped by net.core.somaxconn = {somaxconn}"),
            mend: format!("{}, {RESTART}", raise_somaxconn()),
        },
        Some(somaxconn) => {
            let also =
                if somaxconn < wanted { format!("{}; ", raise_somaxconn()) } else { String::new() };
            Reason {
                cause: format!(
                    "the limit of {limit} is the program's own: net.core.somaxconn = {somaxconn} \
                     allows more"
                ),
                mend: format!("{also}raise {setting}, to {wanted}, {RESTART}"),
            }
        }
        None => Reason {
            cause: format!("the limit is {limit}"),
            mend: format!(
                "raise net.core.somaxconn and {setting}, to at least {wanted}, {RESTART}"
            ),
        },
    }
}

/// A limit that would have held the largest burst, and at least twice the one there is. Before Linux 5.5 it
/// has 16 bits (`sk_max_ack_backlog`); where it has more, that is no bound.
fn wanted(limit: u64, burst: u64, members: u64) -> u64 {
    const NARROW: u64 = u16::MAX as u64;
    const MOST: u64 = i32::MAX as u64;
    let most = if limit < NARROW { NARROW } else { MOST.max(limit) };
    (limit + burst / members.max(1)).max(2 * limit).max(16).next_power_of_two().min(most)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate of a counter: positive, and rounding is meant"
)]
fn whole(n: f64) -> u64 {
    n.ceil() as u64
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
    let Reason { cause, mend } = reason(look);
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{n} overflows in {spans} of the last {of} spans of five minutes; accept is fast"
            ),
            cause: Some(cause),
            mend,
            values: vec![
                ("overflows", n as f64),
                ("spans", spans as f64),
                ("limit", look.it.limit as f64),
            ],
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_ever_lowered() {
        assert_eq!(16, wanted(1, 0, 1));
        assert_eq!(256, wanted(128, 0, 1));
        assert_eq!(1024, wanted(128, 600, 1));
        assert_eq!(512, wanted(128, 600, 4));
        assert_eq!(65_535, wanted(60_000, 0, 1));
        for limit in [0, 1, 65_534, 65_535, 65_536, 100_000, 1 << 30, i32::MAX as u64] {
            assert!(limit <= wanted(limit, 1, 1), "{limit}");
        }
    }
}
