//! One line for monitoring programs, as the Monitoring Plugins guidelines have it; pure.

use crate::publish::api::{Check, Counts};

/// How full a queue is when it gets worth a look.
const NEARLY_FULL: f64 = 0.8;

/// Status, what is wrong, and performance data after a bar.
pub(super) fn render(report: &Check) -> String {
    let told = report.told().find(|alert| alert.severity != "info");
    let finding = report.findings.iter().find(|finding| finding.severity != "info");
    let seen = told.map(|it| &it.seen).or(finding.map(|it| &it.seen));
    let seen = seen.map_or_else(String::new, |seen| format!(": {seen}"));
    let summary = report.summary.replacen(": ", " - ", 1);
    let Counts { alerts, findings, infos } = report.counts();
    let fill = report.listeners.iter().filter_map(|it| it.fill_ratio_max).reduce(f64::max);
    let listening = || report.listeners.iter().filter(|it| 0 < it.sockets);
    let drops = listening().map(|it| it.drops).try_fold(0, add);
    let length = listening().map(|it| Some(it.length)).try_fold(0, add);
    let data = [
        format!("'alerts'={alerts};;;0"),
        format!("'findings'={findings};;;0"),
        format!("'infos'={infos};;;0"),
        format!("'listeners'={};;;0", listening().count()),
        format!("'queue_length'={};;;0", or_unknown(length.map(|it| it.to_string()))),
        format!(
            "'queue_fill_max'={};{NEARLY_FULL};1;0",
            or_unknown(fill.map(|it| format!("{it:.2}")))
        ),
        format!("'drops'={};;;0", or_unknown(drops.map(|it| format!("{it}c")))),
    ];
    format!("BACKLOGD {}{} | {}\n", escaped(&summary), escaped(&seen), data.join(" "))
}

/// A sum that a recording cannot make too large.
fn add(sum: u64, n: Option<u64>) -> Option<u64> {
    Some(sum.saturating_add(n?))
}

/// The same when nothing can be told.
pub(super) fn failed(why: &str) -> String {
    format!("BACKLOGD UNKNOWN - {}\n", escaped(why))
}

/// A value that is not known.
fn or_unknown(value: Option<String>) -> String {
    value.unwrap_or_else(|| "U".to_owned())
}

/// Without what ends the text: a bar, and the end of the line.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '|' => '/',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().map(escape).collect()
}
