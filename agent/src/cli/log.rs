//! Logging to standard error: the tracing subscriber, the one piece of global state.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt, fmt::MakeWriter};

use super::out::Color;
use crate::config::{Config, LogFormat};

/// So many lines wait for a reader of standard error.
const QUEUE: usize = 4_096;

/// Writes what waits, as far as somebody reads it within a second, when it is dropped.
#[must_use]
pub struct Log(#[expect(dead_code, reason = "its end matters")] WorkerGuard);

/// Starts logging for a daemon: what `filter` lets through, or more for each `-v`. A thread writes
/// it. Where nobody reads, lines are lost beyond [`QUEUE`], and nobody waits for them.
///
/// # Errors
/// A filter that is none, or logging that has been started already.
pub fn for_daemon(config: &Config, verbose: u8, color: Color) -> anyhow::Result<Log> {
    let filter = match verbose {
        0 => &config.log,
        1 => "info,backlogd=debug,backlogd_shed=debug",
        _ => "info,backlogd=trace,backlogd_shed=trace",
    };
    let queue = NonBlockingBuilder::default().thread_name("log").buffered_lines_limit(QUEUE);
    let (writer, guard) = queue.finish(io::stderr());
    start(filter, config.log_format, color, writer)?;
    Ok(Log(guard))
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
