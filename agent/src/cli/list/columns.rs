//! The columns of `list`; pure.

use crate::{
    cli::{
        out::{Align, Cell, Column, Paint, Table},
        span,
    },
    publish::api::{Durations, Listener, Process, Workload},
};

/// How full a queue is when it gets a colour.
const NEARLY_FULL: f64 = 0.8;

/// What a column shows of a listener.
type Show = fn(&Listener) -> Cell;

/// Shown where any listener has one, and in `-o wide`.
const WORKLOAD: &str = "WORKLOAD";

/// The columns that fit 100 characters where names are short, then those of `-o wide`, so that a column
/// has the same place in both.
const COLUMNS: [(&str, Align, Show); 11] = [
    ("ADDRESS", Align::Left, |listener| Cell::new(&listener.address)),
    ("PROCESS", Align::Left, process),
    (WORKLOAD, Align::Left, |listener| {
        workload(&listener.workload).map_or_else(Cell::missing, |text| Cell::new(&text))
    }),
    ("QUEUE", Align::Right, queue),
    ("MAX", Align::Right, |listener| count(listener.length_max)),
    ("DROPS", Align::Right, |listener| count(listener.drops)),
    ("SYN", Align::Right, |listener| count(listener.syn_queue)),
    ("ACC/S", Align::Right, |listener| rate(listener.rates_per_second.accepted)),
    ("OPEN", Align::Right, |listener| count(listener.open)),
    ("CLOSE-WAIT", Align::Right, |listener| {
        count(listener.connections.as_ref().map(|connections| connections.close_wait))
    }),
    ("STATE", Align::Left, state),
];

const WIDE: [(&str, Align, Show); 15] = [
    ("NETNS", Align::Right, |listener| Cell::new(&listener.netns.to_string())),
    ("SOCKETS", Align::Right, |listener| Cell::new(&listener.sockets.to_string())),
    ("SKDROPS", Align::Right, |listener| count(listener.socket_drops)),
    ("SYNS", Align::Right, |listener| count(listener.syns)),
    ("ESTABLISHED", Align::Right, |listener| count(listener.established)),
    ("ACCEPTED", Align::Right, |listener| count(listener.accepted)),
    ("WAIT-P50", Align::Right, |listener| wait(listener, |wait| wait.p50)),
    ("WAIT-P99", Align::Right, |listener| wait(listener, |wait| wait.p99)),
    ("CLOSED", Align::Right, |listener| count(listener.closed)),
    ("DUR-P50", Align::Right, duration),
    ("ABORTED", Align::Right, |listener| count(listener.aborted.listener_closed)),
    ("RESETS", Align::Right, |listener| count(listener.aborted.reset)),
    ("FULL-S", Align::Right, |listener| Cell::new(&format!("{:.1}", listener.full_seconds))),
    ("IDLE", Align::Right, idle),
    ("FDS", Align::Right, fds),
];

/// One row for each listener, in their order.
pub(super) fn table(listeners: &[Listener], wide: bool) -> Table {
    let more: &[_] = if wide { &WIDE } else { &[] };
    let has_workload = listeners.iter().any(|listener| workload(&listener.workload).is_some());
    let columns = COLUMNS.iter().filter(|(name, ..)| *name != WORKLOAD || has_workload || wide);
    let shown: Vec<_> = columns.chain(more).collect();
    let column = |&&(name, align, _): &&(&'static str, Align, Show)| {
        let shrinks = matches!(name, "ADDRESS" | "PROCESS" | WORKLOAD);
        Column { name, align, shrinks }
    };
    let row = |listener| shown.iter().map(|(_, _, show)| show(listener)).collect();
    Table { columns: shown.iter().map(column).collect(), rows: listeners.iter().map(row).collect() }
}

/// Name and pid of the first owner, and how many more there are.
fn process(listener: &Listener) -> Cell {
    let Some((owner, more)) = listener.owners.split_first() else {
        return listener.comm.as_deref().map_or_else(Cell::missing, Cell::new);
    };
    let name = format!("{}/{}", owner.comm.as_deref().unwrap_or("-"), owner.pid);
    match more.len() {
        0 => Cell::new(&name),
        n => Cell::new(&format!("{name} +{n}")),
    }
}

