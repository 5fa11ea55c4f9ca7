//! Output: standard output that may be closed, colours, JSON, YAML and tables.

mod table;
mod wrap;

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::ValueEnum;
use serde::Serialize;

pub use self::{
    table::{Align, Cell, Column, Paint, Table, printable},
    wrap::wrap,
};

/// The form of printed data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// The table with more columns
    Wide,
    /// Stable, for programs
    Json,
    /// The same as YAML
    Yaml,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    /// Also into a pipe, unless NO_COLOR is set
    Always,
    /// Not at all
    Never,
}

impl Color {
    /// Whether to colour a stream that is a terminal or not.
    #[must_use]
    pub fn applies(self, is_terminal: bool) -> bool {
        let wanted = || env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        match self {
            Self::Auto => is_terminal && wanted() && !is_dumb(),
            Self::Always => wanted(),
            Self::Never => false,
        }
    }
}

fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// What standard output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns and rows; `None`: no terminal, lines may be as long as they like.
    pub size: Option<(usize, usize)>,
    /// Whether to use colours.
    pub color: bool,
    /// Whether the cursor can be moved.
    pub redraws: bool,
}

impl Terminal {
    /// Looks at standard output.
    #[must_use]
    pub fn new(color: Color) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let size = is_terminal.then(|| match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if 0 < size.ws_col && 0 < size.ws_row => {
                (size.ws_col.into(), size.ws_row.into())
            }
            // A serial line does not know its size.
            _ => (100, 24),
        });
        let color = color.applies(is_terminal);
        Self { size, color, redraws: is_terminal && !is_dumb() }
    }
}

/// Why nothing more can be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The reader has gone, which is its right.
    #[error("standard output is closed")]
    Closed,
    /// Anything else, such as a full disk.
    #[error("standard output")]
    Failed(#[source] io::Error),
}

/// Writes to standard output, at once.
///
/// # Errors
/// See [`WriteError`].
pub fn print(text: &str) -> Result<(), WriteError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|err| {
        match err.kind() {
            io::ErrorKind::BrokenPipe => WriteError::Closed,
            _ => WriteError::Failed(err),
        }
    })
}

/// At the end of a daemon, who reads standard error may take so long for what is left.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Writes one line for people to standard error.
pub fn note(text: &str) {
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr().lock(), "backlogd: {text}");
}

/// As [`note`], but it waits no longer than [`PATIENCE`] where nobody reads.
pub fn last_note(text: String) {
    let (done, is_done) = mpsc::channel();
    let writes = thread::Builder::new().spawn(move || {
        note(&text);
        let _ = done.send(());
    });
    if writes.is_ok() {
        // it is late, or it is written
        let _ = is_done.recv_timeout(PATIENCE);
    }
}

/// As indented JSON.
///
/// # Errors
/// serde's, for a value that JSON cannot hold.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// As one line of JSON, for a stream of documents.
///
/// # Errors
/// As [`json`].
pub fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// As YAML.
///
/// # Errors
/// As [`json`].
pub fn yaml(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_norway::to_string(value)?)
}
