//! `backlogd explain`: one listener's story in words.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::{
    Exit,
    flags::Flags,
    judged::{self, Request},
    out::{self, Cell, Color, Format, Paint, Terminal, wrap},
    span,
};
use crate::{
    audit::wanted::Asked,
    id::Pid,
    publish::api::{Explained, Explanation, Source},
};

/// No line of a story is longer, also on a wide terminal.
const WIDEST: usize = 100;

/// Tell one listener's story: its limit, its queue, its drops, who should accept, what to do
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sudo backlogd explain 443\n  \
    sudo backlogd explain [::1]:8080\n  \
    sudo backlogd explain --pid 1234\n  \
    backlogd explain 443 -o json | jq -r '.listeners[].sections[] | .section, .lines[]'\n\n\
    A number is a port; where no listener has that port, a process id. The numbers count since the\n\
    daemon runs; without one, or when it gives no answer within two seconds, since this command began.\n\n\
    Exit codes: 0 told, 3 there is no such listener, or nothing can be read.")]
pub(super) struct Explain {
    #[command(flatten)]
    view: View,
    /// How long to watch where no daemon is asked
    #[arg(long = "for", default_value = "3s", value_parser = span::parse, value_name = "TIME")]
    span: Duration,
    /// Take own samples, also when a daemon runs
    #[arg(long)]
    standalone: bool,
    #[command(flatten)]
    flags: Flags<false>,
}

/// Whose stories, and how they are told.
#[derive(Args, Debug)]
pub(super) struct View {
    /// A port, a process id, an address, or an address and a port
    #[arg(value_name = "PORT|PID", required_unless_present = "pid")]
    asked: Option<Asked>,
    /// The listeners of this process
    #[arg(long, value_name = "PID", conflicts_with = "asked",
          value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

impl Explain {
    pub(super) fn run(&self, color: Color, verbose: bool) -> anyhow::Result<Exit> {
        let config = self.flags.load_readable()?.config;
        let asked = self.view.asked()?;
        let query = match asked {
            Asked::Process(_) => "pid",
            Asked::Number(_) | Asked::Place(_) => "of",
        };
        let request = Request {
            standalone: self.standalone,
            insist: self.flags.has("socket"),
            target: &format!("/api/v1/explain?{query}={asked}"),
            span: self.span,
        };
        let stories = judged::answer(&config, request, |judged, _| {
            Explanation::new(judged, &asked, Source::Standalone)
        })?;
        judged::describe(stories.source, verbose);
        self.view.print(&stories, color)
    }
}

impl View {
    /// Whose stories.
    pub(super) fn asked(&self) -> anyhow::Result<Asked> {
        match (self.asked, self.pid) {
            (_, Some(pid)) => Ok(Asked::Process(Pid(pid))),
            (Some(asked), None) => Ok(asked),
            (None, None) => bail!("neither a port nor a process id was given"),
        }
    }

    /// Prints them.
    pub(super) fn print(&self, stories: &Explanation, color: Color) -> anyhow::Result<Exit> {
        if stories.listeners.is_empty() {
            bail!("no listener has the port, the address or the process id {}", self.asked()?);
        }
        let terminal = Terminal::new(color);
        out::print(&match self.output {
            Format::Table | Format::Wide => render(stories, &terminal),
            Format::Json => out::json(stories)?,
            Format::Yaml => out::yaml(stories)?,
        })?;
        Ok(Exit::Fine)
    }
}

/// The stories for people, one after the other.
fn render(stories: &Explanation, terminal: &Terminal) -> String {
    let size = terminal.size.map(|(columns, rows)| (columns.min(WIDEST), rows));
    let terminal = Terminal { size, ..*terminal };
    let stories = stories.listeners.iter().map(|it| story(it, &terminal));
    stories.collect::<Vec<_>>().join("\n")
}

fn story(of: &Explained, terminal: &Terminal) -> String {
    let paint = match of.alerts.first().map(|alert| alert.severity.as_str()) {
        Some("info") | None => Paint::Plain,
        Some("warning") => Paint::Yellow,
        Some(_) => Paint::Red,
    };
    let mut text = Cell::new(&of.subject).painted(paint).inline(terminal) + "\n";
    for section in &of.sections {
        for (n, line) in section.lines.iter().enumerate() {
            let name = if n == 0 { section.section.as_str() } else { "" };
            text += &wrap(&format!("  {name:<11}  "), line, terminal);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::fixture::judged,
        detect::{fixture, phase::Severity},
    };

    const PIPE: Terminal = Terminal { size: None, color: false, redraws: false };

    fn stories(asked: &str) -> Explanation {
        let mut now = fixture::snapshot([80, 443, 100].map(fixture::listener).into());
        now.samples = 4;
        now.listeners[2].owners = [Pid(7)].into();
        let alert = ("ListenerStalled", Severity::Critical, 0, "9 connections wait");
        let asked = asked.parse().expect("the case is right");
        Explanation::new(&judged(now, &[alert]), &asked, Source::Daemon)
    }

    #[track_caller]
    fn check(asked: &str, ports: &[u16]) {
        let stories = stories(asked);
        let got: Vec<u16> = stories.listeners.iter().map(|it| it.listener.port).collect();
        assert_eq!(ports, got, "{asked}");
    }

    #[test]
    fn a_number_is_a_port_and_else_a_process() {
        check("443", &[443]);
        check("100", &[100]);
        check("7", &[100]);
        check("8", &[]);
        check("0.0.0.0", &[80, 443, 100]);
        check("0.0.0.0:80", &[80]);
        check("4000000000", &[]);
    }

    #[test]
    fn a_story_is_broken_at_the_width_of_the_terminal() {
        let narrow = Terminal { size: Some((72, 24)), ..PIPE };
        let text = render(&stories("80"), &narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 72), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn stories_of_several_listeners_follow_each_other_and_colour_marks_the_worst() {
        let color = Terminal { color: true, ..PIPE };
        let text = render(&stories("0.0.0.0"), &color);
        assert_eq!(2, text.matches("\n\n").count(), "{text}");
        assert!(text.starts_with("\x1b[31mnginx 0.0.0.0:80\x1b[0m\n  who "), "{text}");
    }
}
