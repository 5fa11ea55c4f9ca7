//! Runs and time of BPF programs by the kernel's own statistics, for the process that holds them.

use std::{collections::BTreeMap, fs, os::fd::OwnedFd};

use anyhow::{Context as _, Result};
use aya::{
    programs::{ProgramInfo, loaded_programs},
    sys::{Stats, enable_stats},
};

use crate::raw::EmptyProgram;

/// What a program spent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) runs: f64,
    pub(crate) nanos: f64,
}

/// By the name of the program; those of one name together.
pub(crate) type Counts = BTreeMap<String, Spent>;

/// The statistics, on while this lives; they cost each run of a program some time, which they count
/// as the program's.
pub(crate) struct Meter {
    _statistics: OwnedFd,
    empty: EmptyProgram,
    pid: u32,
    names: BTreeMap<u32, String>,
}

/// What happened while some work was done.
pub(crate) struct Batch {
    /// Nanoseconds of a run of the program that does nothing.
    pub(crate) empty: f64,
    pub(crate) programs: Counts,
}

impl Meter {
    /// Over the programs that process `pid` holds at this time.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let statistics = enable_stats(Stats::RunTime).context("BPF statistics")?;
        let empty = EmptyProgram::attach().context("the empty program")?;
        let name = |info: ProgramInfo| Some((info.id(), info.name_as_str()?.to_owned()));
        let names = loaded_programs().filter_map(Result::ok).filter_map(name).collect();
        Ok(Self { _statistics: statistics, empty, pid, names })
    }

    /// What `work` adds, and its value.
    pub(crate) fn over<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Batch, T)> {
        let (empty_before, before) = (self.read_empty()?, self.read()?);
        let value = work()?;
        let (empty, mut programs) = (self.read_empty()?, self.read()?);
        for (name, spent) in &mut programs {
            let before = before.get(name).copied().unwrap_or_default();
            spent.runs -= before.runs;
            spent.nanos -= before.nanos;
        }
        let empty = (empty.nanos - empty_before.nanos) / (empty.runs - empty_before.runs);
        Ok((Batch { empty, programs }, value))
    }

    /// All programs of the process so far.
    pub(crate) fn read(&self) -> Result<Counts> {
        let empty = self.id_of_empty()?;
        let mut by_id = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid))? {
            // the directory's own descriptor is gone by the time
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            if let Some((id, spent)) = parse(&text) {
                by_id.insert(id, spent);
            }
        }
        by_id.remove(&empty);
        let mut counts = Counts::new();
        for (id, spent) in by_id {
            let name = self.names.get(&id).cloned().unwrap_or_else(|| id.to_string());
            let sum = counts.entry(name).or_default();
            sum.runs += spent.runs;
            sum.nanos += spent.nanos;
        }
        Ok(counts)
    }

    fn id_of_empty(&self) -> Result<u32> {
        Ok(self.parse_empty()?.0)
    }

    fn read_empty(&self) -> Result<Spent> {
        Ok(self.parse_empty()?.1)
    }

    fn parse_empty(&self) -> Result<(u32, Spent)> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.empty.fd()))?;
        parse(&text).context("the empty program has no statistics")
    }
}

/// A program's number and what it spent (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c); the fdinfo
/// of a link has the number alone.
fn parse(text: &str) -> Option<(u32, Spent)> {
    let value = |key| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let number = |key| value(key)?.parse().ok();
    let spent = Spent { runs: number("run_cnt:")?, nanos: number("run_time_ns:")? };
    Some((value("prog_id:")?.parse().ok()?, spent))
}
