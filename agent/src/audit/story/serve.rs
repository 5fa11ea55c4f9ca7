//! Who accepts, how long that takes, and what becomes of the connections.

use super::some;
use crate::{
    errno::Errno,
    id::Pid,
    input::Absent,
    model::snapshot::{Listener, Process, Snapshot},
};

/// Who waits longer than this waits for a program that is slow.
const SLOW_SECONDS: f64 = 0.25;
/// Most owners whose descriptors are told.
const OWNERS: usize = 4;

pub(super) fn waits(listener: &Listener) -> Vec<String> {
    let waits = match &listener.accept_wait {
        Ok(waits) => waits,
        // said of the traffic already
        Err(_) if listener.counters.accepted.is_err() => return Vec::new(),
        Err(why) => return vec![format!("How long they wait for accept is not known: {why}.")],
    };
    let quantiles = (waits.quantile(0.5), waits.quantile(0.99));
    let (Some(half), Some(most)) = quantiles else { return Vec::new() };
    let verdict = if listener.stalled == Ok(true) {
        "That counts those that were accepted alone."
    } else if most < SLOW_SECONDS {
        "The program keeps up."
    } else {
        "The program is slow to accept: a longer queue would only turn drops into waiting."
    };
    let (half, most) = (short(half), short(most));
    vec![format!("Half waited at most {half} for accept, 99 of 100 at most {most}. {verdict}")]
}

/// Who should accept, and whether anybody does.
pub(super) fn acceptors(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let waiting = listener.length;
    // a sample is no finer
    let since = listener.since_accept.ok().map(|since| match since.as_seconds() {
        seconds if seconds < 1.0 => "less than 1 s".to_owned(),
        seconds => short(seconds),
    });
    let waits = some(waiting, "connection waits", "connections wait");
    let mut lines = vec![match (listener.stalled, since) {
        (Ok(true), since) if 1 < listener.members.len() => {
            let since = since.map_or_else(String::new, |since| format!("; on others, {since} ago"));
            format!(
                "Nobody accepts on a socket of the group{since}. {waits}: the kernel completes handshakes \
                 for the program, so these clients believe that they are connected."
            )
        }
        (Ok(true), since) => {
            let since = since.map_or_else(String::new, |since| format!(" for {since}"));
            format!(
                "Nobody has accepted{since} while {waits}: the kernel completes handshakes for the program, \
                 so these clients believe that they are connected."
            )
        }
        (Ok(false), Some(since)) => format!("Somebody accepted {since} ago."),
        (Ok(false), None) => "No accept has been seen so far.".to_owned(),
        (Err(_), _) if waiting == 0 => "Nobody waits, so nobody has to accept.".to_owned(),
        (Err(why), _) => {
            format!("{waits}; whether anybody accepts cannot be told: {why}.")
        }
    }];
    lines.extend(failed(listener, now));
    let owners = listener.owners.iter().take(OWNERS);
    lines.extend(owners.filter_map(|&pid| descriptors(pid, now.processes.get(&pid)?)));
    lines
}

/// How to see what the owner of a stalled listener does.
pub(super) fn look_closer(listener: &Listener) -> Option<String> {
    let pid = listener.owners.first().filter(|_| listener.stalled == Ok(true))?;
    if 1 < listener.members.len() {
        let worst = listener.members.iter().max_by_key(|member| member.length)?;
        return Some(format!(
            "Find who holds the socket with the longest queue: ss -ltnpe sport = :{} (ino:{}); then see what \
             it does: grep . /proc/PID/task/*/wchan",
            listener.key.port, worst.inode
        ));
    }
    Some(format!(
        "See what it does: grep State /proc/{pid}/status (T: it is stopped, and kill -CONT {pid} lets it go \
         on); grep . /proc/{pid}/task/*/wchan (where its threads wait)"
    ))
}

/// The errors of accept that its owner has met.
fn failed(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let errors = now.errors.as_ref().ok().and_then(|errors| errors.accept.as_ref().ok());
    let (Some(errors), Some(comm)) = (errors, &listener.comm) else { return Vec::new() };
    let ours = errors.iter().filter(|((of, errno), _)| of == comm && *errno != Errno::AGAIN);
    let line = |((_, errno), n): (&(_, Errno), &u64)| {
        let errno_name = errno.to_string();
        let what = match errno_name.as_str() {
            "EMFILE" => " (no descriptor left below its limit)",
            "ENFILE" => " (no file left on this host)",
            "ENOBUFS" | "ENOMEM" => " (no memory)",
            "ECONNABORTED" => " (the client had gone)",
            _ => "",
        };
        let times = some(*n, "time", "times");
        format!("accept failed {times} with {errno_name}{what} in tasks named {comm}.")
    };
    ours.map(line).collect()
}

fn descriptors(pid: Pid, process: &Process) -> Option<String> {
    let (open, most) = (process.now.open_fds.ok()?, process.now.max_fds.ok()?);
    let left = match process.fds_exhausted_in {
        _ if most <= open => "; none is left, and accept fails until one is closed".to_owned(),
        Ok(left) => format!("; none will be left in {}", short(left.as_seconds())),
        Err(_) => String::new(),
    };
    let limit = if most == u64::MAX { "no limit".to_owned() } else { format!("limit {most}") };
    Some(format!("pid {pid} has {} open, {limit}{left}.", some(open, "descriptor", "descriptors")))
}

/// What is open, and what its peers have left behind.
pub(super) fn connections(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let open = match listener.open {
        Ok(n) => vec![format!("{} open (accepted, not closed).", some(n, "is", "are"))],
        Err(_) => Vec::new(),
    };
    let table = match listener.connections {
        Ok(table) => table,
        Err(why) if open.is_empty() && why != Absent::TooEarly => {
            return vec![format!("How many are open is not known: {why}.")];
        }
        Err(_) => return open,
    };
    let mut lines = open;
    let namespace = now.namespaces.iter().find(|it| it.netns == listener.key.netns);
    let read = namespace.and_then(|it| it.table.as_ref().ok());
    let age = read.map_or_else(String::new, |read| {
        format!(", {} ago", short((now.at - read.at).as_seconds()))
    });
    let mut counts = Vec::new();
    let mut count = |n: u64, what: &str| {
        if 0 < n {
            counts.push(format!("{n} {what}"));
        }
    };
    count(table.accepted, "accepted");
    count(table.close_wait, "of them in CLOSE_WAIT (the peer has closed, the program has not)");
    count(table.fin_wait, "closed here and not yet by the peer");
    count(table.time_wait, "in TIME_WAIT");
    if !counts.is_empty() {
        lines.push(format!("The table of sockets{age}: {}.", counts.join(", ")));
    }
    if 0 < table.unread_bytes {
        lines.push(format!("The program has {} bytes to read.", table.unread_bytes));
    }
    lines
}

/// A span of time with two digits: `12 us`, `1.2 ms`, `75 s`, `3 h`.
fn short(seconds: f64) -> String {
    match seconds {
        s if s < 999.5e-6 => format!("{:.0} us", s * 1e6),
        s if s < 9.95e-3 => format!("{:.1} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}
