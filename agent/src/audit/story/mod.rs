//! One listener's story in plain words, with its numbers; pure.
//!
//! In: a snapshot, what the detections say of it, the findings. Out: [`Section`]s of sentences. What is not
//! known is left out, or the sentence says why.

mod drop;
mod serve;
mod todo;
mod who;

use std::sync::Arc;

use self::{
    drop::drops,
    serve::{Unserved, acceptors, connections, short, waits},
    todo::todo,
    who::who,
};
use super::Finding;
use crate::{
    detect::{
        alert::{Alert, Verdicts},
        backlog::Origin,
        phase::Severity,
        some,
    },
    input::Known,
    model::snapshot::{Found, Listener, Member, Snapshot},
    time::Nanos,
};

/// Most members of a group that are told one by one.
const MEMBERS: usize = 8;

/// A part of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `who`, `limit`, `queue`, `traffic`, `drops`, `accept`, `connections`, `wrong`, `todo`.
    pub name: &'static str,
    /// Sentences that belong together, in order.
    pub lines: Vec<String>,
}

/// What is told about a listener by alerts; those that others say better are not.
#[must_use]
pub fn alerts_of<'a>(listener: &Listener, verdicts: &'a Verdicts) -> Vec<&'a Arc<Alert>> {
    let key = listener.key;
    let is_ours = |alert: &&Arc<Alert>| {
        let labels = &alert.subject.labels;
        let is_at = (labels.netns, labels.addr, labels.port)
            == (Some(key.netns), Some(key.addr), Some(key.port));
        let is_of = labels.port.is_none()
            && alert.subject.pids.iter().any(|pid| listener.owners.contains(pid));
        is_at || is_of
    };
    verdicts.told().filter(is_ours).collect()
}

/// Findings about a listener, and those that matter about its namespace or the processes behind it.
#[must_use]
pub fn findings_of<'a>(listener: &Listener, findings: &'a [Finding]) -> Vec<&'a Finding> {
    let key = listener.key;
    let is_ours = |finding: &&Finding| {
        let (labels, pids) = (&finding.subject.labels, &finding.subject.pids);
        match labels.port {
            Some(port) => {
                (labels.netns, labels.addr, port) == (Some(key.netns), Some(key.addr), key.port)
            }
            None => {
                let is_of_ours = pids.iter().any(|it| listener.owners.contains(it));
                is_of_ours || (labels.netns == Some(key.netns) && Severity::Info < finding.severity)
            }
        }
    };
    findings.iter().filter(is_ours).collect()
}

/// The story of one listener; empty sections are left out.
#[must_use]
pub fn tell(
    listener: &Listener,
    now: &Snapshot,
    alerts: &[&Arc<Alert>],
    findings: &[&Finding],
) -> Vec<Section> {
    let is_gone = listener.members.is_empty();
    let section = |name, lines| Section { name, lines };
    let mut sections = vec![section("who", who(listener, now))];
    if !is_gone {
        sections.push(section("limit", limit(listener, now)));
        sections.push(section("queue", queue(listener)));
    }
    let unserved = Unserved::new(listener, now, alerts);
    sections.extend([
        section("traffic", [traffic(listener, now), waits(listener)].concat()),
        section("drops", drops(listener, now)),
        section("accept", if is_gone { Vec::new() } else { acceptors(listener, now, &unserved) }),
        section("connections", connections(listener, now)),
        section("wrong", wrong(alerts, &unserved)),
        section("todo", todo(listener, now, alerts, findings, unserved)),
    ]);
    sections.retain(|section| !section.lines.is_empty());
    sections
}

fn limit(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let mut limits: Vec<u32> = listener.members.iter().map(|member| member.limit).collect();
    limits.sort_unstable();
    limits.dedup();
    let namespace = now.namespaces.iter().find(|it| it.netns == listener.key.netns);
    let somaxconn = namespace.and_then(|it| it.sysctls.get("somaxconn").copied());
    let each = if 1 < listener.members.len() { " in each socket" } else { "" };
    let tell = |limit: u32| {
        let may = some(u64::from(limit), "connection", "connections");
        let what = format!("{may} may wait for accept{each}");
        match somaxconn.map(|somaxconn| (Origin::of(limit, somaxconn), somaxconn)) {
            None => format!("{what}; net.core.somaxconn of its network namespace is not known."),
            Some((Origin::Somaxconn, _)) => format!(
                "{what}. That is net.core.somaxconn: the program asked for as much or more, and the sysctl \
                 caps it."
            ),
            Some((Origin::Argument, somaxconn)) => format!(
                "{what}. net.core.somaxconn is {somaxconn}, so that is what the program asked for: the \
                 backlog argument of listen(2) (or somaxconn was lower then)."
            ),
            Some((Origin::Lowered, somaxconn)) => format!(
                "{what}. net.core.somaxconn is {somaxconn} and was higher when the program called listen(2)."
            ),
        }
    };
    let mut lines: Vec<String> = limits.into_iter().take(MEMBERS).map(tell).collect();
    lines.push(
        "The limit is latched at listen(2): a change of either shows after a restart.".to_owned(),
    );
    lines
}

