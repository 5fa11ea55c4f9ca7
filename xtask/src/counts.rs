//! What a test program says of itself.

/// The last line of a test program, or the sum of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Not run, since the command line left them out.
    pub(crate) filtered: u64,
}

impl Counts {
    /// Those of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |words: &str| {
            let part = counts.split("; ").find_map(|part| part.strip_suffix(words))?;
            part.trim().parse().ok()
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
            filtered: number("filtered out")?,
        })
    }

    /// Adds those of another program.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.filtered += other.filtered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<[u64; 3]>) {
        let counts = |[passed, failed, filtered]: [u64; 3]| Counts { passed, failed, filtered };
        assert_eq!(Counts::parse(line), expected.map(counts));
    }

    #[test]
    fn counts_are_read_from_result_lines_alone() {
        let rest = "1 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        check(&format!("test result: ok. 12 passed; 0 failed; {rest}"), Some([12, 0, 7]));
        check(&format!("test result: FAILED. 3 passed; 2 failed; {rest}"), Some([3, 2, 7]));
        check("test result: ok.", None);
        check("test tests::passes ... ok", None);
        check("12 passed; 0 failed; 0 ignored", None);
    }
}
