//! Listen drops of the listeners and the namespace's ListenDrops (`tcp_listendrop`, include/net/tcp.h) do
//! not grow alike: what the agent says of drops cannot be trusted then.

use super::{At, KERNEL, OURS};
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, wrong},
    },
    input::Known,
    time::Nanos,
};

const WINDOW: Nanos = minutes(30);

pub(super) const RULE: Rule<super::Namespaces> = Rule {
    about: About {
        name: "CountersDisagree",
        summary: "Listen drops of the listeners and of the kernel differ",
        why: "The drops that the agent shows are not those that happen: a fault of the agent.",
        // what is handed out a sample later is no difference
        timing: Timing { raise_for: minutes(10), clear_for: minutes(10) },
        min_age: WINDOW,
        outlives: minutes(0),
        thresholds: &[
            Threshold {
                name: "drops",
                default: 5.0,
                range: Range::Of(0.0, f64::INFINITY),
                help: "Difference in half an hour",
            },
            Threshold {
                name: "ratio",
                default: 0.01,
                range: Range::SHARE,
                help: "The same as a share of the drops",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least, share] = look.thresholds();
    look.it.field("ListenDrops")?;
    for listener in look.it.listeners {
        listener.counters.drops?;
    }
    let grown = look.memory.growth(WINDOW)?;
    let (kernel, ours) = (grown.by[KERNEL], grown.by[OURS]);
    let apart = kernel.abs_diff(ours) as f64;
    let most = least.max(share * kernel as f64);
    if apart <= most {
        return Ok(if apart <= most / 2.0 { Sight::Fine } else { Sight::Between });
    }
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{ours} listen drops at the listeners, {kernel} by ListenDrops, in {:.0} min without \
                 a change of listeners",
                grown.over.as_seconds() / 60.0
            ),
            cause: None,
            mend: "backlogd doctor".to_owned(),
            values: vec![("listen_drops", kernel as f64), ("listener_drops", ours as f64)],
        },
    )
}
