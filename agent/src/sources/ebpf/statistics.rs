//! What the kernel says of the programs themselves: runs, time, skipped runs.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use super::{Programs, hooks};
use crate::time::Nanos;

impl Programs {
    /// What aya's `ProgramInfo` leaves out is in the program's fdinfo (`bpf_prog_show_fdinfo`,
    /// kernel/bpf/syscall.c).
    pub(super) fn read_statistics(&mut self) {
        let mut numbers = BTreeMap::new();
        for (event, program) in hooks::all() {
            let fd = self.ebpf.program(program).and_then(|p| p.fd().ok());
            let Some(fd) = fd else { continue };
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            if let Ok(text) = fs::read_to_string(path) {
                numbers.entry(program).or_insert((event, parse_fdinfo(&text)));
            }
        }
        self.missed = numbers.iter().map(|(name, (event, n))| (*event, *name, n.missed)).collect();
        self.runs = numbers
            .iter()
            .filter(|(_, (_, n))| 0 < n.runs)
            .map(|(name, (_, n))| (*name, n.runs, Nanos(n.nanos)))
            .collect();
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Statistics {
    runs: u64,
    nanos: u64,
    missed: u64,
}

fn parse_fdinfo(text: &str) -> Statistics {
    let number = |key| {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().parse().ok()
    };
    Statistics {
        runs: number("run_cnt:").unwrap_or(0),
        nanos: number("run_time_ns:").unwrap_or(0),
        missed: number("recursion_misses:").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: (u64, u64, u64)) {
        let got = parse_fdinfo(text);
        assert_eq!(expected, (got.runs, got.nanos, got.missed), "{text:?}");
    }

    #[test]
    fn statistics_are_read_where_the_kernel_gives_them() {
        check("run_time_ns:\t84\nrun_cnt:\t2\nrecursion_misses:\t1\n", (2, 84, 1));
        check("pos:\t0\nrun_cnt:\tmany\n", (0, 0, 0));
        check("", (0, 0, 0));
    }
}
