//! `cargo xtask health`: records healthy servers, for the test that no detection fires on them.
//!
//! xtask/health/case.py plays each case. docs/health.md says what each is for; agent/tests/health.rs
//! replays them.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cases::{self, Case},
    packages,
};

/// All cases, in the order of docs/health.md, and whether the tracepoints of system calls are used where
/// no better hook of accept works: with them how long connections wait is known, without them is what the
/// agent does by default.
const CASES: [(&str, bool); 10] = [
    ("idle", false),
    ("nginx", true),
    ("prefork", true),
    ("deferred", false),
    ("connections", false),
    ("pool", false),
    ("activation", false),
    ("burst", true),
    ("pause", true),
    ("deploy", true),
];
/// What one of them runs.
const PROGRAMS: [(&str, &str); 1] = [("nginx", "nginx-light")];

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Records the cases, all at once
    Record {
        /// For how long
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
        minutes: u32,
        /// The folder of the recordings; those of the same name are overwritten
        #[arg(long, default_value = "agent/tests/health")]
        into: PathBuf,
        /// Only these cases
        #[arg(value_parser = CASES.map(|(name, _)| name))]
        cases: Vec<String>,
    },
}

/// Builds and records.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Verb::Record { minutes, into, cases } = &arguments.verb;
    packages::install(&PROGRAMS)?;
    let wanted =
        CASES.iter().filter(|(case, _)| cases.is_empty() || cases.iter().any(|it| it == case));
    let wanted = wanted.map(|&(name, waits)| Case {
        name,
        player: "case.py",
        minutes: *minutes,
        arguments: if waits { &["--accept-tracepoints"] } else { &[] },
    });
    cases::record(&wanted.collect::<Vec<_>>(), into)
}
