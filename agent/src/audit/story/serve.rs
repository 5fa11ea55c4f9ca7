//! Who accepts, how long that takes, and what becomes of the connections.

use std::sync::Arc;

use super::{name, watched};
use crate::{
    detect::{self, MIN_ACCEPTS, SLOW_ACCEPT, alert::Alert, command::inside, shell::noted, some},
    errno::Errno,
    id::{ListenerKey, Pid},
    input::Absent,
    model::snapshot::{Listener, Member, Process, Snapshot},
    time::Nanos,
};

/// Most owners whose descriptors are told.
const OWNERS: usize = 4;
/// Who runs out of descriptors later than this does so by a guess.
const FORESEEN: Nanos = Nanos(24 * 3_600 * 1_000_000_000);
/// What samples of so many seconds show, or fewer more descriptors in that time, is no trend.
const TREND: (f64, f64) = (60.0, 5.0);
/// Most members that nobody serves and that are told one by one.
const STUCK: usize = 3;

pub(super) fn waits(listener: &Listener) -> Vec<String> {
    let waits = match &listener.accept_wait {
        Ok(waits) => waits,
        // said of the traffic already
        Err(_) if listener.counters.accepted.is_err() => return Vec::new(),
        Err(why) => return vec![format!("How long they wait for accept is not known: {why}.")],
    };
    let quantiles = (waits.quantile(0.5), waits.quantile(0.99));
    let (Some(half), Some(most)) = quantiles else { return Vec::new() };
    if waits.count() == 0 {
        return Vec::new();
    }
    if waits.count() < MIN_ACCEPTS {
        let were = some(waits.count(), "wait for accept was", "waits for accept were");
        return vec![format!("Only {were} measured: too few to judge the program.")];
    }
    let verdict = if listener.stalled == Ok(true) {
        "That counts those that were accepted alone."
    } else if most < SLOW_ACCEPT.as_seconds() {
        "The program keeps up."
    } else {
        "The program is slow to accept: a longer queue would only turn drops into waiting."
    };
    let (half, most) = (short(half), short(most));
    vec![format!("Half waited at most {half} for accept, 99 of 100 at most {most}. {verdict}")]
}

/// Why nobody accepts on a listener that is stalled, as far as that is known.
pub(super) struct Unserved {
    /// In words.
    why: Option<String>,
    /// What shows or mends it.
    pub(super) todo: Option<String>,
    /// Whether an alert tells what clients see of it.
    is_told: bool,
}

impl Unserved {
    pub(super) fn new(listener: &Listener, now: &Snapshot, alerts: &[&Arc<Alert>]) -> Self {
        let fires = |name: &str| alerts.iter().any(|alert| alert.about.name == name);
        let is_told = fires("ListenerStalled");
        if fires("AcceptErrors") {
            // which says why
            return Self { why: None, todo: None, is_told };
        }
        match detect::why_unserved(listener, now) {
            Some((why, todo)) => Self { why: Some(why), todo: Some(todo), is_told },
            None => Self { why: None, todo: look_closer(listener, now), is_told },
        }
    }

    /// Whether that is what it says.
    pub(super) fn tells(&self, cause: &str) -> bool {
        self.why.as_deref() == Some(cause)
    }
}

