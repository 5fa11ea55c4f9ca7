//! The command line: one file per verb.
//!
//! Results go to standard output, everything else to standard error. A verb gives an [`Exit`] or
//! an error; [`Exit::of`] has the code of an error, and only `main` ends the process.

mod check;
mod config;
pub mod doctor;
mod exit;
mod explain;
mod flags;
mod http;
mod judged;
mod list;
pub mod log;
pub mod out;
mod record;
mod replay;
mod run;
mod shed;
mod snapshot;
mod span;
mod trace;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::exit::Exit;

/// Accept queues, drops, stalls and leaks of the TCP listeners on this host
#[derive(Debug, Parser)]
#[command(
    name = "backlogd",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        backlogd list                      every listener, busiest first\n  \
        backlogd check                     what is wrong, and what mends it\n  \
        backlogd explain 443               one listener's story\n  \
        sudo backlogd run                  the daemon; metrics at http://127.0.0.1:10511/metrics\n\n\
        Exit codes: 0 fine, 1 a warning, 2 critical, 3 cannot tell, 64 wrong usage, 78 wrong \
        configuration.\n\
        JSON keys, metric names and exit codes are stable; tables are for people and change."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

/// What all verbs take.
#[derive(Args, Debug)]
struct Common {
    /// When to use colours
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        display_order = 900
    )]
    color: out::Color,
    /// Say more on standard error; twice for still more
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 901)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
    List(list::List),
    Check(check::Check),
    Explain(explain::Explain),
    Doctor(doctor::Doctor),
    Trace(trace::Trace),
    Record(record::Record),
    Replay(replay::Replay),
    Shed(shed::Shed),
    #[command(subcommand)]
    Config(config::Verb),
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// clap's; `--help` and `--version` are among them.
    pub fn parse() -> Result<Self, clap::Error> {
        let commit = option_env!("BACKLOGD_COMMIT").unwrap_or("unknown");
        let version = format!("{} (commit {commit})", env!("CARGO_PKG_VERSION"));
        Self::from_arg_matches(&Self::command().version(version).try_get_matches()?)
    }

    /// Whether it runs until it is told to end.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        matches!(self.verb, Verb::Run(_) | Verb::Shed(_))
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// Whatever kept the verb from an answer.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Common { color, verbose } = self.common;
        match self.verb {
            Verb::Run(run) => run.run(color, verbose),
            Verb::Shed(shed) => shed.run(color, verbose),
            Verb::List(list) => {
                log::for_verb(verbose, color)?;
                list.run(color, 0 < verbose)
            }
            Verb::Check(check) => {
                log::for_verb(verbose, color)?;
                check.run(color, 0 < verbose)
            }
            Verb::Explain(explain) => {
                log::for_verb(verbose, color)?;
                explain.run(color, 0 < verbose)
            }
            Verb::Doctor(doctor) => {
                log::for_verb(verbose, color)?;
                doctor.run(color)
            }
            Verb::Trace(trace) => {
                log::for_verb(verbose, color)?;
                trace.run()
            }
            Verb::Record(record) => {
                log::for_verb(verbose, color)?;
                record.run()
            }
            Verb::Replay(replay) => {
                log::for_verb(verbose, color)?;
                replay.run(color)
            }
            Verb::Config(verb) => verb.run(color),
        }
    }
}
