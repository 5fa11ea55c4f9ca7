//! How each machine ended, and what that means for the whole.

use std::{fmt, time::Duration};

use anyhow::{Result, ensure};

use super::matrix::{Presence, Row};
use crate::{counts::Counts, runs};

/// How one machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// Tests failed, and passed in a fresh machine: which.
    Flaky(Vec<String>),
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
    /// The tests that failed, where that is all that happened.
    failed: Vec<String>,
}

/// All machines that were asked for.
pub(crate) struct Report(pub(super) Vec<Ended>);

impl Ended {
    /// Judges a machine by the status of xtask/vm/boot and by all that it wrote.
    pub(super) fn new(row: Row, status: Option<i32>, text: &str, took: Duration) -> Self {
        // the last, since a test may have run this program again
        let counts = text.lines().filter_map(Counts::parse).next_back();
        let said = || text.lines().rfind(|line| line.starts_with("boot: ")).unwrap_or_default();
        let mut failed = Vec::new();
        let outcome = match (status, counts) {
            (Some(0), Some(counts)) if counts.passed > 0 => Outcome::Passed,
            (Some(0), _) => Outcome::Failed("no test ran".into()),
            (Some(NO_KERNEL), _) => Outcome::Skipped(said().into()),
            (Some(TIMED_OUT | NO_GUEST), _) => Outcome::Failed(said().into()),
            (Some(TESTS_FAILED), Some(counts)) if counts.failed > 0 => {
                failed = failed_tests(text);
                Outcome::Failed(String::new())
            }
            (status, _) => Outcome::Failed(format!("status {status:?}")),
        };
        Self { row, outcome, counts: counts.unwrap_or_default(), took, failed }
    }

    /// The tests that are worth a second run, in a fresh machine; none when all passed, when more
    /// happened than a failed test, or when too many failed.
    pub(super) fn suspects(&self) -> &[String] {
        runs::suspects(&self.failed, self.counts)
    }

    /// Judges it anew, after its suspects, and nothing else, ran in `again`.
    pub(super) fn after(self, again: &Self) -> Self {
        let took = self.took + again.took;
        if again.outcome != Outcome::Passed || again.counts.passed != self.counts.failed {
            return Self { took, ..self };
        }
        let passed = self.counts.passed + again.counts.passed;
        let counts = Counts { passed, failed: 0, ..self.counts };
        Self { outcome: Outcome::Flaky(self.failed.clone()), counts, took, ..self }
    }

    fn is_bad(&self, is_ci: bool) -> bool {
        match self.outcome {
            Outcome::Passed | Outcome::Flaky(_) => false,
            Outcome::Skipped(_) => is_ci && self.row.presence == Presence::Required,
            Outcome::Failed(_) => true,
        }
    }
}

/// The names below the last `failures:` that the test program wrote.
fn failed_tests(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let Some(at) = lines.iter().rposition(|&line| line == "failures:") else { return Vec::new() };
    let names = lines[at + 1..].iter().map_while(|line| line.strip_prefix("    "));
    names.map(str::to_owned).collect()
}

/// Status of a test program of which a test failed.
const TESTS_FAILED: i32 = 101;
/// Statuses of xtask/vm/boot.
const TIMED_OUT: i32 = 124;
const NO_GUEST: i32 = 125;
const NO_KERNEL: i32 = 126;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, why) = match &self.outcome {
            Outcome::Passed => ("passed", String::new()),
            Outcome::Flaky(tests) => ("flaky", tests.join(", ")),
            Outcome::Failed(why) => ("failed", why.clone()),
            Outcome::Skipped(why) => ("skipped", why.clone()),
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

    /// Which tests failed once, on which machines.
    pub(crate) fn flaky(&self) -> Vec<String> {
        let flaky = |ended: &Ended| match &ended.outcome {
            Outcome::Flaky(tests) => Some(format!("{}: {}", ended.row.name(), tests.join(", "))),
            Outcome::Passed | Outcome::Failed(_) | Outcome::Skipped(_) => None,
        };
        self.0.iter().filter_map(flaky).collect()
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

    /// What the test program writes when these fail: what they said, their names, the counts.
    fn failures(names: &[&str]) -> String {
        let said = "failures:\n\n---- a stdout ----\nfailures:\n    of another program\n\n";
        let names: String = names.iter().map(|name| format!("    {name}\n")).collect();
        let n = names.lines().count();
        format!(
            "{said}\nfailures:\n{names}\ntest result: FAILED. 9 passed; {n} failed; 0 ignored; 0 \
             measured; 2 filtered out; finished in 9s\n"
        )
    }

    #[track_caller]
    fn check_suspects(status: i32, text: &str, expected: &[&str]) {
        assert_eq!(ended(status, text).suspects(), expected, "{text}");
    }

    #[test]
    fn a_few_failed_tests_are_worth_a_second_run() {
        check_suspects(0, PASSED, &[]);
        check_suspects(101, &failures(&["a::b"]), &["a::b"]);
        check_suspects(101, &failures(&["a::b", "a::c", "d::e"]), &["a::b", "a::c", "d::e"]);
        check_suspects(101, &failures(&["a::b", "a::c", "d::e", "f"]), &[]);
        // it said more, or less, than the names
        check_suspects(124, &failures(&["a::b"]), &[]);
        check_suspects(139, &failures(&["a::b"]), &[]);
        check_suspects(101, "failures:\n    a::b\n", &[]);
        check_suspects(101, &failures(&["a::b"]).replace("    a::b\n", ""), &[]);
    }

    #[track_caller]
    fn check_again(status: i32, text: &str, expected: &str, is_flaky: bool) {
        let both = ended(101, &failures(&["a::b", "c"])).after(&ended(status, text));
        assert_eq!(both.to_string(), expected);
        let report = Report(vec![ended(0, PASSED), both]);
        assert_eq!(report.check(true).is_ok(), is_flaky);
        let flaky: &[&str] = if is_flaky { &["6.12-fentry: a::b, c"] } else { &[] };
        assert_eq!(report.flaky(), flaky);
    }

    #[test]
    fn what_fails_once_is_flaky_and_what_fails_twice_has_failed() {
        let passed = |n| PASSED.replace("34 passed", &format!("{n} passed"));
        let flaky = "6.12   fentry              flaky       11      0        2     189  a::b, c";
        check_again(0, &passed(2), flaky, true);
        let failed = "6.12   fentry              failed       9      2        2     189";
        check_again(101, &failures(&["c"]), failed, false);
        check_again(124, "boot: timed out after 9 s", failed, false);
        // one of them did not run
        check_again(0, &passed(1), failed, false);
        check_again(0, "", failed, false);
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