/// Who should accept, and whether anybody does.
pub(super) fn acceptors(listener: &Listener, now: &Snapshot, unserved: &Unserved) -> Vec<String> {
    // a sample is no finer
    let since = listener.since_accept.ok().map(|since| match since.as_seconds() {
        seconds if seconds < 1.0 => "less than 1 s".to_owned(),
        seconds => short(seconds),
    });
    let waits = some(listener.length, "connection waits", "connections wait");
    let mut lines = match (listener.stalled, since) {
        (Ok(true), since) if 1 < listener.members.len() => stuck(listener, since),
        (Ok(true), since) => {
            // what has never been accepted from has waited since it came
            let waiting = || listener.members.first()?.waiting.ok();
            let since = since.or_else(|| Some(short(waiting()?.as_seconds())));
            let since = since.map_or_else(String::new, |since| format!(" for {since}"));
            vec![format!("Nobody has accepted{since} while {waits}.")]
        }
        (Ok(false), Some(since)) => vec![format!("Somebody accepted {since} ago.")],
        (Ok(false), None) => vec!["No accept has been seen so far.".to_owned()],
        (Err(_), _) if listener.length == 0 => {
            vec!["Nobody waits, so nobody has to accept.".to_owned()]
        }
        (Err(why), _) => {
            vec![format!("{waits}; whether anybody accepts cannot be told: {why}.")]
        }
    };
    if listener.stalled == Ok(true) && !unserved.is_told {
        lines.push(
            "The kernel completes handshakes for the program, so these clients believe that they are \
             connected."
                .to_owned(),
        );
    }
    lines.extend(unserved.why.as_ref().map(|why| format!("Why: {why}.")));
    lines.extend(failed(listener, now));
    let owners = listener.owners.iter().take(OWNERS);
    let why = unserved.why.as_deref().unwrap_or_default();
    // the reason has the numbers already
    let is_told = |pid| why.starts_with(&format!("pid {pid} has no descriptor"));
    let owners = owners.filter(|&&pid| !is_told(pid));
    lines.extend(owners.filter_map(|&pid| descriptors(pid, now)));
    lines
}

/// The members of a group that nobody serves.
fn stuck(listener: &Listener, since: Option<String>) -> Vec<String> {
    let stuck: Vec<&Member> = stalled(listener).collect();
    let (n, all) = (stuck.len(), listener.members.len());
    let waiting = |members: &[&Member]| {
        let length = members.iter().map(|it| u64::from(it.length)).sum();
        some(length, "connection waits", "connections wait")
    };
    let each = |it: &Member| {
        let time = it.waiting.unwrap_or(Nanos(0)).as_seconds();
        format!(
            "Nobody has accepted for {} on {}, where {}.",
            short(time),
            name(listener, it),
            waiting(&[it])
        )
    };
    let mut lines: Vec<String> = stuck.iter().take(STUCK).map(|it| each(it)).collect();
    if STUCK < n {
        let more = waiting(&stuck[STUCK..]);
        lines.push(format!("Nor on {} more, where {more}.", n - STUCK));
    }
    let longest = stuck.iter().filter_map(|it| it.waiting.ok()).max();
    let is_served = listener.since_accept.ok() < longest;
    if let Some(since) = since.filter(|_| n < all && is_served) {
        let others = some((all - n) as u64, "other socket", "other sockets");
        lines.push(format!("On the {others} somebody accepted {since} ago."));
    }
    lines
}

fn stalled(listener: &Listener) -> impl Iterator<Item = &Member> {
    listener.members.iter().filter(|it| it.stalled == Ok(true))
}

/// How to see what the owner of a stalled listener does, where nobody has looked.
fn look_closer(listener: &Listener, now: &Snapshot) -> Option<String> {
    let first = listener.owners.first().filter(|_| listener.stalled == Ok(true))?;
    let pid = if listener.members.len() == 1 {
        *first
    } else {
        let worst = stalled(listener).max_by_key(|member| member.length)?;
        let of_same = listener.members.iter().filter(|it| it.pid == worst.pid).count();
        let Some(pid) = worst.pid.filter(|_| of_same == 1) else {
            let ListenerKey { netns, port, .. } = listener.key;
            let ss = inside(now, netns, &format!("ss -ltnpe sport = :{port}"));
            let whose = format!(
                "ino:{} has the longest queue; what its pid does: grep . /proc/PID/task/*/wchan",
                worst.inode
            );
            return Some(noted(&ss, &whose));
        };
        pid
    };
    Some(format!(
        "grep State /proc/{pid}/status; grep . /proc/{pid}/task/*/wchan # T: it is stopped, and \
         kill -CONT {pid} lets it go on; wchan: where its threads wait"
    ))
}