/// The pod, else the systemd unit, else the container.
fn workload(of: &Workload) -> Option<String> {
    /// As `docker ps` and `crictl ps` show an id.
    const SHORT: usize = 12;
    let container = of.container_id.as_deref();
    let id = || container.map(|id| id.chars().take(SHORT).collect());
    let Some(pod) = of.pod.as_deref() else { return of.unit.clone().or_else(id) };
    let namespace = of.namespace.as_deref().map_or_else(String::new, |it| format!("{it}/"));
    let container = of.container.as_deref().map_or_else(String::new, |it| format!("[{it}]"));
    Some(format!("{namespace}{pod}{container}"))
}

fn queue(listener: &Listener) -> Cell {
    let cell = Cell::new(&format!("{}/{}", listener.length, listener.limit));
    let is_nearly_full = listener.fill_ratio_max.is_some_and(|ratio| NEARLY_FULL <= ratio);
    cell.painted(if is_nearly_full { Paint::Yellow } else { Paint::Plain })
}

/// In words, so that it can be read without colours.
fn state(listener: &Listener) -> Cell {
    let is_full = listener.limit < listener.length
        || listener.members.iter().any(|member| member.limit < member.length);
    match (listener.sockets, is_full, listener.stalled) {
        (0, ..) => Cell::new("GONE"),
        (_, true, Some(true)) => Cell::new("FULL,STALLED").painted(Paint::Red),
        (_, true, _) => Cell::new("FULL").painted(Paint::Red),
        (_, false, Some(true)) => Cell::new("STALLED").painted(Paint::Red),
        // With an empty queue nobody has to accept.
        (_, false, None) if 0 < listener.length => Cell::missing(),
        (_, false, _) => Cell::new("ok"),
    }
}

fn idle(listener: &Listener) -> Cell {
    listener.seconds_since_accept.map_or_else(Cell::missing, |s| Cell::new(&span::show(s)))
}

/// A quantile of the time in the accept queue.
fn wait(listener: &Listener, quantile: fn(&Durations) -> Option<f64>) -> Cell {
    span_of(listener.accept_wait_seconds.as_ref().and_then(quantile))
}

/// Half of the connections were closed after at most so long.
fn duration(listener: &Listener) -> Cell {
    span_of(listener.connection_duration_seconds.as_ref().and_then(|duration| duration.p50))
}

fn span_of(seconds: Option<f64>) -> Cell {
    seconds.map_or_else(Cell::missing, |s| Cell::new(&span::show_short(s)))
}

/// Open descriptors and limit of the owner that is nearest to its limit.
fn fds(listener: &Listener) -> Cell {
    // A share of the limit in parts per million, so that it can be compared.
    let used = |owner: &&Process| match (owner.open_fds, owner.max_fds) {
        (Some(open), Some(max)) => {
            u128::from(open).saturating_mul(1_000_000) / u128::from(max.max(1))
        }
        _ => 0,
    };
    let Some(owner) = listener.owners.iter().max_by_key(used) else { return Cell::missing() };
    let text = |n: Option<u64>| match n {
        Some(u64::MAX) => "unlimited".into(),
        Some(n) => n.to_string(),
        None => "-".into(),
    };
    match (owner.open_fds, owner.max_fds) {
        (None, None) => Cell::missing(),
        (open, max) => Cell::new(&format!("{}/{}", text(open), text(max))),
    }
}

/// A count in at most six characters: exact to 999,999, then `1.2M`.
fn count(n: Option<u64>) -> Cell {
    const UNITS: [(u64, char); 4] = [
        (1_000_000_000_000_000, 'P'),
        (1_000_000_000_000, 'T'),
        (1_000_000_000, 'G'),
        (1_000_000, 'M'),
    ];
    let Some(n) = n else { return Cell::missing() };
    match UNITS.into_iter().find(|&(unit, _)| unit <= n) {
        None => Cell::new(&n.to_string()),
        Some((unit, sign)) => Cell::new(&format!("{}.{}{sign}", n / unit, n % unit / (unit / 10))),
    }
}

/// A rate: one decimal while it is small.
fn rate(per_second: Option<f64>) -> Cell {
    match per_second {
        None => Cell::missing(),
        Some(rate) if rate == 0.0 || 9.95 <= rate => Cell::new(&format!("{rate:.0}")),
        Some(rate) => Cell::new(&format!("{rate:.1}")),
    }
}
