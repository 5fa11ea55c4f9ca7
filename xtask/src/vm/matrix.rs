//! Which kernels, how the agent runs on each, and which tests it must pass there.

use std::fmt;

/// Which hooks the agent may use; `BACKLOGD_TEST_TIER` of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// The best that it finds.
    Auto,
    Fentry,
    Kprobe,
    Tracepoint,
    /// The tracepoints of system calls, too.
    Syscalls,
    Sampled,
}

/// How the guest differs from an ordinary machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    Ordinary,
    /// Its packets arrive by interrupt, also those of loopback.
    Interrupts,
    /// Nothing in /sys/kernel/btf.
    NoBtf,
    /// `lockdown=confidentiality`: no kprobe, no `bpf_probe_read_kernel`.
    Lockdown,
}

/// Tests by parts of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tests {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

/// Whether a kernel that cannot be had is an error with CI=true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Required,
    WhereItCanBeHad,
}

/// One machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) kernel: &'static str,
    pub(super) tier: Tier,
    pub(super) guest: Guest,
    pub(super) tests: Tests,
    pub(super) presence: Presence,
}

/// What else depends on events that interrupts could hide; others do both in one run.
const EVENTS: Tests = Tests::Only(&[
    "burst::",
    "churn::",
    "failures::",
    "life::",
    "mixed::",
    "open::",
    "overflow::",
    "restart::",
    "trace::each",
    "undone::",
]);
/// What works without programs.
const SAMPLED: Tests = Tests::Only(&["sampled::"]);
/// All that tests; the one left out is the server process of others.
const ALL: Tests = Tests::AllBut(&["serves_standard_input"]);
/// What depends on hooks that are tried, tier by tier.
const HOOKS: Tests =
    Tests::Only(&["burst::", "failures::", "overflow::", "reasons::", "undone::", "waits::"]);
/// The same and what else depends on children that are known by their address.
const CHILDREN: Tests = Tests::Only(&[
    "burst::",
    "churn::",
    "failures::",
    "killed::",
    "life::",
    "members::",
    "open::",
    "overflow::",
    "protocols::",
    "reasons::",
    "restart::",
    "undone::",
    "waits::",
]);
/// What depends on the tracepoints, which every kernel has, and on drops without hooks.
const TRACEPOINTS: Tests = Tests::Only(&["burst::", "overflow::", "reasons::", "undone::"]);
/// What the tracepoints of system calls add.
const CALLS: Tests = Tests::Only(&["failures::", "waits::"]);
/// All machines. The long ones come first, so that the last to run is a short one.
pub(super) const ROWS: [Row; 16] = [
    row("6.12", Tier::Fentry, ALL),
    Row { guest: Guest::Interrupts, ..row("6.12", Tier::Fentry, EVENTS) },
    row("6.1", Tier::Fentry, HOOKS),
    row("6.1", Tier::Kprobe, CHILDREN),
    row("6.1", Tier::Tracepoint, TRACEPOINTS),
    row("6.1", Tier::Syscalls, CALLS),
    row("6.12", Tier::Kprobe, CHILDREN),
    row("6.12", Tier::Tracepoint, TRACEPOINTS),
    row("6.12", Tier::Syscalls, CALLS),
    Row { presence: Presence::WhereItCanBeHad, ..row("7.2", Tier::Fentry, HOOKS) },
    Row { presence: Presence::WhereItCanBeHad, ..row("7.2", Tier::Kprobe, HOOKS) },
    Row { presence: Presence::WhereItCanBeHad, ..row("7.2", Tier::Tracepoint, TRACEPOINTS) },
    Row { guest: Guest::Lockdown, ..row("6.1", Tier::Auto, TRACEPOINTS) },
    Row { guest: Guest::Lockdown, ..row("6.12", Tier::Auto, TRACEPOINTS) },
    // socket storage in tracing programs: bpf_sk_storage_tracing_allowed, net/core/bpf_sk_storage.c, 5.11
    row("5.10", Tier::Sampled, SAMPLED),
    Row { guest: Guest::NoBtf, ..row("6.12", Tier::Auto, SAMPLED) },
];

const fn row(kernel: &'static str, tier: Tier, tests: Tests) -> Row {
    Row { kernel, tier, guest: Guest::Ordinary, tests, presence: Presence::Required }
}

impl Row {
    /// What xtask/vm/run is called with: its environment, `--`, filters of test names.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut words = self.environment();
        match self.tests {
            Tests::Only(names) => words.extend(names.iter().map(|&name| name.into())),
            Tests::AllBut(names) => {
                words.extend(names.iter().flat_map(|&name| ["--skip".into(), name.into()]));
            }
        }
        words
    }

    /// The same for these tests alone, by their whole names.
    pub(super) fn arguments_for(&self, tests: &[String]) -> Vec<String> {
        let mut words = self.environment();
        words.push("--exact".into());
        words.extend_from_slice(tests);
        words
    }

    /// The environment, and `--`.
    fn environment(&self) -> Vec<String> {
        let mut words: Vec<String> = vec!["BACKLOGD_TEST_SECONDS=10".into()];
        words.push("BACKLOGD_TEST_SCALE=10".into());
        if self.tier != Tier::Auto {
            words.push(format!("BACKLOGD_TEST_TIER={}", self.tier));
        }
        match self.guest {
            Guest::Ordinary | Guest::Lockdown => {}
            Guest::Interrupts => words.push("BACKLOGD_TEST_INTERRUPTS=1".into()),
            Guest::NoBtf => words.push("HIDE_BTF=1".into()),
        }
        words.push("--".into());
        words
    }

    /// Words for the kernel's command line.
    pub(super) fn kernel_arguments(&self) -> &'static str {
        match self.guest {
            Guest::Ordinary | Guest::Interrupts | Guest::NoBtf => "",
            Guest::Lockdown => "lockdown=confidentiality",
        }
    }

    /// A file name of its own.
    pub(super) fn name(&self) -> String {
        match self.guest {
            Guest::Ordinary => format!("{}-{}", self.kernel, self.tier),
            Guest::Interrupts | Guest::NoBtf | Guest::Lockdown => {
                format!("{}-{}-{}", self.kernel, self.tier, self.guest)
            }
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Syscalls => "syscalls",
            Self::Sampled => "sampled",
        })
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ordinary => "",
            Self::Interrupts => "interrupts",
            Self::NoBtf => "no-btf",
            Self::Lockdown => "lockdown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = ROWS.iter().map(Row::name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    #[track_caller]
    fn check(row: Row, expected: &str) {
        let common = "BACKLOGD_TEST_SECONDS=10 BACKLOGD_TEST_SCALE=10 ";
        assert_eq!(row.arguments().join(" ").strip_prefix(common), Some(expected));
    }

    #[test]
    fn a_row_says_what_runs_in_the_guest() {
        check(
            row("6.1", Tier::Kprobe, Tests::Only(&["a::", "b"])),
            "BACKLOGD_TEST_TIER=kprobe -- a:: b",
        );
        check(row("6.1", Tier::Auto, Tests::AllBut(&["a::", "b"])), "-- --skip a:: --skip b");
        let hidden = Row { guest: Guest::NoBtf, ..row("6.1", Tier::Auto, Tests::Only(&["a"])) };
        check(hidden, "HIDE_BTF=1 -- a");
        let [again, whole] = [hidden.arguments_for(&["a::b".into()]), hidden.arguments()];
        let at = whole.len() - 1;
        assert_eq!((&again[..at], again[at..].join(" ").as_str()), (&whole[..at], "--exact a::b"));
    }
}
