//! Events that the eBPF programs did not count: counters of listeners are then too low.

use super::{At, LOST, MAP_FULL, NO_SLOT, OPENS, STALE};
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
    time::Nanos,
};

const WINDOW: Nanos = minutes(10);

pub(super) const RULE: Rule<super::Agent> = Rule {
    about: About {
        name: "EventsLost",
        summary: "The agent misses events of the kernel",
        why: "Connections that nobody counted are missing in established, accepted and open.",
        timing: Timing { raise_for: minutes(1), clear_for: minutes(1) },
        min_age: minutes(1),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "events",
                default: 100.0,
                range: Range::COUNT,
                help: "Events lost in ten minutes",
            },
            Threshold {
                name: "ratio",
                default: 0.01,
                range: Range::SHARE,
                help: "The same as a share of the handshakes: some kernels always lose a few",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least, ratio] = look.thresholds();
    let agent = look.it;
    for count in [agent.no_slot, agent.stale, agent.map_full] {
        count?;
    }
    let by = look.within(WINDOW).by;
    let sums = look.memory.sums.growth_within(WINDOW).by;
    let unseen = sums[LOST] + by[STALE];
    // one listener without a slot is not seen at all, and one entry stands for all events of its kind
    let whole = by[NO_SLOT] + by[MAP_FULL];
    if unseen + whole == 0 {
        return Ok(Sight::Fine);
    }
    let is_many = least <= unseen as f64 && ratio * sums[OPENS] as f64 <= unseen as f64;
    if whole == 0 && !is_many {
        let is_few =
            2.0 * (unseen as f64) < least || 2.0 * unseen as f64 <= ratio * sums[OPENS] as f64;
        return Ok(if is_few { Sight::Fine } else { Sight::Between });
    }
    let (used, slots) = agent.slots.unwrap_or_default();
    let cause = (0 < by[NO_SLOT] && used == slots).then(|| {
        format!("all {slots} slots are taken: more sockets listen than the agent has room for")
    });
    let mend = if cause.is_some() { "backlogd config show" } else { "backlogd doctor" };
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "in 10 min: {} of {} handshakes not seen, {} events of slots given away, {} listening \
                 sockets without a slot, {} entries without room",
                sums[LOST], sums[OPENS], by[STALE], by[NO_SLOT], by[MAP_FULL]
            ),
            cause,
            mend: mend.to_owned(),
            values: vec![
                ("lost_in_kernel", sums[LOST] as f64),
                ("stale", by[STALE] as f64),
                ("no_slot", by[NO_SLOT] as f64),
                ("map_full", by[MAP_FULL] as f64),
            ],
        },
    )
}
