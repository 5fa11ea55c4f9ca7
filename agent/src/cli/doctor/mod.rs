//! `backlogd doctor`: can the agent work here, how well, and what would make it better.

mod advice;
mod need;
pub mod report;
mod text;

use std::{collections::BTreeMap, path::Path};

use clap::Args;

use self::report::{Daemon, Report, Verdict};
use super::{
    Exit,
    flags::Flags,
    http,
    out::{self, Color, Format, Terminal},
};
use crate::{
    config::Config,
    daemon, error,
    input::Hook,
    sources::{Sources, machine},
};

/// The source without which there is nothing to show.
const LISTENERS: &str = "sock_diag";

/// Tell whether the agent can work here, which hook serves each event and what would change that
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sudo backlogd doctor\n  \
    sudo backlogd doctor -o wide               also what each tier needs\n  \
    backlogd doctor -o json | jq -r '.findings[].change[].how'\n\n\
    The eBPF programs are loaded with this process's own privileges and taken out again at once:\n\
    run it as the daemon runs. Each finding says what is in the way, what is lost by that and what\n\
    would change it; where several name one event, one of them is enough. Where a hook was refused,\n\
    the table has the kernel's answer.\n\n\
    Exit codes: 0 nothing is lost, 1 something is degraded (see the findings), 3 no eBPF program\n\
    runs, or nothing can be told.")]
pub(super) struct Doctor {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    flags: Flags<false>,
}

impl Doctor {
    pub(super) fn run(&self, color: Color) -> anyhow::Result<Exit> {
        let config = self.flags.load_readable()?.config;
        let daemon = ask(config.socket.as_deref());
        let machine = machine::read();
        let report = Report::new(daemon, &machine, &attempt(&config));
        out::print(&match self.output {
            Format::Table => text::render(&report, &Terminal::new(color), false),
            Format::Wide => text::render(&report, &Terminal::new(color), true),
            Format::Json => out::json(&report)?,
            Format::Yaml => out::yaml(&report)?,
        })?;
        Ok(match report.verdict {
            Verdict::Fine => Exit::Fine,
            Verdict::Degraded => Exit::Warning,
            Verdict::NoEbpf | Verdict::Unusable => Exit::CannotTell,
        })
    }
}

/// What came of opening the sources and reading them once.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// How each event is obtained.
    pub hooks: Vec<Hook>,
    /// What could not be read, and why, by source.
    pub unreadable: BTreeMap<&'static str, String>,
}

fn attempt(config: &Config) -> Tried {
    match Sources::open(&daemon::options(config)) {
        Ok(mut sources) => {
            let unreadable = sources.sample().degraded;
            Tried { hooks: sources.hooks().to_vec(), unreadable }
        }
        Err(err) => {
            let unreadable = BTreeMap::from([(LISTENERS, error::chain(&err))]);
            Tried { hooks: Vec::new(), unreadable }
        }
    }
}

/// Whether a daemon answers.
fn ask(socket: Option<&Path>) -> Daemon {
    let Some(path) = socket else {
        let why = "no socket is configured".to_owned();
        return Daemon { socket: None, answers: false, why: Some(why) };
    };
    let why = match http::get(path, "/healthz", http::PATIENCE) {
        Ok(_) => None,
        Err(err) if err.is_nobody() => Some("nobody listens there".to_owned()),
        Err(err) => Some(error::chain(&err)),
    };
    Daemon { socket: Some(path.display().to_string()), answers: why.is_none(), why }
}

#[cfg(test)]
mod tests;
