//! `backlogd replay FILE alerts`: when each alert was told, and when it was over.

use clap::Args;

use super::{date::utc, playback::Playback};
use crate::{
    cli::{
        Exit,
        judged::tell_unmatched,
        out::{self, Cell, Color, Format, Paint, Terminal, wrap},
    },
    detect::{Detector, phase::Severity},
    publish::api::{Changed, Timeline},
    recording::clock,
    time::{Nanos, UnixTime},
};

/// Where the words of a line begin below its first.
const INDENT: &str = "          ";

/// When each alert was raised, changed its severity, and was over
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    backlogd replay incident.backlogd alerts\n  \
    backlogd replay incident.backlogd alerts -o json | jq -c '.changes[] | [.time_seconds, .change, .alert]'\n\n\
    What other alerts say better is not told. Exit codes as of `backlogd replay`.")]
pub(super) struct Alerts {
    /// Form of the output; wide: with what shows or mends it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

impl Alerts {
    pub(super) fn run(
        &self,
        playback: &mut Playback,
        mut detector: Detector,
        color: Color,
    ) -> anyhow::Result<Exit> {
        let mut timeline = Timeline::default();
        let (mut start, mut idle) = (None, Vec::new());
        playback.play(|snapshot| {
            let start = *start.get_or_insert(snapshot.at);
            let verdicts = detector.judge(snapshot);
            timeline.push(snapshot.at - start, &verdicts);
            idle = verdicts.idle;
        })?;
        if timeline.changes.is_empty() {
            out::note("no alert was told");
        }
        if 0 < timeline.left_out {
            let (shown, more) = (timeline.changes.len(), timeline.left_out);
            out::note(&format!("the first {shown} changes are shown, {more} more are not"));
        }
        let terminal = Terminal::new(color);
        out::print(&match self.output {
            Format::Table => render(&timeline, &terminal, false),
            Format::Wide => render(&timeline, &terminal, true),
            Format::Json => out::json(&timeline)?,
            Format::Yaml => out::yaml(&timeline)?,
        })?;
        tell_unmatched(&idle);
        Ok(Exit::Fine)
    }
}

/// A line for each change, and below it what was seen. `wide`: also what mends it.
fn render(timeline: &Timeline, terminal: &Terminal, wide: bool) -> String {
    let tell = |changed: &Changed| {
        let alert = &changed.alert;
        let time = Nanos::from_seconds(changed.time_seconds).unwrap_or_default();
        let unix = Nanos::from_seconds(changed.unix_time_seconds).unwrap_or_default();
        let what = match changed.change.as_str() {
            // how bad it was is over
            "cleared" | "unknown" | "inhibited" | "silenced" => {
                Cell::new(&format!("{:<17}", changed.change))
            }
            change => Cell::new(&format!("{change:<8} {:<8}", alert.severity))
                .painted(paint(&alert.severity)),
        };
        let mut text = format!(
            "{}  {}  {}  {}  {}\n",
            clock(time),
            utc(UnixTime(unix.0)),
            what.inline(terminal),
            alert.alert,
            Cell::new(&alert.subject).inline(terminal),
        );
        if let Some(reason) = &changed.reason {
            return text + &wrap(&format!("{INDENT}why    "), reason, terminal);
        }
        if changed.change == "cleared" {
            return text;
        }
        text += &wrap(&format!("{INDENT}seen   "), &alert.seen, terminal);
        if let Some(cause) = &alert.cause {
            text += &wrap(&format!("{INDENT}cause  "), cause, terminal);
        }
        if wide {
            text += &wrap(&format!("{INDENT}mend   "), &alert.mend, terminal);
        }
        text
    };
    timeline.changes.iter().map(tell).collect()
}

fn paint(severity: &str) -> Paint {
    if severity == Severity::Critical.name() {
        Paint::Red
    } else if severity == Severity::Warning.name() {
        Paint::Yellow
    } else {
        Paint::Plain
    }
}
