//! Connections that the program has accepted and never closes.
//!
//! Certain: they are open by count and in no socket table. A reset connection is unhashed at once and
//! lives on as long as its descriptor (`tcp_done`, net/ipv4/tcp.c), so only accepted less closed shows
//! it. Likely: their number never comes back to what it was, while traffic does not grow. What only
//! holds connections, a pool or streams, closes hardly any: it cannot be judged, and is no leak.

use super::{
    At, Listeners,
    floors::{Floor, Floors},
};
use crate::{
    detect::{
        command,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::{Absent, Known},
    model::snapshot::{Listener, Namespace},
    time::{Monotonic, Nanos},
};

/// Floors that must rise one after the other, and the one before.
const FLOORS: usize = 5;
/// Spans to a window: two windows hold all floors, and one more that is cut.
const SPANS: f64 = 3.0;
/// More accepts than so many times those of before explain growth.
const STEADY: f64 = 1.2;
/// Growth that slows down more than this comes to an end: connections that live long.
const UNABATED: f64 = 0.9;
/// Where fewer of those accepted were closed they may all live long. Of connections that live for
/// random times this many are closed when growth over all floors is small or slows down as above.
const CLOSED: f64 = 2.0 / 3.0;
/// The share of what is open that is no leak.
const SMALL: f64 = 0.1;
/// The number of connections that come and go independently strays by its square root; up to so many
/// times that it does not rise. Of 64 simulated days of 200 to 2,000 streams, 3 times would be passed in
/// three, 4 times in none.
const STRAY: f64 = 4.0;
/// Critical when descriptors last no longer.
const CRITICAL: Nanos = minutes(60);

pub(super) const RULE: Rule<Listeners> = Rule {
    about: About {
        name: "ConnectionLeak",
        summary: "Connections are accepted and never closed",
        why: "Each holds a descriptor and memory; when no descriptor is left, accept fails.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "held",
                default: 20.0,
                range: Range::COUNT,
                help: "Open connections that are in no socket table, and a tenth of all",
            },
            Threshold {
                name: "rise",
                default: 50.0,
                range: Range::COUNT,
                help: "Connections by which the floor rises in 1 2/3 windows, a tenth of all, and \
                       four times the square root of all",
            },
            Threshold {
                name: "window_seconds",
                default: 900.0,
                range: Range::Of(10.0, 86_400.0),
                help: "Floors are those of thirds of it; a leak is told within two",
            },
        ],
        inhibited_by: &["CloseWaitBuildup"],
    },
    judge,
};

/// The place of `window_seconds`.
pub(super) const WINDOW: usize = 2;

/// What is remembered of open connections.
#[derive(Default)]
pub(super) struct Remembered {
    floors: Floors<FLOORS>,
    /// When the newest read of the table was.
    read: Monotonic,
    /// The fewest open connections since then.
    lowest: u64,
    /// What was open and in no table, in the last two reads, the newest first.
    held: [Option<u64>; 2],
    /// Whether a table has shown any of its connections.
    is_in_tables: bool,
}

impl Remembered {
    /// Takes in how many are open.
    pub(super) fn see(
        &mut self,
        at: Monotonic,
        it: &Listener,
        namespace: Option<&Namespace>,
        window: f64,
    ) {
        let counters = &it.counters;
        let (Ok(open), Ok(accepted), Ok(closed)) = (it.open, counters.accepted, counters.closed)
        else {
            return *self = Self::default();
        };
        let span = Nanos::from_seconds(window / SPANS).unwrap_or(minutes(5));
        self.floors.see(at, open, [accepted, closed], span);
        self.lowest = self.lowest.min(open);
        let Some(Ok(read)) = namespace.map(|namespace| &namespace.table) else { return };
        if read.at == self.read {
            return;
        }
        let is_first = std::mem::replace(&mut self.read, read.at) == Monotonic::default();
        let lowest = std::mem::replace(&mut self.lowest, open);
        let shown = it.connections.ok().filter(|_| !read.table.is_partial && !is_first);
        let held = shown.map(|shown| {
            self.is_in_tables |= 0 < shown.accepted + shown.fin_wait + shown.time_wait;
            lowest.saturating_sub(shown.accepted + shown.fin_wait)
        });
        self.held = [held, self.held[0]];
    }

    /// Open connections that no table has, in two reads. `None`: cannot be told.
    fn held(&self) -> Option<u64> {
        Some(self.held[0]?.min(self.held[1]?))
    }
}

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [least_held, least_rise, window] = look.thresholds();
    let open = look.it.open?;
    look.it.counters.closed?;
    if look.it.members.is_empty() {
        // what is left of it ends with its connections
        return Ok(if open == 0 { Sight::Fine } else { Sight::Between });
    }
    if open == 0 {
        return Ok(Sight::Fine);
    }
    let held = look.memory.leak.held();
    let is_held = |least| held.is_some_and(|held| is_leak(held, open, least));
    if is_held(least_held) && !may_be_elsewhere(look, open) {
        return certain(look, open, held.unwrap_or_default());
    }
    let Some(floors) = look.memory.leak.floors.all() else {
        // the table alone would tell
        return held.map(|_| Sight::Fine).ok_or(Absent::TooEarly);
    };
    let Some(rise) = rise(floors, least_rise) else {
        let goes_on = floors[FLOORS - 2].lowest < floors[FLOORS - 1].lowest;
        let is_better = !goes_on && !is_held(least_held / 2.0);
        return Ok(if is_better { Sight::Fine } else { Sight::Between });
    };
    if (rise.closed as f64) < CLOSED * rise.accepted as f64 {
        return Err(Absent::TooEarly);
    }
    likely(look, open, &rise, window)
}

