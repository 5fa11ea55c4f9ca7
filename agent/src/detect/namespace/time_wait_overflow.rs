//! More connections ended than `TIME_WAIT` has room for (`tcp_time_wait`, net/ipv4/tcp_minisocks.c;
//! `inet_twsk_alloc`, net/ipv4/inet_timewait_sock.c).

use super::{At, TIME_WAIT_OVERFLOW};
use crate::{
    detect::{
        command::{inside, set_sysctl},
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
    time::Nanos,
};

const WINDOW: Nanos = minutes(5);

pub(super) const RULE: Rule<super::Namespaces> = Rule {
    about: About {
        name: "TimeWaitOverflow",
        summary: "No room for connections in TIME_WAIT",
        why: "What ends beyond the limit skips TIME_WAIT: late segments of an old connection may reach a \
              later one. TIME_WAIT itself is no fault.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[Threshold {
            name: "overflows",
            default: 1.0,
            range: Range::COUNT,
            help: "Connections without TIME_WAIT in five minutes",
        }],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least] = look.thresholds();
    look.it.field("TCPTimeWaitOverflow")?;
    let window = look.within(WINDOW);
    let n = window.by[TIME_WAIT_OVERFLOW];
    if n == 0 {
        return Ok(Sight::Fine);
    }
    if (n as f64) < least {
        return Ok(Sight::Between);
    }
    let mut seen =
        format!("{n} connections without TIME_WAIT in {:.0} s", window.over.as_seconds());
    let mut values = vec![("overflows", n as f64)];
    let waiting = look.it.namespace.sockstat.map(|it| it.time_wait);
    if let Ok(waiting) = waiting {
        seen.push_str(&format!("; {waiting} in TIME_WAIT now"));
        values.push(("time_wait", waiting as f64));
    }
    let limit = look.it.namespace.sysctls.get("tcp_max_tw_buckets").copied();
    values.extend(limit.map(|limit| ("limit", limit as f64)));
    let name = "net.ipv4.tcp_max_tw_buckets";
    let netns = look.it.namespace.netns;
    wrong(
        Severity::Warning,
        Evidence {
            seen,
            cause: limit.map(|limit| format!("{name} is {limit}")),
            mend: limit.map_or_else(
                || inside(look.now, netns, &format!("sysctl {name}")),
                |limit| set_sysctl(look.now, netns, &format!("{name}={}", limit.saturating_mul(2))),
            ),
            values,
        },
    )
}
