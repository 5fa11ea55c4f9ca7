//! The `backlogd` binary: reads the command line, calls the verb, gives the exit code.

use std::process::ExitCode;

use backlogd::cli::{Cli, Exit, out};

fn main() -> ExitCode {
    match Cli::parse() {
        Ok(cli) => {
            let is_daemon = cli.is_daemon();
            cli.run().unwrap_or_else(|err| failed(&err, is_daemon)).into()
        }
        Err(err) => explained(&err).into(),
    }
}

/// Tells why a verb failed, with all causes on one line.
fn failed(err: &anyhow::Error, is_daemon: bool) -> Exit {
    let (exit, text) = (Exit::of(err), format!("{err:#}"));
    match exit {
        Exit::Fine => {}
        // who starts it again must not wait for who reads
        _ if is_daemon => out::last_note(text),
        _ => out::note(&text),
    }
    exit
}

/// Prints what clap has to say: help and version to standard output, mistakes to standard error.
fn explained(err: &clap::Error) -> Exit {
    // Nothing is left to do when the stream is closed.
    let _ = err.print();
    if err.use_stderr() { Exit::Usage } else { Exit::Fine }
}