fn queue(listener: &Listener) -> Vec<String> {
    let (length, limit) = (listener.length, listener.limit);
    let is_full = listener.members.iter().any(|member| member.limit < member.length);
    let state = match (length, is_full) {
        (0, _) => format!("Nobody waits now, of {limit} that may"),
        (_, true) if listener.members.len() == 1 => {
            format!("It is full: {length} wait, limit {limit}")
        }
        (_, true) => format!("A socket is full; {length} wait in all, of {limit} that may"),
        (_, false) => format!("{length} of {limit} places are taken now"),
    };
    let peak = match listener.length_max {
        Ok(peak) => format!("; the most at once in the last minute was {peak}."),
        Err(why) => {
            format!(". A queue that fills and drains between two samples is not seen here ({why}).")
        }
    };
    let mut lines = vec![state + &peak];
    let full = listener.counters.full.as_seconds();
    if 0.0 < full {
        lines.push(format!("It has been full for {} since the agent watches.", short(full)));
    }
    if let Ok(n @ 1..) = listener.syn_queue {
        let handshakes = some(n, "handshake waits", "handshakes wait");
        lines.push(format!("{handshakes} for the last ACK (SYN queue)."));
    }
    lines.extend(members(listener));
    lines
}

/// The members of a group that are fuller than the others.
fn members(listener: &Listener) -> Vec<String> {
    let n = listener.members.len();
    let mut waiting: Vec<_> = listener.members.iter().filter(|it| 0 < it.length).collect();
    if n < 2 || waiting.is_empty() {
        return Vec::new();
    }
    waiting.sort_by_key(|it| std::cmp::Reverse(it.length));
    let idle = n - waiting.len();
    let each = waiting.iter().take(MEMBERS).map(|it| {
        let full = if it.limit < it.length { " (full)" } else { "" };
        format!("{} of {}{full} in {}", it.length, it.limit, name(listener, it))
    });
    let list = each.collect::<Vec<_>>().join("; ");
    vec![match idle {
        0 => format!("By socket: {list}."),
        idle => format!("By socket: {list}; none in the other {idle}."),
    }]
}

/// A member of a group, by who holds it where that is one process.
fn name(listener: &Listener, member: &Member) -> String {
    let inode = member.inode;
    let is_alone = || listener.members.iter().filter(|it| it.pid == member.pid).count() == 1;
    match member.pid.filter(|_| is_alone()) {
        Some(pid) => format!("the socket of pid {pid} (inode {inode})"),
        None => format!("the socket with inode {inode}"),
    }
}

fn traffic(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let counters = &listener.counters;
    match (counters.established, counters.accepted) {
        (Ok(0), Ok(0)) => vec!["No connection has come since the agent watches.".to_owned()],
        (Ok(established), Ok(accepted)) => {
            let mut lines = Vec::new();
            match (listener.rates.established, listener.rates.accepted) {
                (Ok(0.0), Ok(0.0)) if !listener.members.is_empty() => lines
                    .push(format!("In the {} nothing came and nothing was accepted.", lately(now))),
                (Ok(came), Ok(accepted)) if !listener.members.is_empty() => lines.push(format!(
                    "In the {} {came:.1} connections/s came (handshake complete) and \
                     {accepted:.1}/s were accepted.",
                    lately(now)
                )),
                (Ok(_) | Err(_), _) => {}
            }
            lines.push(since_watched(established, accepted, counters.found));
            vec![lines.join(" ")]
        }
        (Err(why), _) | (_, Err(why)) => {
            vec![format!("How many connections come and are accepted is not known: {why}.")]
        }
    }
}

/// What came and was accepted, and what had come before anybody watched.
fn since_watched(established: u64, accepted: u64, found: Known<Found>) -> String {
    let were =
        |accepted| if accepted == 1 { "1 was".to_owned() } else { format!("{accepted} were") };
    let came = |n| some(n, "connection came", "connections came");
    let Ok(Found { waiting, open }) = found else {
        return format!(
            "Since the agent watches, {} and {} accepted; those that waited or were open when it began \
             are counted.",
            came(established),
            were(accepted)
        );
    };
    let before = match (waiting, open) {
        (0, 0) => String::new(),
        (0, open) => {
            format!(
                " When it began, {} open already.",
                some(open, "connection was", "connections were")
            )
        }
        (waiting, open) => {
            let open = if open == 0 { String::new() } else { format!(", and {} open", were(open)) };
            format!(
                " When it began, {} already{open}.",
                some(waiting, "connection waited", "connections waited")
            )
        }
    };
    let new = established.saturating_sub(waiting).saturating_sub(open);
    let came = if new == 0 { "no connection came".to_owned() } else { came(new) };
    let taken = match accepted.saturating_sub(open) {
        0 => "none was".to_owned(),
        taken => were(taken),
    };
    format!("Since the agent watches, {came} and {taken} accepted.{before}")
}

/// What rates are of: the last ten seconds, or as long as there are samples.
fn lately(now: &Snapshot) -> String {
    format!("last {:.0} s", watched(now).clamp(1.0, 10.0))
}

/// Seconds from the first sample to this one.
fn watched(now: &Snapshot) -> f64 {
    now.samples.saturating_sub(1) as f64 * now.interval.map_or(1.0, Nanos::as_seconds)
}

fn wrong(alerts: &[&Arc<Alert>], unserved: &Unserved) -> Vec<String> {
    let mut lines = Vec::new();
    for alert in alerts {
        let (name, severity) = (alert.about.name, alert.severity.name());
        lines.push(format!("{name} ({severity}): {}. {}", alert.latest.seen, alert.about.why));
        // who should accept was told why nobody does
        let cause = alert.latest.cause.as_ref().filter(|cause| !unserved.tells(cause));
        lines.extend(cause.map(|cause| format!("Cause: {cause}.")));
    }
    if lines.is_empty() {
        lines.push("No alert is about this listener.".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests;
