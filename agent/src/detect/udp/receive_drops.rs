//! Datagrams are dropped since nobody receives them in time (`__udp_enqueue_schedule_skb`,
//! net/ipv4/udp.c). Those with a wrong checksum count, too.

use super::{At, DROPS};
use crate::{
    detect::{
        command::inside,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
    time::Nanos,
};

const WINDOW: Nanos = minutes(5);
/// Drops that are not in the last minute, at least: a burst is over by then.
const LEAST_BEFORE: u64 = 60;

pub(super) const RULE: Rule<super::UdpSockets> = Rule {
    about: About {
        name: "UdpReceiveDrops",
        summary: "Datagrams are dropped since the receive buffer is full",
        why: "They are lost: whoever sent them waits for its own timeout, or never learns of it.",
        timing: Timing { raise_for: minutes(1), clear_for: minutes(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[Threshold {
            name: "per_second",
            default: 1.0,
            range: Range::Of(0.0, f64::INFINITY),
            help: "Drops each second, over five minutes",
        }],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [most] = look.thresholds();
    look.it.drops?;
    let last = look.within(minutes(1)).by[DROPS];
    if last == 0 {
        return Ok(Sight::Fine);
    }
    let window = look.history.growth(WINDOW)?;
    let (n, rate) = (window.by[DROPS], window.per_second(DROPS));
    if rate <= most || n.saturating_sub(last) < LEAST_BEFORE {
        return Ok(Sight::Between);
    }
    let (queue, limit) = (look.it.queue_bytes, look.it.limit_bytes);
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{n} datagrams dropped in {:.0} s, {last} of them in the last minute; {queue} of {limit} \
                 bytes wait now",
                window.over.as_seconds()
            ),
            cause: None,
            mend: {
                let ss = format!("ss -ulnpm sport = :{}", look.it.key.port);
                let ss = inside(look.now, look.it.key.netns, &ss);
                format!("{ss}; sysctl net.core.rmem_max")
            },
            values: vec![
                ("drops", n as f64),
                ("drops_per_second", rate),
                ("queue_bytes", queue as f64),
                ("limit_bytes", limit as f64),
            ],
        },
    )
}
