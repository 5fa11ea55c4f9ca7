//! SYNs are answered with cookies for minutes: the SYN queue shares the accept-queue limit, and bursts
//! are larger (`inet_csk_reqsk_queue_is_full`, include/net/inet_connection_sock.h). Nothing is lost but
//! options of the connection.

use super::{
    At, COOKIES, SYNS,
    small_backlog::{Reason, reason},
};
use crate::{
    detect::{
        LIMIT_WANTED,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "SynCookies",
        summary: "SYNs are answered with cookies again and again",
        why: "A connection by cookie has no window scale and no SACK unless the client sends \
              timestamps, and when its last ACK finds the accept queue full the client is never told.",
        timing: Timing { raise_for: minutes(2), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "cookies",
                default: 100.0,
                range: Range::COUNT,
                help: "Cookies in five minutes",
            },
            Threshold {
                name: "cookies_each_minute",
                default: 20.0,
                range: Range::COUNT,
                help: "Cookies in a minute, so that one burst is passed over",
            },
        ],
        inhibited_by: &["SynFlood", "AcceptQueueOverflow", "ListenBacklogTooSmall"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [cookies, each_minute] = look.thresholds();
    // 2: each SYN is answered so, full or not
    if look.it.counters.syncookies? == 0 || super::sysctl(look, "tcp_syncookies")? != 1 {
        return Ok(Sight::Fine);
    }
    let window = look.within(minutes(5));
    let n = window.by[COOKIES];
    if n == 0 {
        return Ok(Sight::Fine);
    }
    let minute = look.within(minutes(1)).by[COOKIES];
    if (n as f64) < cookies || (minute as f64) < each_minute {
        return Ok(Sight::Between);
    }
    let limit = look.it.limit;
    let Reason { wanted, raise, .. } = reason(look);
    wrong(
        Severity::Info,
        Evidence {
            seen: format!(
                "{n} of {} SYNs were answered with a cookie in {:.0} s",
                window.by[SYNS],
                window.over.as_seconds()
            ),
            cause: Some(format!("the limit of {limit} is too small for these bursts")),
            mend: raise.mend(),
            values: vec![
                ("cookies", n as f64),
                ("limit", limit as f64),
                (LIMIT_WANTED, wanted as f64),
            ],
        },
    )
}