/// The errors of accept that its owner has met.
fn failed(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let errors = now.errors.as_ref().ok().and_then(|errors| errors.accept.as_ref().ok());
    let (Some(errors), Some(comm)) = (errors, &listener.comm) else { return Vec::new() };
    let is_part = now.agent.closer_looks.is_ok();
    let looked = if is_part { " while somebody looked closer" } else { "" };
    let mut owners = listener.owners.iter().filter_map(|pid| now.processes.get(pid));
    let is_full = owners.any(detect::is_full);
    let is_other_full = || namesakes(listener, now).any(detect::is_full);
    // who has descriptors does not fail for want of them while another one of that name does
    let others = if !is_full && is_other_full() { Errno::MFILE } else { Errno::AGAIN };
    let is_ours = |errno: Errno| errno != Errno::AGAIN && errno != others;
    let is_alone = namesakes(listener, now).next().is_none();
    let ours = errors.iter().filter(|((of, errno), _)| of == comm && is_ours(*errno));
    let line = |((_, errno), n): (&(_, Errno), &u64)| {
        let errno_name = errno.to_string();
        let what = match errno_name.as_str() {
            "EMFILE" => " (no descriptor left below its limit)",
            "ENFILE" => " (no file left on this host)",
            "ENOBUFS" | "ENOMEM" => " (no memory)",
            "ECONNABORTED" => " (the client had gone)",
            _ => "",
        };
        let is_certain = is_alone || is_full && *errno == Errno::MFILE;
        let whose = if is_certain { "" } else { ": of this process, or another of that name" };
        let times = some(*n, "time", "times");
        format!(
            "accept failed {times}{looked} with {errno_name}{what} in tasks named {comm}{whose}."
        )
    };
    ours.map(line).collect()
}

/// Other processes of that name that listen.
fn namesakes<'a>(listener: &'a Listener, now: &'a Snapshot) -> impl Iterator<Item = &'a Process> {
    let others = now.processes.iter().filter(|(pid, process)| {
        listener.comm.as_ref() == Some(&process.now.comm) && !listener.owners.contains(pid)
    });
    others.map(|(_, process)| process)
}

fn descriptors(pid: Pid, now: &Snapshot) -> Option<String> {
    let process = now.processes.get(&pid)?;
    let (open, most) = (process.now.open_fds.ok()?, process.now.max_fds.ok()?);
    let left = match process.fds_exhausted_in {
        _ if most <= open => "; none is left, and accept fails until one is closed".to_owned(),
        Ok(left) if left <= FORESEEN && is_trend(now, most - open, left) => {
            format!("; none will be left in {}", short(left.as_seconds()))
        }
        Ok(_) | Err(_) => String::new(),
    };
    let limit = if most == u64::MAX { "no limit".to_owned() } else { format!("limit {most}") };
    Some(format!("pid {pid} has {} open, {limit}{left}.", some(open, "descriptor", "descriptors")))
}

/// Whether `more` that are used up in the time `left` are more than what comes and goes.
fn is_trend(now: &Snapshot, more: u64, left: Nanos) -> bool {
    let (seconds, least) = TREND;
    seconds <= watched(now) && least * left.as_seconds() <= seconds * more as f64
}

/// What is open, and what its peers have left behind.
pub(super) fn connections(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let open = match listener.open {
        Ok(0) => vec!["No connection is open.".to_owned()],
        Ok(n) => {
            let are = some(n, "connection is", "connections are");
            vec![format!("{are} open (accepted, not closed).")]
        }
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
    // a FIN that has not been read counts as one byte (`tcp_diag_get_info`, net/ipv4/tcp_diag.c)
    let least = table.unread_bytes.saturating_sub(table.close_wait);
    if 0 < least {
        let about = if least == table.unread_bytes { "" } else { "at least " };
        let bytes = some(least, "byte", "bytes");
        lines.push(format!("The program has not read {about}{bytes} that came."));
    }
    lines
}

/// A span of time with two digits: `12 us`, `1.2 ms`, `75 s`, `3 h`.
pub(super) fn short(seconds: f64) -> String {
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
