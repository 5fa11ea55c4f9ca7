//! SYNs are refused for want of room in the SYN queue, which only happens where no cookies are sent: it
//! is longer than the accept-queue limit, or all but a quarter of `tcp_max_syn_backlog` is taken
//! (`tcp_conn_request`, net/ipv4/tcp_input.c). The second is told with drops of no known reason.

use super::{At, ESTABLISHED, SYN_QUEUE_DROPS, SYNS};
use crate::{
    detect::{
        command::set_sysctl,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "SynQueueOverflow",
        summary: "SYN queue overflowed and no cookies are sent",
        why: "Clients try again after a second, and again: connects are slow, or fail.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[Threshold {
            name: "drops",
            default: 10.0,
            range: Range::COUNT,
            help: "SYNs in five minutes that found no room in the SYN queue",
        }],
        inhibited_by: &["SynFlood"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [drops] = look.thresholds();
    if super::syn_queue_drops(look.it)? == 0 || super::sysctl(look, "tcp_syncookies")? != 0 {
        return Ok(Sight::Fine);
    }
    let window = look.within(minutes(5));
    let n = window.by[SYN_QUEUE_DROPS];
    if n == 0 {
        return Ok(Sight::Fine);
    }
    if (n as f64) < drops {
        return Ok(Sight::Between);
    }
    let backlog = super::sysctl(look, "tcp_max_syn_backlog").ok();
    let backlog = backlog.map_or_else(String::new, |n| format!(", tcp_max_syn_backlog = {n}"));
    let now = look.it.syn_queue.map_or_else(|_| String::new(), |n| format!("; {n} in it now"));
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{n} of {} SYNs found no room in the SYN queue in {:.0} s{now}; {} handshakes \
                 completed",
                window.by[SYNS],
                window.over.as_seconds(),
                window.by[ESTABLISHED]
            ),
            cause: Some(format!(
                "tcp_syncookies = 0, and the queue holds no more than the accept-queue limit, {}{backlog}",
                look.it.limit
            )),
            mend: set_sysctl(look.now, look.it.key.netns, "net.ipv4.tcp_syncookies=1"),
            values: vec![
                ("drops", n as f64),
                ("syns", window.by[SYNS] as f64),
                ("limit", look.it.limit as f64),
            ],
        },
    )
}
