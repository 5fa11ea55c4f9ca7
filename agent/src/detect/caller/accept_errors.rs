//! accept(2) fails for want of descriptors or memory, again and again.
//!
//! The descriptor is reserved before the queue is looked at (`do_accept`, net/socket.c), so the
//! connection stays in the queue, the socket stays readable, and a loop that does not wait turns
//! without end.

use super::{At, EADDRNOTAVAIL, EMFILE, ENFILE, ERRORS, fd_ratio, processes};
use crate::{
    detect::{
        command::raise_nofile,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, seconds, wrong},
        subject::Place,
    },
    input::{Absent, Known},
    model::snapshot::{Listener, Snapshot},
    time::Nanos,
};

/// Errors that come for so long are not those of one burst.
const LASTING: Nanos = seconds(2);

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
    for listener in behind(look) {
        waiting += listener.length;
        let place = Place(listener.key.addr, listener.key.port);
        seen.push_str(&format!(
            "; {} of {} places taken at {place}",
            listener.length, listener.limit
        ));
    }
    values.push(("length", waiting as f64));
    let (cause, mend) = why(look, worst, &mut values);
    wrong(Severity::Critical, Evidence { seen, cause, mend, values })
}

/// The listeners of the caller's processes at which connections wait.
fn behind<'a>(look: &At<'_, 'a>) -> impl Iterator<Item = &'a Listener> {
    const SHOWN: usize = 4;
    let caller = look.it;
    let now = look.now;
    let pids: Vec<_> = processes(caller, now).map(|(pid, _)| pid).collect();
    let is_theirs = move |listener: &&Listener| {
        0 < listener.length
            && (listener.owners.iter().any(|pid| pids.contains(pid))
                || listener.owners.is_empty() && listener.comm.as_ref() == caller.comm)
    };
    now.listeners.iter().filter(is_theirs).take(SHOWN)
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
            (cause, format!("sysctl fs.file-nr; sysctl -w fs.file-max={}", more(look.now)))
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

fn descriptors(
    look: &At<'_, '_>,
    values: &mut Vec<(&'static str, f64)>,
) -> (Option<String>, String) {
    let worst = processes(look.it, look.now)
        .max_by(|(_, one), (_, other)| fd_ratio(one).total_cmp(&fd_ratio(other)));
    let known = worst.and_then(|(pid, process)| {
        Some((pid, process, process.now.open_fds.ok()?, process.now.max_fds.ok()?))
    });
    let Some((pid, process, open, max)) = known else {
        let comm = look.it.comm.map_or("?", |comm| comm);
        return (
            None,
            format!("for pid in $(pgrep -x '{comm}'); do prlimit --pid $pid --nofile; done"),
        );
    };
    values.extend([("open_fds", open as f64), ("max_fds", max as f64)]);
    let mut cause = format!("{open} of {max} descriptors of pid {pid} are open");
    if let Some(kinds) = process.now.fd_kinds {
        cause.push_str(&format!("; {} are sockets", kinds.sockets));
    }
    let mend = format!("ls -l /proc/{pid}/fd; {}", raise_nofile(pid, max));
    // a process that has room by now is not known to be the cause
    (Some(cause).filter(|_| super::FULL <= fd_ratio(process)), mend)
}

/// Twice as many files as there may be.
fn more(now: &Snapshot) -> String {
    now.host.max_fds.map_or_else(|_| "N".to_owned(), |max| max.saturating_mul(2).to_string())
}
