//! Logging to standard error: the tracing subscriber, the one piece of global state.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, fmt};

use super::out::Color;
use crate::config::LogFormat;

/// Starts logging what `filter` lets through.
///
/// # Errors
/// A filter that is none, or logging that has been started already.
pub fn start(filter: &str, format: LogFormat, color: Color) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter).context("log filter")?;
    let ansi = color.applies(io::stderr().is_terminal());
    // a log that nobody reads any more costs the log, not the agent
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(ansi)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(anyhow::Error::from_boxed)
}

/// Starts logging for a verb that answers and ends: errors, and more for each `-v`.
///
/// # Errors
/// As [`start`].
pub fn for_verb(verbose: u8, color: Color) -> anyhow::Result<()> {
    let level = match verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    start(level, LogFormat::Text, color)
}
