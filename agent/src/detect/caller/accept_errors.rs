//! accept(2) fails for want of descriptors or memory, again and again.
//!
//! The descriptor is reserved before the queue is looked at (`do_accept`, net/socket.c), so the
//! connection stays in the queue, the socket stays readable, and a loop that does not wait turns
//! without end.

use std::sync::Arc;

use super::{At, EADDRNOTAVAIL, EMFILE, ENFILE, ERRORS, fd_ratio, is_full, processes};
use crate::{
    detect::{
        command::raise_nofile,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, seconds, wrong},
        shell::quoted,
        subject::Place,
    },
    id::Pid,
    input::{Absent, Known},
    model::snapshot::{Listener, Process, Snapshot},
    threads::{ThreadGroup, ThreadState},
    time::Nanos,
};

/// Errors that come for so long are not those of one burst.
const LASTING: Nanos = seconds(2);
/// Listeners whose queues are told.
const SHOWN: usize = 4;
/// Processes, and listeners of each, that are named as the cause.
const NAMED: usize = 3;

pub(super) const RULE: Rule<super::Callers> = Rule {
    about: About {
        name: "AcceptErrors",
        summary: "accept fails for want of descriptors or memory",
        why: "Nothing is accepted meanwhile, and the kernel goes on completing handshakes: clients \
              believe that they are connected.",
        timing: Timing { raise_for: seconds(0), clear_for: seconds(30) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "errors",
                default: 3.0,
                range: Range::COUNT,
                help: "Errors in a row",
            },
            Threshold {
                name: "busy_per_second",
                default: 1_000.0,
                range: Range::Of(0.0, f64::INFINITY),
                help: "Errors each second from which on it is called a busy loop",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [errors, busy] = look.thresholds();
    look.it.accept?;
    if look.now.agent.closer_looks.is_ok_and(|looks| !looks.is_on) {
        // seen for some seconds of a minute alone: what was seen holds while nobody accepts
        let is_stalled = |listener: &Listener| listener.stalled == Ok(true);
        let holds = behind(look).any(is_stalled);
        return if holds { Ok(Sight::Between) } else { Err(Absent::TooEarly) };
    }
    let Some(grown) = look.memory.accept.grown() else { return Ok(Sight::Fine) };
    if (grown.by as f64) < errors || grown.lasting < LASTING {
        return Ok(Sight::Between);
    }
    let recent = look.within(seconds(10));
    let worst = (0..EADDRNOTAVAIL).max_by_key(|&i| recent.by[i]).unwrap_or(EMFILE);
    let rate = grown.per_second();
    let mut seen = format!(
        "{} from accept: {} in {:.0} s, {rate:.0} each second",
        ERRORS[worst].1,
        grown.by,
        grown.over.as_seconds()
    );
    if busy <= rate {
        seen.push_str(", a busy loop");
    }
    let mut values = vec![
        ("errors", grown.by as f64),
        ("errors_per_second", rate),
        ("seconds", grown.over.as_seconds()),
    ];
    let mut waiting = 0;
    for (i, listener) in behind(look).enumerate() {
        waiting += listener.length;
        let place = Place(listener.key.addr, listener.key.port);
        if i < SHOWN {
            let (length, limit) = (listener.length, listener.limit);
            seen.push_str(&format!("; {length} of {limit} places taken at {place}"));
        }
    }
    if let more @ 1.. = behind(look).count().saturating_sub(SHOWN) {
        seen.push_str(&format!(" and {more} more"));
    }
    values.push(("length", waiting as f64));
    let (cause, mend) = why(look, worst, &mut values);
    wrong(Severity::Critical, Evidence { seen, cause, mend, values })
}

/// The listeners of the caller's processes at which connections wait.
fn behind<'a>(look: &At<'_, 'a>) -> impl Iterator<Item = &'a Listener> {
    let caller = look.it;
    let pids = pids(look);
    let is_theirs = move |listener: &&Listener| {
        0 < listener.length
            && (listener.owners.iter().any(|pid| pids.contains(pid))
                || listener.owners.is_empty() && listener.comm.as_ref() == caller.comm)
    };
    look.now.listeners.iter().filter(is_theirs)
}

/// The processes whose accept may fail, lowest first.
fn pids(look: &At<'_, '_>) -> Arc<[Pid]> {
    match look.memory.full.is_empty() {
        true => processes(look.it, look.now).map(|(pid, _)| pid).collect(),
        false => Arc::clone(&look.memory.full),
    }
}

/// What is known to be full, and the command that shows or mends it.
fn why(
    look: &At<'_, '_>,
    error: usize,
    values: &mut Vec<(&'static str, f64)>,
) -> (Option<String>, String) {
    match error {
        EMFILE => descriptors(look, values),
        ENFILE => {
            let host = &look.now.host;
            let cause = host
                .open_fds
                .ok()
                .zip(host.max_fds.ok())
                .map(|(open, max)| format!("{open} of {max} files of this host are open"));
            (cause, format!("sysctl fs.file-nr{}", more(look.now)))
        }
        _ => {
            let host = &look.now.host;
            let memory = host.tcp_memory_bytes.ok().zip(host.tcp_memory_limits.ok());
            let cause = memory.filter(|(bytes, limits)| limits.pressure_bytes < *bytes).map(
                |(bytes, limits)| {
                    format!("TCP holds {bytes} bytes, and saves from {} on", limits.pressure_bytes)
                },
            );
            (cause, "cat /proc/net/sockstat; sysctl net.ipv4.tcp_mem".to_owned())
        }
    }
}

/// Those that have none left, most likely to fail first, and what gives each of them more.
fn descriptors(
    look: &At<'_, '_>,
    values: &mut Vec<(&'static str, f64)>,
) -> (Option<String>, String) {
    let pids = pids(look);
    let known = pids.iter().filter_map(|pid| Some((*pid, look.now.processes.get(pid)?)));
    let known = known.filter_map(|(pid, process)| {
        let (open, max) = (process.now.open_fds.ok()?, process.now.max_fds.ok()?);
        Some(Holder { pid, process, open, max, suspicion: suspicion(look.now, pid) })
    });
    let mut known: Vec<Holder<'_>> = known.collect();
    known.sort_by(|one, other| {
        let by_fill = fd_ratio(other.process).total_cmp(&fd_ratio(one.process));
        let is_full = |holder: &Holder<'_>| is_full(holder.process);
        is_full(other)
            .cmp(&is_full(one))
            .then(other.suspicion.cmp(&one.suspicion).then(by_fill).then(one.pid.cmp(&other.pid)))
    });
    let Some(first) = known.first() else {
        let mend = look.it.comm.map_or_else(
            || "sysctl fs.file-nr".to_owned(),
            |comm| {
                // -x takes a pattern, in which names of tasks may say something else
                let comm = quoted(&literal(comm));
                format!("for pid in $(pgrep -x -- {comm}); do prlimit --pid $pid --nofile; done")
            },
        );
        return (None, mend);
    };
    values.extend([("open_fds", first.open as f64), ("max_fds", first.max as f64)]);
    let n_full = known.iter().filter(|it| is_full(it.process)).count();
    let mends: Vec<String> = known.iter().take(n_full.clamp(1, NAMED)).map(Holder::mend).collect();
    // a process that has room by now is not known to be the cause
    let cause = (0 < n_full).then(|| told(look.now, &known[..n_full]));
    (cause, mends.join("; "))
}

/// A process of that name, and its descriptors.
struct Holder<'a> {
    pid: Pid,
    process: &'a Process,
    open: u64,
    max: u64,
    suspicion: Suspicion,
}

impl Holder<'_> {
    fn mend(&self) -> String {
        format!("ls -l /proc/{}/fd; {}", self.pid, raise_nofile(self.pid, self.max))
    }
}

/// What makes a process without descriptors the one whose accept fails, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Suspicion {
    /// It is stopped or held by a debugger: it calls nothing.
    Halted,
    /// Nothing more is known of it.
    Full,
    /// So many wait for it.
    Awaited(u64),
    /// Nobody accepts on one of its listeners, at which so many wait.
    Stalled(u64),
    /// And a thread of it runs.
    Busy(u64),
}

fn suspicion(now: &Snapshot, pid: Pid) -> Suspicion {
    let groups = now.threads.get(&pid).and_then(|it| it.as_ref().ok()).map(|it| &it.groups);
    let halts = |it: &ThreadGroup| matches!(it.state, ThreadState::Stopped | ThreadState::Traced);
    if groups.is_some_and(|groups| !groups.is_empty() && groups.iter().all(halts)) {
        return Suspicion::Halted;
    }
    let runs = |it: &ThreadGroup| it.state == ThreadState::Running;
    let is_busy = groups.is_some_and(|groups| groups.iter().any(runs));
    let (mut length, mut is_stalled) = (0, false);
    for listener in now.listeners.iter().filter(|it| it.owners.contains(&pid)) {
        length += listener.length;
        is_stalled |= listener.stalled == Ok(true);
    }
    match (is_stalled, is_busy, length) {
        (true, true, _) => Suspicion::Busy(length),
        (true, false, _) => Suspicion::Stalled(length),
        (false, _, 0) => Suspicion::Full,
        (false, ..) => Suspicion::Awaited(length),
    }
}

/// Processes that are full, and where each listens if there are several.
fn told(now: &Snapshot, full: &[Holder<'_>]) -> String {
    let each = full.iter().take(NAMED).enumerate().map(|(i, holder)| {
        let Holder { pid, open, max, process, .. } = holder;
        let (what, are) = if i == 0 { (" descriptors", " are open") } else { ("", "") };
        let places = if full.len() == 1 { String::new() } else { places(now, *pid) };
        let mut text = format!("{open} of {max}{what} of pid {pid}{places}{are}");
        if let Some(kinds) = process.now.fd_kinds {
            text.push_str(&format!("; {} are sockets", kinds.sockets));
        }
        text
    });
    let mut text = each.collect::<Vec<_>>().join("; ");
    match full.len().saturating_sub(NAMED) {
        0 => {}
        1 => text.push_str("; and 1 more process is full"),
        more => text.push_str(&format!("; and {more} more processes are full")),
    }
    text
}

/// Where a process listens: ` (0.0.0.0:80, [::]:80)`.
fn places(now: &Snapshot, pid: Pid) -> String {
    let theirs = now.listeners.iter().filter(|it| it.owners.contains(&pid));
    let mut places: Vec<String> =
        theirs.map(|it| Place(it.key.addr, it.key.port).to_string()).collect();
    let more = places.len().saturating_sub(NAMED);
    places.truncate(NAMED);
    match (places.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(" ({})", places.join(", ")),
        (false, more) => format!(" ({} and {more} more)", places.join(", ")),
    }
}

/// That there may be twice as many files.
fn more(now: &Snapshot) -> String {
    let set = |max: u64| format!("; sysctl -w fs.file-max={}", max.saturating_mul(2));
    now.host.max_fds.map_or_else(|_| String::new(), set)
}

/// An extended regular expression that takes `text` and nothing else.
fn literal(text: &str) -> String {
    let escape = |c: char| {
        let is_special = r"\.^$*+?()[]{}|".contains(c);
        is_special.then_some('\\').into_iter().chain([c])
    };
    text.chars().flat_map(escape).collect()
}
