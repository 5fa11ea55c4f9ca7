//! `docs/DETECTIONS.md`, from what each detection says of itself.

use std::fmt::Write as _;

use crate::{
    detect::{
        kinds,
        rule::{About, Threshold},
        subject::SubjectKind,
    },
    time::Nanos,
};

const HEAD: &str = "# Detections

Made from `agent/src/detect` by `BACKLOGD_BLESS=1 cargo test -p backlogd --test golden`; not edited by hand.

Each detection looks at each of its subjects in each sample (every second by default). What it sees must be wrong for
its time to raise before it is told, and fine for its time to clear before that is over; most clear at a lower number
than they raise at. While one of those that say it better fires for the same subject, it is not told. An input that
this kernel or this privilege does not give makes a detection unknown, never fine: `backlogd check` lists those. What
becomes unknown while it fires goes on firing for its time to clear, a minute at least, and ends as `unknown`.

All of this can be set for some listeners or for all, with the names below as keys:

```toml
[[detect]]
alert = \"ListenerStalled\"
match = { comm = \"batch-*\", port = \"8000-8099\" }
critical_seconds = 300
clear_for_seconds = 30

[[detect]]
match = { namespace = \"test\" }
silence = true
```
";

pub(super) fn markdown() -> String {
    let mut text = String::from(HEAD);
    for (kind, mut abouts) in kinds() {
        abouts.sort_by_key(|about| about.name);
        // Writing to a String cannot fail.
        let _ = write!(text, "\n## {}\n\n{}.\n", heading(kind), matched(kind));
        abouts.into_iter().for_each(|about| describe(&mut text, about));
    }
    text
}

fn heading(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Listener => "Of each listener",
        SubjectKind::Expected => "Of each listener of `[[expect]]`",
        SubjectKind::Process => "Of each process that owns listeners",
        SubjectKind::Caller => "Of tasks of one name, by their system calls that fail",
        SubjectKind::Destination => "Of each destination of outbound connections",
        SubjectKind::Udp => "Of each bound UDP socket",
        SubjectKind::Namespace => "Of each network namespace",
        SubjectKind::Host => "Of the host",
        SubjectKind::Agent => "Of the agent itself",
    }
}

fn matched(kind: SubjectKind) -> String {
    match kind.matched_by() {
        [] => "Matched by nothing: there is one".to_owned(),
        keys => format!("Matched by `{}`", keys.join("`, `")),
    }
}

fn describe(text: &mut String, about: &About) {
    let About { name, summary, why, timing, min_age, thresholds, inhibited_by, .. } = about;
    let _ = write!(text, "\n### {name}\n\n{summary}. {why}\n\n");
    let _ = write!(
        text,
        "Raised {}, over {}",
        after("as soon as it is seen", "after", timing.raise_for),
        after("as soon as it is fine", "when fine for", timing.clear_for),
    );
    if Nanos(0) < *min_age {
        let _ = write!(text, "; not before its subject has been known for {}", span(*min_age));
    }
    text.push_str(".\n");
    if !inhibited_by.is_empty() {
        let _ = writeln!(text, "\nSaid better by {}.", inhibited_by.join(", "));
    }
    if thresholds.is_empty() {
        return;
    }
    text.push_str("\n| key | default | range | what |\n|---|---|---|---|\n");
    for Threshold { name, default, range, help } in *thresholds {
        let _ = writeln!(text, "| `{name}` | {default} | {range} | {help} |");
    }
}

fn after(at_once: &str, word: &str, time: Nanos) -> String {
    if time == Nanos(0) { at_once.to_owned() } else { format!("{word} {}", span(time)) }
}

/// Whole minutes as such, else seconds.
fn span(time: Nanos) -> String {
    let seconds = time.as_seconds();
    if 120.0 <= seconds && seconds % 60.0 == 0.0 {
        format!("{} min", seconds / 60.0)
    } else {
        format!("{seconds} s")
    }
}
