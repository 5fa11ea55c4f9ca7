//! One event as a line for people; pure.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use crate::{
    cli::{out, span},
    event::{Event, EventKind, Task},
    time::{Nanos, UnixTime},
};

/// Names and widths of the columns but the last. A longer cell pushes the rest of its line aside.
const COLUMNS: [(&str, usize); 5] =
    [("TIME", 12), ("EVENT", 13), ("LOCAL", 21), ("PEER", 21), ("PROCESS", 16)];

/// What stands above the lines.
pub(super) fn header() -> String {
    line(&COLUMNS.map(|(name, _)| name.to_owned()), "DETAIL")
}

/// An event, its time by the wall clock, and the listener's owner.
pub(super) fn show(event: &Event, at: UnixTime, owner: Option<&Task>) -> String {
    let address = |addr: Option<SocketAddr>| match addr {
        None => "-".to_owned(),
        // its port is not chosen yet
        Some(SocketAddr::V6(addr)) if addr.port() == 0 => format!("[{}]:*", addr.ip()),
        Some(addr) if addr.port() == 0 => format!("{}:*", addr.ip()),
        Some(addr) => addr.to_string(),
    };
    let process = |task: &Task| out::printable(&format!("{}/{}", task.comm, task.pid));
    let cells = [
        time_of_day(at),
        event.kind.name().to_owned(),
        address(event.local),
        address(event.peer),
        event.task.as_ref().or(owner).map_or_else(|| "-".to_owned(), process),
    ];
    line(&cells, &detail(event))
}

/// In UTC, with milliseconds.
fn time_of_day(at: UnixTime) -> String {
    let milliseconds = at.0 / 1_000_000;
    let seconds = milliseconds / 1000;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, milliseconds % 1000)
}

/// How long, which error, for which reason: what there is of it.
fn detail(event: &Event) -> String {
    let mut parts = Vec::new();
    match (event.kind, event.span) {
        (EventKind::Accept, Some(wait)) => parts.push(format!("waited {}", short(wait))),
        (_, Some(duration)) => parts.push(format!("after {}", short(duration))),
        (_, None) => {}
    }
    parts.extend(event.errno.map(|errno| errno.to_string()));
    parts.extend(event.reason.map(|reason| reason.name().to_owned()));
    parts.join(" ")
}

/// `850.0µs`, `12.3ms`, `3.2s`, `5m`.
fn short(duration: Nanos) -> String {
    match Duration::from_nanos(duration.0) {
        long if Duration::from_secs(60) <= long => span::show(long.as_secs_f64()),
        brief => format!("{brief:.1?}"),
    }
}

fn line(cells: &[String; 5], last: &str) -> String {
    let mut line = String::with_capacity(120);
    for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
        // writing to a string does not fail
        _ = write!(line, "{cell:width$}  ");
    }
    line.push_str(last);
    line.truncate(line.trim_end().len());
    line + "\n"
}
