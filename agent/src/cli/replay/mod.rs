//! `backlogd replay`: the reading verbs over a recording.
//!
//! A verb here is one more [`Verb`], which gets a [`Playback`].

mod alerts;
mod date;
mod playback;
mod summary;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use self::playback::Playback;
use super::{
    Exit, check, explain,
    judged::tell_unmatched,
    list::View,
    out::{self, Color, Format, Terminal, WriteError},
    span,
};
use crate::{
    config,
    detect::{Detector, Judged, alert::Verdicts},
    publish::api::{Check, Explanation, Listeners, Source},
    time::Nanos,
};

/// Look at a recording that `backlogd record` made
#[derive(Args, Debug)]
#[command(
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        backlogd replay incident.backlogd\n  \
        backlogd replay incident.backlogd alerts\n  \
        backlogd replay incident.backlogd check\n  \
        backlogd replay incident.backlogd --at 00:12:30 explain 443\n  \
        backlogd replay incident.backlogd --at 00:12:30 list -o wide --port 443\n\n\
        Without a verb it says what is in the recording. Exit code 1: the recording is cut, 3: it is\n\
        damaged, what is shown is from before; 3 without output: nothing can be read."
)]
pub(super) struct Replay {
    /// The recording
    file: PathBuf,
    /// How far: a time since its start as 00:12:30 or 90s, or `last`
    #[arg(long, global = true, default_value = "last", value_name = "TIME")]
    at: At,
    /// A configuration whose [[detect]] and [[expect]] the detections follow [default: none]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Form of what is said without a verb
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Check(OneCheck),
    Explain(Story),
    Alerts(alerts::Alerts),
}

/// The listeners at that time, busiest first
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  \
    backlogd replay incident.backlogd list --at 00:12:30 --port 443 -o wide\n\n\
    Columns as in `backlogd list --help`.")]
struct List {
    #[command(flatten)]
    view: View,
}

/// What was wrong at that time, by all that came before
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  \
    backlogd replay incident.backlogd check --at 00:12:30 443\n\n\
    As `backlogd check`, whose exit codes it has: 0 nothing was wrong, 1 a warning or the recording\n\
    is cut, 2 critical, 3 it cannot be told, the recording is damaged, or there was no such\n\
    listener.")]
struct OneCheck {
    #[command(flatten)]
    view: check::View,
}

/// One listener's story at that time
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  \
    backlogd replay incident.backlogd explain --at 00:12:30 443\n\n\
    As `backlogd explain`. The numbers count since the recorder began.")]
struct Story {
    #[command(flatten)]
    view: explain::View,
}

/// How far to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// To the end.
    Last,
    /// To the newest snapshot that is not later.
    Time(Nanos),
}

impl Replay {
    pub(super) fn run(self, color: Color) -> anyhow::Result<Exit> {
        if self.verb.is_some() && self.output.is_some() {
            out::note("-o comes after the verb, as in: backlogd replay FILE list -o json");
            return Ok(Exit::Usage);
        }
        let detector = self.detector()?;
        let mut playback = Playback::open(&self.file, self.at)?;
        let told = match self.verb {
            None => summary::run(&mut playback, detector, self.output.unwrap_or_default()),
            Some(Verb::List(list)) => list.run(&mut playback, color),
            Some(Verb::Check(check)) => check.run(&mut playback, detector, color),
            Some(Verb::Explain(story)) => story.run(&mut playback, detector, color),
            Some(Verb::Alerts(alerts)) => alerts.run(&mut playback, detector, color),
        };
        if told.as_ref().is_err_and(anyhow::Error::is::<WriteError>) {
            return told;
        }
        Ok(match (playback.exit(), told?) {
            (Exit::Warning, Exit::Fine) => Exit::Warning,
            (Exit::CannotTell, _) => Exit::CannotTell,
            (_, told) => told,
        })
    }

    /// As configured; what is in force on this host is not for a recording of another.
    fn detector(&self) -> anyhow::Result<Detector> {
        let Some(file) = &self.config else { return Ok(Detector::default()) };
        let loaded = config::load(Some(file), |_| None, &[])?;
        Ok(Detector::new(loaded.config.tuning))
    }
}

/// What the detections say at the end of all that is played, and the time that it covers.
fn judge(playback: &mut Playback, mut detector: Detector) -> anyhow::Result<(Judged, Nanos)> {
    let mut verdicts = None;
    let last = playback.play(|snapshot| verdicts = Some(detector.judge(snapshot)))?;
    tell_unmatched(verdicts.as_ref().map_or(&[][..], |verdicts: &Verdicts| &verdicts.idle));
    let judged = Judged { snapshot: last.into(), verdicts: verdicts.unwrap_or_default().into() };
    Ok((judged, playback.played().time))
}

impl OneCheck {
    fn run(
        &self,
        playback: &mut Playback,
        detector: Detector,
        color: Color,
    ) -> anyhow::Result<Exit> {
        self.view.tell(color, || {
            let (judged, watched) = judge(playback, detector)?;
            Ok(Check::new(&judged, Source::Recording, Some(watched)))
        })
    }
}

impl Story {
    fn run(
        &self,
        playback: &mut Playback,
        detector: Detector,
        color: Color,
    ) -> anyhow::Result<Exit> {
        let asked = self.view.asked()?;
        let (judged, _) = judge(playback, detector)?;
        self.view.print(&Explanation::new(&judged, &asked, Source::Recording), color)
    }
}

impl List {
    fn run(&self, playback: &mut Playback, color: Color) -> anyhow::Result<Exit> {
        let netns = self.view.netns()?;
        let last = playback.play(|_| {})?;
        let listeners = self.view.select(Listeners::new(&last, Source::Recording), &netns);
        out::print(&self.view.document(&listeners, &Terminal::new(color))?)?;
        if listeners.listeners.is_empty() {
            out::note(if last.listeners.is_empty() { "no listener" } else { "no such listener" });
        }
        Ok(Exit::Fine)
    }
}

impl std::str::FromStr for At {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "last" {
            return Ok(Self::Last);
        }
        let time = of_clock(text).or_else(|| span::parse(text).ok());
        time.map(|time| Self::Time(time.into()))
            .ok_or("expected `last`, or a time since the start such as 00:12:30 or 90s")
    }
}

/// Reads `00:12:30`.
fn of_clock(text: &str) -> Option<Duration> {
    let parts: Vec<&str> = text.split(':').collect();
    let [hours, minutes, seconds] = *parts else { return None };
    let part = |text: &str, most: u64| {
        let is_number =
            !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|&n: &u64| is_number && n <= most)
    };
    let (hours, minutes) = (part(hours, 9999)?, part(minutes, 59)?);
    Some(Duration::from_secs(hours * 3600 + minutes * 60 + part(seconds, 59)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, seconds: Option<u64>) {
        let expected = seconds.map(|seconds| At::Time(Nanos(seconds * 1_000_000_000)));
        assert_eq!(expected, text.parse().ok(), "{text}");
    }

    #[test]
    fn a_place_in_a_recording_is_a_time_or_the_end() {
        assert_eq!(Ok(At::Last), "last".parse());
        check("00:12:30", Some(750));
        check("100:00:01", Some(360_001));
        check("90s", Some(90));
        for wrong in ["", "12:30", "00:60:00", "00:00:60", "+1:00:00", "::", "1:2:3:4", "99999:0:0"]
        {
            check(wrong, None);
        }
    }
}
