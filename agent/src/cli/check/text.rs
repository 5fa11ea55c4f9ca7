//! The report for people; pure.

use crate::{
    cli::out::{Cell, Paint, Terminal, wrap},
    publish::api::{Alert, Check, Finding, Source, Status},
};

/// Summary, alerts, findings, and what could not be judged. `wide`: also what matters least.
pub(super) fn render(report: &Check, terminal: &Terminal, wide: bool) -> String {
    let mut parts = vec![paint(&report.summary, of(report.status)).inline(terminal) + "\n"];
    let alerts = report.alerts.iter().filter(|it| wide || it.inhibited_by.is_none());
    parts.extend(alerts.map(|it| alert(it, terminal)));
    let (infos, findings): (Vec<_>, Vec<_>) =
        report.findings.iter().partition(|it| it.severity == "info" && !wide);
    parts.extend(findings.into_iter().map(|it| finding(it, terminal)));
    if !infos.is_empty() {
        let lines = infos.into_iter().map(|it| {
            wrap("info  ", &format!("{} {}: {}", it.finding, it.subject, it.seen), terminal)
        });
        parts.push(lines.collect());
    }
    let unknown = unknown(report, terminal);
    if !unknown.is_empty() {
        parts.push(unknown);
    }
    parts.join("\n")
}

fn of(status: Status) -> Paint {
    match status {
        Status::Fine => Paint::Plain,
        Status::Unknown | Status::Warning => Paint::Yellow,
        Status::Critical => Paint::Red,
    }
}

fn by(severity: &str) -> Paint {
    match severity {
        "warning" => Paint::Yellow,
        "info" => Paint::Plain,
        _ => Paint::Red,
    }
}

fn paint(text: &str, paint: Paint) -> Cell {
    Cell::new(text).painted(paint)
}

fn alert(alert: &Alert, terminal: &Terminal) -> String {
    let mut text = head(&alert.severity, &alert.alert, &alert.subject, &alert.pids, terminal);
    text += &wrap("  seen   ", &format!("{}: {}", alert.summary, alert.seen), terminal);
    if let Some(cause) = &alert.cause {
        text += &wrap("  cause  ", cause, terminal);
    }
    text += &wrap("  why    ", &alert.why, terminal);
    text += &wrap("  mend   ", &alert.mend, terminal);
    if let Some(by) = &alert.inhibited_by {
        text += &wrap("  told   ", &format!("by {by}, which says it better"), terminal);
    }
    text
}

fn finding(finding: &Finding, terminal: &Terminal) -> String {
    let Finding { severity, finding: name, subject, pids, .. } = finding;
    let mut text = head(severity, name, subject, pids, terminal);
    text += &wrap("  seen   ", &finding.seen, terminal);
    text += &wrap("  why    ", &finding.why, terminal);
    text += &wrap("  mend   ", &finding.mend, terminal);
    text
}

fn head(severity: &str, name: &str, subject: &str, pids: &[u32], terminal: &Terminal) -> String {
    let severity = paint(severity, by(severity)).inline(terminal);
    let subject = Cell::new(subject).inline(terminal);
    let pids = match pids {
        [] => String::new(),
        [pid] => format!(" (pid {pid})"),
        [pid, more @ ..] => format!(" (pid {pid} and {} more)", more.len()),
    };
    format!("{severity}  {name}  {subject}{pids}\n")
}

/// What could not be judged, one line for each reason.
fn unknown(report: &Check, terminal: &Terminal) -> String {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for it in &report.unknown {
        let name = if it.subjects == it.of {
            it.alert.clone()
        } else {
            format!("{} ({} of {})", it.alert, it.subjects, it.of)
        };
        let why = if report.is_on_demand(it) {
            "is looked for only while connections wait and nobody accepts".to_owned()
        } else if it.needs_closer_look() {
            "needs a closer look, which cannot be had".to_owned()
        } else {
            it.why.to_string()
        };
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => reasons.push((why, vec![name])),
        }
    }
    if !report.need_longer.is_empty() {
        let why = match report.source {
            Source::Daemon | Source::Standalone => "needs a longer look: --for, or a daemon",
            Source::Recording => "needs a longer recording",
        };
        reasons.push((why.to_owned(), report.need_longer.clone()));
    }
    let lines = reasons.iter().map(|(why, names)| {
        wrap("not judged  ", &format!("{}: {why}", names.join(", ")), terminal)
    });
    let missing = report.missing.iter().map(|it| wrap("missing     ", it, terminal));
    lines.chain(missing).collect()
}
