//! A sample takes long: peaks of queues are then seen late, and the agent costs more than it should.

use super::{At, MICROSECONDS, SAMPLES};
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, wrong},
    },
    input::{Known, Source},
    time::Nanos,
};

const WINDOW: Nanos = minutes(10);
/// Below this share of the threshold it is over.
const BELOW: f64 = 0.8;

pub(super) const RULE: Rule<super::Agent> = Rule {
    about: About {
        name: "SampleSlow",
        summary: "A sample of the agent takes long",
        why: "What happens between two samples is told later, and the agent takes more of a processor.",
        timing: Timing { raise_for: minutes(1), clear_for: minutes(5) },
        min_age: WINDOW,
        outlives: minutes(0),
        thresholds: &[Threshold {
            name: "seconds",
            default: 0.05,
            range: Range::Of(0.001, 60.0),
            help: "Mean time of a sample, over ten minutes",
        }],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [most] = look.thresholds();
    let window = look.history.growth(WINDOW)?;
    let samples = window.by[SAMPLES].max(1) as f64;
    let mean = window.by[MICROSECONDS] as f64 / 1e6 / samples;
    if mean <= most {
        return Ok(if mean <= BELOW * most { Sight::Fine } else { Sight::Between });
    }
    let parts = look.it.durations.iter().filter(|(source, _)| **source != Source::Total);
    let longest = parts.max_by_key(|(_, durations)| durations.sum);
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!("{mean:.3} s on average over {samples:.0} samples"),
            cause: longest.map(|(source, _)| format!("{} takes the most of it", source.name())),
            mend: "backlogd doctor".to_owned(),
            values: vec![("seconds", mean)],
        },
    )
}
