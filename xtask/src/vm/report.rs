//! How each machine ended, and what that means for the whole.

use std::{fmt, time::Duration};

use anyhow::{Result, ensure};

use super::matrix::{Presence, Row};
use crate::counts::Counts;

/// How one machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// What happened, if not a test failed.
    Failed(String),
    /// The kernel cannot be had, and why.
    Skipped(String),
}

/// One line of the table.
pub(super) struct Ended {
    pub(super) row: Row,
    pub(super) outcome: Outcome,
    pub(super) counts: Counts,
    pub(super) took: Duration,
}

/// All machines that were asked for.
pub(crate) struct Report(pub(super) Vec<Ended>);

impl Ended {
    /// Judges a machine by the status of xtask/vm/boot and by all that it wrote.
    pub(super) fn new(row: Row, status: Option<i32>, text: &str, took: Duration) -> Self {
        // the last, since a test may have run this program again
        let counts = text.lines().filter_map(Counts::parse).next_back();
        let said = || text.lines().rfind(|line| line.starts_with("boot: ")).unwrap_or_default();
        let outcome = match (status, counts) {
            (Some(0), Some(counts)) if counts.passed > 0 => Outcome::Passed,
            (Some(0), _) => Outcome::Failed("no test ran".into()),
            (Some(NO_KERNEL), _) => Outcome::Skipped(said().into()),
            (Some(TIMED_OUT | NO_GUEST), _) => Outcome::Failed(said().into()),
            (Some(_), Some(counts)) if counts.failed > 0 => Outcome::Failed(String::new()),
            (status, _) => Outcome::Failed(format!("status {status:?}")),
        };
        Self { row, outcome, counts: counts.unwrap_or_default(), took }
    }

    fn is_bad(&self, is_ci: bool) -> bool {
        match self.outcome {
            Outcome::Passed => false,
            Outcome::Skipped(_) => is_ci && self.row.presence == Presence::Required,
            Outcome::Failed(_) => true,
        }
    }
}

/// Statuses of xtask/vm/boot.
const TIMED_OUT: i32 = 124;
const NO_GUEST: i32 = 125;
const NO_KERNEL: i32 = 126;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, why) = match &self.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why) => ("failed", why.as_str()),
            Outcome::Skipped(why) => ("skipped", why.as_str()),
        };
        let (Row { kernel, tier, guest, .. }, counts) = (self.row, self.counts);
        let Counts { passed, failed, filtered } = counts;
        let took = self.took.as_secs();
        let line = format!(
            "{kernel:<6} {tier:<10} {guest:<8} {word:<7} {passed:>6} {failed:>6} {filtered:>8} \
             {took:>7}  {why}"
        );
        f.write_str(line.trim_end())
    }
}

impl Report {
    /// The tests of all machines together.
    pub(crate) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.0.iter().for_each(|ended| sum.add(ended.counts));
        sum
    }

    /// Fails when a machine failed, and with `is_ci` when one is missing that must not be.
    pub(crate) fn check(&self, is_ci: bool) -> Result<()> {
        let bad: Vec<String> = self
            .0
            .iter()
            .filter(|ended| ended.is_bad(is_ci))
            .map(|ended| ended.row.name())
            .collect();
        ensure!(bad.is_empty(), "not passed: {}", bad.join(", "));
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel tier       guest    outcome passed failed filtered seconds")?;
        self.0.iter().try_for_each(|ended| writeln!(f, "{ended}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::matrix::ROWS, *};

    const PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 36 filtered \
        out; finished in 1s\ntest result: ok. 34 passed; 0 failed; 0 ignored; 0 measured; 2 \
        filtered out; finished in 9s\n";

    fn ended(status: i32, text: &str) -> Ended {
        Ended::new(ROWS[0], Some(status), text, Duration::from_millis(94_500))
    }

    #[track_caller]
    fn check(status: i32, text: &str, expected: &str) {
        assert_eq!(ended(status, text).to_string(), expected);
    }

    #[test]
    fn a_line_has_counts_and_what_happened() {
        check(0, PASSED, "6.12   fentry              passed      34      0        2      94");
        let failed = PASSED.replace("34 passed; 0 failed", "33 passed; 1 failed");
        check(101, &failed, "6.12   fentry              failed      33      1        2      94");
        let zeros = "     0      0        0      94";
        let said = "boot: timed out after 9 s";
        check(124, said, &format!("6.12   fentry              failed  {zeros}  {said}"));
        check(0, "", &format!("6.12   fentry              failed  {zeros}  no test ran"));
        check(101, "", &format!("6.12   fentry              failed  {zeros}  status Some(101)"));
        let said = "boot: apt knows no kernel 6.1";
        check(126, said, &format!("6.12   fentry              skipped {zeros}  {said}"));
    }

    #[track_caller]
    fn check_skipped(presence: Presence, is_ci: bool, expected: bool) {
        let mut skipped = ended(NO_KERNEL, "");
        skipped.row.presence = presence;
        assert_eq!(Report(vec![ended(0, PASSED), skipped]).check(is_ci).is_ok(), expected);
    }

    #[test]
    fn a_missing_kernel_is_an_error_in_ci_unless_its_row_says_otherwise() {
        check_skipped(Presence::Required, false, true);
        check_skipped(Presence::Required, true, false);
        check_skipped(Presence::WhereItCanBeHad, true, true);
        assert!(Report(vec![ended(101, PASSED)]).check(false).is_err());
    }
}