fn is_leak(n: u64, of: u64, least: f64) -> bool {
    least.max(SMALL * of as f64) <= n as f64
}

/// Whether its connections may be in the table at other addresses than its own, as with
/// `IP_TRANSPARENT`: it was never seen with any, and there are as many that nobody here accepted.
fn may_be_elsewhere(look: &At<'_, '_>, open: u64) -> bool {
    if look.memory.leak.is_in_tables {
        return false;
    }
    let Some(namespace) = super::namespace(look.now, look.it) else { return true };
    let (Ok(connected), Ok(read)) = (namespace.connected, &namespace.table) else { return true };
    let placed: u64 = read.table.listeners.values().map(|it| it.accepted + it.queued).sum();
    open <= connected.saturating_sub(placed)
}

/// Floors that rise.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rise {
    first: u64,
    last: u64,
    /// What was accepted and closed from the first one's end to the last one's.
    accepted: u64,
    closed: u64,
}

/// How far floors rise one after the other, unabated, and more than traffic explains. `None`: they do
/// not.
fn rise(floors: &[Floor; FLOORS], least: f64) -> Option<Rise> {
    if !floors.windows(2).all(|pair| pair[0].lowest < pair[1].lowest) {
        return None;
    }
    let [first, _, middle, _, last] = floors;
    let moved =
        |i: usize, from: &Floor, to: &Floor| to.counters[i].saturating_sub(from.counters[i]);
    let (early, late) = (moved(0, first, middle) as f64, moved(0, middle, last) as f64);
    let more = (late / early.max(1.0)).max(1.0);
    // from the first floor to the last it is twice as far as from the early half to the late one
    let rise = last.lowest as f64 - first.lowest as f64 * more * more;
    let gained = |from: &Floor, to: &Floor| (to.lowest - from.lowest) as f64;
    let is_unabated = UNABATED * gained(first, middle) <= gained(middle, last);
    let found = Rise {
        first: first.lowest,
        last: last.lowest,
        accepted: moved(0, first, last),
        closed: moved(1, first, last),
    };
    let strays = STRAY * (last.lowest as f64).sqrt();
    let is_enough = least.max(SMALL * first.lowest as f64).max(strays) < rise;
    (is_enough && more <= STEADY && is_unabated).then_some(found)
}

fn certain(look: &At<'_, '_>, open: u64, held: u64) -> Known<Sight> {
    let mut seen =
        format!("{held} of {open} open connections are in no socket table, in two reads of it");
    super::say_fds(&mut seen, look);
    let mend = look.it.owners.first().map_or_else(
        || super::ss(look, "-tanp"),
        |pid| {
            let ss = command::inside(look.now, look.it.key.netns, "ss -tanp");
            format!("ls -l /proc/{pid}/fd | grep -c socket: ; {ss} | grep -c pid={pid},")
        },
    );
    wrong(
        severity(look),
        Evidence {
            seen,
            cause: Some(
                "the peers have reset them, and the program still holds their descriptors"
                    .to_owned(),
            ),
            mend,
            values: vec![("open", open as f64), ("held", held as f64)],
        },
    )
}

fn likely(look: &At<'_, '_>, open: u64, rise: &Rise, window: f64) -> Known<Sight> {
    let Rise { first, last, accepted, closed } = *rise;
    let minutes = window / SPANS * (FLOORS - 1) as f64 / 60.0;
    let per_minute = |n: u64| n as f64 / minutes;
    let mut seen = format!(
        "{open} open; never fewer than {last}, {minutes:.0} min ago {first}: {:.1} more each minute, \
         while {:.1} were accepted and {:.1} closed",
        per_minute(last - first),
        per_minute(accepted),
        per_minute(closed)
    );
    super::say_fds(&mut seen, look);
    wrong(
        severity(look),
        Evidence {
            seen,
            cause: None,
            mend: super::ss(look, "-tnpo state established"),
            values: vec![
                ("open", open as f64),
                ("floor", last as f64),
                ("floor_before", first as f64),
                ("rise_per_minute", per_minute(last - first)),
            ],
        },
    )
}

fn severity(look: &At<'_, '_>) -> Severity {
    match super::fds_last(look) {
        Some(left) if left <= CRITICAL => Severity::Critical,
        Some(_) | None => Severity::Warning,
    }
}
