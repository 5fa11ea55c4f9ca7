//! What there is to do: lines that a shell takes as they stand, most important first.

use std::sync::Arc;

use super::serve::Unserved;
use crate::{
    audit::Finding,
    detect::{
        alert::Alert,
        command::{RESTART, inside},
        phase::Severity,
        shell::{noted, quoted},
        some,
    },
    id::{ListenerKey, Pid},
    model::snapshot::{Listener, Snapshot},
};

/// Fewer connections in CLOSE_WAIT come and go.
const MANY: u64 = 10;

pub(super) fn todo(
    listener: &Listener,
    now: &Snapshot,
    alerts: &[&Arc<Alert>],
    findings: &[&Finding],
    unserved: Unserved,
) -> Vec<String> {
    let mut lines: Vec<String> = unserved.todo.into_iter().collect();
    for alert in alerts {
        let mend = &alert.latest.mend;
        // which brought the reader here
        if !mend.starts_with("backlogd explain") && !lines.contains(mend) {
            lines.push(mend.clone());
        }
    }
    // who has been told how to raise a limit need not be told again
    let has = |what: &str| lines.iter().any(|line| line.contains(what));
    let is_limit_told = has(RESTART);
    let fds_told: Vec<Pid> = listener
        .owners
        .iter()
        .copied()
        .filter(|pid| has(&format!("prlimit --pid {pid} ")))
        .collect();
    let matters = |it: &&&Finding| {
        let is_told = it.restart && is_limit_told
            || it
                .subject
                .pids
                .iter()
                .any(|pid| it.name == "DescriptorLimit" && fds_told.contains(pid));
        !is_told && (Severity::Info < it.severity || listener.stalled != Ok(true))
    };
    for finding in findings.iter().filter(matters) {
        let line = noted(&finding.mend, &format!("{}: {}", finding.name, finding.seen));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() && listener.members.is_empty() {
        lines = after_end(listener, now);
    }
    if lines.is_empty() {
        lines.extend(left_behind(listener, now));
    }
    if lines.is_empty() {
        lines.push("Nothing.".to_owned());
    }
    lines
}

/// What shows connections that their peers have left, where they are the most and no alert is certain.
fn left_behind(listener: &Listener, now: &Snapshot) -> Option<String> {
    let table = listener.connections.ok()?;
    (MANY < table.close_wait && table.accepted < 2 * table.close_wait).then(|| {
        noted(
            &ss(listener, now, "-tnpo state close-wait"),
            "if it stays so, find why the program does not close what its peers have closed",
        )
    })
}

/// What there is to do where nobody listens any more.
fn after_end(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    if let Ok(open @ 1..) = listener.open {
        let are = some(open, "connection that is", "connections that are");
        let who = format!("who holds the {are} still open");
        lines.push(noted(&ss(listener, now, "-tanp"), &who));
    }
    let program = listener.comm.as_deref().unwrap_or("the program");
    let unit = listener.workload.unit.as_deref().filter(|_| listener.workload.pod.is_none());
    lines.push(match unit {
        Some(unit) => {
            let status = format!("systemctl status {}", quoted(unit));
            noted(&status, &format!("if clients should reach it: why {program} does not listen"))
        }
        None => noted("", &format!("if clients should reach it, start {program} again")),
    });
    lines
}

/// The command that shows its sockets, by `what` of ss.
fn ss(listener: &Listener, now: &Snapshot, what: &str) -> String {
    let ListenerKey { netns, port, .. } = listener.key;
    inside(now, netns, &format!("ss {what} sport = :{port}"))
}
