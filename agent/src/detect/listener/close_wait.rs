//! Peers have closed and the program has not: CLOSE_WAIT lasts until it does, for ever if need be
//! (`tcp_fin`, net/ipv4/tcp_input.c). A connection whose peer has closed while it waited for accept is
//! in that state too and is not counted here.

use std::fmt::Write as _;

use super::{
    At, Listeners,
    floors::{Floor, Floors},
};
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::{Absent, Known},
    model::snapshot::Listener,
    time::{Monotonic, Nanos},
};

/// Floors are those of halves of the window.
const HALVES: f64 = 2.0;
/// Floors that must rise one after the other, and the one before: what stays is not growth.
const FLOORS: usize = 3;

/// The share of a process's descriptors from which on it is critical.
const CRITICAL_FDS: f64 = 0.8;

pub(super) const RULE: Rule<Listeners> = Rule {
    about: About {
        name: "CloseWaitBuildup",
        summary: "Peers have closed and the program has not",
        why: "Each such connection holds a descriptor until the program closes it; when none is left, \
              accept fails.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "connections",
                default: 20.0,
                range: Range::COUNT,
                help: "Connections in CLOSE_WAIT",
            },
            Threshold {
                name: "share",
                default: 0.5,
                range: Range::SHARE,
                help: "Share of the accepted connections; fewer must grow from half to half",
            },
            Threshold {
                name: "window_seconds",
                default: 600.0,
                range: Range::Of(10.0, 86_400.0),
                help: "Never fewer in half of this time; below `share`, also ever more from half to half",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

/// The place of `window_seconds`.
pub(super) const WINDOW: usize = 2;

/// How many were in CLOSE_WAIT at least.
pub(super) type Remembered = Floors<FLOORS>;

/// Takes in the newest read of the table.
pub(super) fn see(memory: &mut Remembered, at: Monotonic, it: &Listener, window: f64) {
    let half = Nanos::from_seconds(window / HALVES).unwrap_or(minutes(5));
    match it.connections {
        Ok(connections) => memory.see(at, connections.close_wait, [0, 0], half),
        Err(_) => *memory = Remembered::default(),
    }
}

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least, share, window] = look.thresholds();
    if look.it.members.is_empty() {
        return Ok(Sight::Fine);
    }
    let connections = look.it.connections?;
    let (n, accepted) = (connections.close_wait, connections.accepted);
    if (n as f64) <= least {
        return Ok(if (n as f64) < least / 2.0 { Sight::Fine } else { Sight::Between });
    }
    let floors = &look.memory.close_wait;
    let last = floors.last().ok_or(Absent::TooEarly)?;
    let is_most = share * (accepted as f64) < n as f64;
    let is_growth =
        |floors: &[Floor; FLOORS]| floors.windows(2).all(|pair| pair[0].lowest < pair[1].lowest);
    let grows = floors.all().is_some_and(is_growth);
    if (last.lowest as f64) <= least || !(is_most || grows) {
        return Ok(Sight::Between);
    }
    let fds = fds(look);
    let is_critical = fds.is_some_and(|fds| CRITICAL_FDS < fds);
    let severity = if is_critical { Severity::Critical } else { Severity::Warning };
    let half = window / HALVES;
    let mut seen = format!(
        "{n} of {accepted} accepted connections are in CLOSE_WAIT, never fewer than {} in {half:.0} s",
        last.lowest
    );
    if grows && let Some([first, ..]) = floors.all() {
        _ = write!(seen, " and {} before", first.lowest);
    }
    super::say_fds(&mut seen, look);
    wrong(
        severity,
        Evidence {
            seen,
            cause: Some("the peers have closed; the program has not called close(2)".to_owned()),
            mend: super::ss(look, "-tnpo state close-wait"),
            values: vec![
                ("close_wait", n as f64),
                ("accepted_connections", accepted as f64),
                ("lowest", last.lowest as f64),
            ],
        },
    )
}

/// The largest share of its descriptors that an owner has open.
fn fds(look: &At<'_, '_>) -> Option<f64> {
    let share = |pid| {
        let process = &look.now.processes.get(pid)?.now;
        Some(process.open_fds.ok()? as f64 / process.max_fds.ok()?.max(1) as f64)
    };
    look.it.owners.iter().filter_map(share).reduce(f64::max)
}
