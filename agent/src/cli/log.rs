//! Logging to standard error: the tracing subscriber, the one piece of global state.

mod lines;

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
};

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, fmt, fmt::MakeWriter};

use self::lines::Lines;
use super::out::{self, Color};
use crate::config::{Config, LogFormat};

/// So many lines wait for a reader of standard error.
const QUEUE: usize = 4_096;

/// Writes what is left, as far as somebody reads it, when it is dropped.
#[must_use]
pub struct Log(Lines);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.end(out::PATIENCE);
    }
}

/// Starts logging for a daemon: what `filter` lets through, or more for each `-v`. A thread writes
/// it. Where nobody reads, lines are lost beyond [`QUEUE`], and nobody waits for them.
///
/// # Errors
/// A filter that is none, logging that has been started already, or no descriptor or thread.
pub fn for_daemon(config: &Config, verbose: u8, color: Color) -> anyhow::Result<Log> {
    let filter = match verbose {
        0 => &config.log,
        1 => "info,backlogd=debug",
        _ => "debug",
    };
    // a descriptor of its own: whoever waits for a reader does not hold the lock of std's
    let stderr = io::stderr().as_fd().try_clone_to_owned().context("standard error")?;
    let lines = Lines::start(QUEUE, File::from(stderr)).context("the thread of the log")?;
    let writer = lines.clone();
    start(filter, config.log_format, color, move || writer.clone())?;
    Ok(Log(lines))
}

/// Starts logging for a verb that answers and ends: errors, and more for each `-v`.
///
/// # Errors
/// As [`for_daemon`].
pub fn for_verb(verbose: u8, color: Color) -> anyhow::Result<()> {
    let level = match verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    start(level, LogFormat::Text, color, io::stderr)
}

fn start(
    filter: &str,
    format: LogFormat,
    color: Color,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter).context("log filter")?;
    let ansi = color.applies(io::stderr().is_terminal());
    // a log that nobody reads any more costs the log, not the agent
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(anyhow::Error::from_boxed)
}
