//! Runs of test programs, and which tests of them are worth a second one.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Result, ensure};

use crate::{counts::Counts, sh};

/// More failed tests than this are no flake.
const MOST: usize = 3;

/// `failed`, if that is all that happened, and few.
pub(crate) fn suspects(failed: &[String], counts: Counts) -> &[String] {
    let is_whole = u64::try_from(failed.len()) == Ok(counts.failed);
    if is_whole && failed.len() <= MOST { failed } else { &[] }
}

/// Runs `cargo test`, as `command` says.
pub(crate) fn run(command: &mut Command, said: &mut Said) -> Result<()> {
    finish(start(command)?, said)
}

/// Starts it; what it says waits for [`finish`].
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    println!("$ {}", sh::show(command));
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

/// Shows what it says, from its beginning on.
pub(crate) fn finish(mut child: Child, said: &mut Said) -> Result<()> {
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let line = line?;
        println!("{line}");
        said.line(&line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo test: {status}");
    Ok(())
}

/// What test programs wrote, one after the other, line by line.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) counts: Counts,
    failed: Vec<String>,
    /// Below the last `failures:` of the program that runs.
    listed: Option<Vec<String>>,
    n_begun: usize,
    n_ended: usize,
}

impl Said {
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = Counts::parse(line) {
            self.counts.add(counts);
            self.n_ended += 1;
            self.failed.extend(self.listed.take().into_iter().flatten());
        } else if line == "failures:" {
            // the first such list of a program has what the tests wrote
            self.listed = Some(Vec::new());
        } else if let (Some(names), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            names.push(name.to_owned());
        } else if line.strip_prefix("running ").is_some_and(|rest| {
            rest.strip_suffix(" tests").or(rest.strip_suffix(" test")).is_some()
        }) {
            self.n_begun += 1;
        }
    }

    /// The tests that are worth a second run; none when all passed, when a program did not come to
    /// its end, or when too many failed.
    pub(crate) fn suspects(&self) -> &[String] {
        if self.n_begun == self.n_ended { suspects(&self.failed, self.counts) } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let mut said = Said::default();
        text.lines().for_each(|line| said.line(line));
        assert_eq!(said.suspects(), expected, "{text}");
    }

    fn program(failed: &[&str]) -> String {
        let names: String = failed.iter().map(|name| format!("    {name}\n")).collect();
        let result = format!("1 passed; {} failed; 0 ignored; 0 filtered out", failed.len());
        if failed.is_empty() {
            return format!("\nrunning 1 test\n\ntest result: ok. {result}\n");
        }
        format!(
            "\nrunning 9 tests\n\nfailures:\n\n---- a stdout ----\n    indented\n\n\nfailures:\n\
             {names}\ntest result: FAILED. {result}\n"
        )
    }

    #[test]
    fn few_tests_that_failed_are_worth_a_second_run() {
        check(&program(&[]), &[]);
        check(&program(&["a::b"]), &["a::b"]);
        check(&[program(&["a", "b"]), program(&[]), program(&["c"])].concat(), &["a", "b", "c"]);
        check(&[program(&["a", "b"]), program(&["c", "d"])].concat(), &[]);
    }

    #[test]
    fn a_program_that_did_not_come_to_its_end_has_failed() {
        check(&[&program(&["a"]), "running 2 tests\ntest b ... "].concat(), &[]);
    }
}
