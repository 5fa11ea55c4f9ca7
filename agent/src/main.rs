//! The `backlogd` binary: reads the command line, calls the verb, gives the exit code.

use std::process::ExitCode;

use backlogd::cli::{Cli, Exit, out};

fn main() -> ExitCode {
    match Cli::parse() {
        Ok(cli) => cli.run().unwrap_or_else(|err| failed(&err)).into(),
        Err(err) => explained(&err).into(),
    }
}

/// Tells why a verb failed, with all causes on one line.
fn failed(err: &anyhow::Error) -> Exit {
    let exit = Exit::of(err);
    if exit != Exit::Fine {
        out::note(&format!("{err:#}"));
    }
    exit
}

/// Prints what clap has to say: help and version to standard output, mistakes to standard error.
fn explained(err: &clap::Error) -> Exit {
    // Nothing is left to do when the stream is closed.
    let _ = err.print();
    if err.use_stderr() { Exit::Usage } else { Exit::Fine }
}
