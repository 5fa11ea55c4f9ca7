//! `backlogd check`: what is wrong here, what mends it; also a monitoring plugin.

mod nagios;
mod text;

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{
    Exit,
    flags::Flags,
    judged::{self, Request},
    out::{self, Color, Terminal},
    span,
};
use crate::{
    audit::wanted::Wanted,
    publish::api::{Check as Report, Source, Status},
};

/// Tell what is wrong with the listeners and settings of this host, and what mends it
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sudo backlogd check\n  \
    sudo backlogd check 443\n  \
    backlogd check [::1]:8080 -o nagios\n  \
    backlogd check -o json | jq -r '.alerts[], .findings[] | .mend'\n\n\
    Alerts are what happens; findings are settings that do harm on this host, or would. `info` changes\n\
    no exit code. The daemon knows hours; without one, own samples show what happens while they are\n\
    taken: longer than asked for when a queue is not served, until it is certain that it is stalled.\n\
    When a daemon gives no answer within two seconds, standard error says so, and own samples take no\n\
    longer than asked for. What could not be judged is counted in the summary.\n\n\
    A mend is text that a shell takes as it stands; what no command does is a comment in it.\n\n\
    Exit codes: 0 nothing is wrong, 1 a warning, 2 critical, 3 nothing is known to be wrong, and it\n\
    cannot be told whether connections are accepted, or there is no such listener.")]
pub(super) struct Check {
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

/// What is told of a report, and how.
#[derive(Args, Debug)]
pub(super) struct View {
    /// Only the listeners at this address, port, or both, and the processes behind them
    #[arg(value_name = "ADDR|PORT")]
    wanted: Option<Wanted>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Form,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    #[default]
    Table,
    /// The same with infos in full, and what other alerts say better
    Wide,
    /// Stable, for programs
    Json,
    /// The same as YAML
    Yaml,
    /// One line with performance data, for Nagios, Icinga and their kin
    Nagios,
}

impl Check {
    pub(super) fn run(&self, color: Color, verbose: bool) -> anyhow::Result<Exit> {
        self.view.tell(color, || self.report(verbose))
    }

    fn report(&self, verbose: bool) -> anyhow::Result<Report> {
        let config = self.flags.load_readable()?.config;
        let request = Request {
            standalone: self.standalone,
            insist: self.flags.has("socket"),
            target: "/api/v1/check",
            span: self.span,
        };
        let report = judged::answer(&config, request, |judged, watched| {
            let report = Report::new(judged, Source::Standalone, Some(watched));
            if judged::may_be_stalled(&judged.snapshot, watched, config.stalled_after) {
                report.too_short_for_stalls()
            } else {
                report
            }
        })?;
        judged::describe(report.source, verbose);
        judged::tell_unmatched(&report.unmatched);
        Ok(report)
    }
}

impl View {
    /// Prints what `report` gives, or that it gives nothing.
    pub(super) fn tell(
        &self,
        color: Color,
        report: impl FnOnce() -> anyhow::Result<Report>,
    ) -> anyhow::Result<Exit> {
        let result = report().and_then(|report| self.print(report, color));
        if let (Form::Nagios, Err(err)) = (self.output, &result)
            && Exit::of(err) == Exit::CannotTell
        {
            // such programs show standard output alone
            out::print(&nagios::failed(&format!("{err:#}")))?;
        }
        result
    }

    fn print(&self, report: Report, color: Color) -> anyhow::Result<Exit> {
        let report = match self.wanted {
            None => report,
            Some(wanted) => match report.only(wanted) {
                Some(report) => report,
                None => anyhow::bail!("nobody listens on {wanted}"),
            },
        };
        out::print(&match self.output {
            Form::Table => text::render(&report, &Terminal::new(color), false),
            Form::Wide => text::render(&report, &Terminal::new(color), true),
            Form::Json => out::json(&report)?,
            Form::Yaml => out::yaml(&report)?,
            Form::Nagios => nagios::render(&report),
        })?;
        Ok(match report.status {
            Status::Fine => Exit::Fine,
            Status::Warning => Exit::Warning,
            Status::Critical => Exit::Critical,
            Status::Unknown => Exit::CannotTell,
        })
    }
}

#[cfg(test)]
mod tests;
