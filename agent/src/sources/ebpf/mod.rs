//! The eBPF programs: loading, and what they counted.
//!
//! In: the prebuilt object, the kernel's BTF. Out: [`SlotsSample`], and what the iterator saw. Cost:
//! 60–100 ms at start; a sample reads mapped memory and runs the iterator over the listeners of one
//! namespace.

pub mod btf;
pub mod hooks;
pub mod load;
pub mod maps;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{MapData, Stack},
    programs::{Iter, Program},
};
use backlogd_abi::cell;

use crate::{
    id::{Cookie, NetnsId, Slot},
    input::{CallErrors, Hook, SlotRecord, SlotsSample},
    time::Nanos,
};

pub use load::LoadError;

/// Reading every program's page costs some 10 µs each: not in every sample.
const STATISTICS_EVERY: u32 = 10;

/// The loaded programs. They are detached when this is dropped, or when the process ends in any
/// way.
pub struct Programs {
    ebpf: Ebpf,
    free: Stack<MapData, u32>,
    slots: maps::Slots,
    cells: maps::Cells,
    hooks: Arc<[Hook]>,
    iterator: IteratorState,
    /// The number of the iterator's newest pass.
    pass: u32,
    passes: u32,
    missed: Vec<(&'static str, &'static str, u64)>,
    runs: Vec<(&'static str, u64, Nanos)>,
}

/// What one pass of the iterator saw.
#[derive(Debug, Default)]
pub struct Look {
    /// Listeners with a record.
    pub visits: Vec<(Cookie, maps::Visit)>,
    /// Listeners without a slot.
    pub unfollowed: u64,
    /// Sockets that are not destroyed and that it did not come by.
    pub missed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IteratorState {
    Loaded,
    Refused,
}

impl Programs {
    /// How each event is obtained.
    #[must_use]
    pub fn hooks(&self) -> Arc<[Hook]> {
        self.hooks.clone()
    }

    /// Gives slots to the listeners of this thread's namespace that have none, and notes the queues
    /// of each. Visits `n_listeners` and stops.
    fn visit(&mut self, n_listeners: u64) -> io::Result<()> {
        self.pass = self.pass.wrapping_add(1);
        self.cells.set(cell::PASS, self.pass.into());
        self.cells.set(cell::UNFOLLOWED, 0);
        self.cells.set(cell::VISIT, n_listeners);
        let program = self.ebpf.program_mut("adopt").and_then(|program| match program {
            Program::Iter(iter) => Some(iter),
            _ => None,
        });
        let Some(program) = program else { return Ok(()) };
        let mut file = open_iterator(program)?;
        match file.read(&mut [0; 64]) {
            // how the program ends the walk
            Err(err) if err.raw_os_error() == Some(libc::E2BIG) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Adopts every listener of this thread's namespace.
    ///
    /// # Errors
    /// What bpf(2) or read(2) answers; the listeners from before are then not followed.
    pub fn adopt(&mut self) -> io::Result<()> {
        self.visit(u64::MAX)
    }

    /// The records of all namespaces, as they are now. Gives back the slots of listeners that are
    /// gone with all their connections: their record is in this sample for the last time.
    pub fn read(&mut self) -> SlotsSample {
        let mut records = Vec::new();
        self.slots.read(&mut records);
        self.recycle(&records);
        if self.passes.is_multiple_of(STATISTICS_EVERY) {
            self.read_statistics();
        }
        self.passes = self.passes.wrapping_add(1);
        SlotsSample {
            capacity: self.slots.capacity(),
            no_slot: self.cells.get(cell::NO_SLOT),
            stale: self.cells.get(cell::STALE),
            second_copy: self.cells.get(cell::SECOND_COPY),
            missed: self.missed.clone(),
            runs: self.runs.clone(),
            errors: CallErrors::default(),
            map_full: 0,
            waits: Vec::new(),
            durations: Vec::new(),
            records,
        }
    }

    /// Looks at `n_listeners` listeners of this thread's namespace `netns`: fills in the SYN queues
    /// of their records, and says what it saw. `None` without the iterator.
    ///
    /// # Errors
    /// As [`Programs::adopt`].
    pub fn look(
        &mut self,
        sample: &mut SlotsSample,
        netns: NetnsId,
        n_listeners: usize,
    ) -> io::Result<Option<Look>> {
        if self.iterator == IteratorState::Refused || n_listeners == 0 {
            return Ok(None);
        }
        self.visit(n_listeners as u64)?;
        let unfollowed = self.cells.get(cell::UNFOLLOWED);
        let mut look = Look { unfollowed, ..Look::default() };
        // the slot of a socket that is gone can be another's since the records were read
        let alive =
            |record: &&mut SlotRecord| record.netns == netns && record.final_drops.is_none();
        for record in sample.records.iter_mut().filter(alive) {
            match self.slots.visit(record.slot, self.pass) {
                Some(visit) => {
                    record.syn_queue = Some(visit.syn_queue);
                    look.visits.push((record.cookie, visit));
                }
                None => look.missed += 1,
            }
        }
        Ok(Some(look))
    }

    fn recycle(&mut self, records: &[SlotRecord]) {
        let dead = |record: &&SlotRecord| record.final_drops.is_some();
        for record in records.iter().filter(dead) {
            if record.established <= record.closed {
                self.give_back(record.slot);
            }
        }
        // under pressure also while connections live on, those with the fewest first
        let (used, capacity) = (records.len(), self.slots.capacity() as usize);
        if capacity - capacity / 8 <= used {
            let mut left: Vec<_> = records
                .iter()
                .filter(dead)
                .filter(|record| record.closed < record.established)
                .collect();
            left.sort_by_key(|record| record.established - record.closed);
            for record in left.iter().take(capacity / 8) {
                self.give_back(record.slot);
            }
        }
    }

    fn give_back(&mut self, slot: Slot) {
        self.slots.clear(slot);
        // it has room for every slot
        if let Err(err) = self.free.push(slot.0, 0) {
            tracing::debug!(slot = slot.0, error = %err, "slot not given back");
        }
    }

    /// What aya's `ProgramInfo` leaves out is in the program's fdinfo (`bpf_prog_show_fdinfo`,
    /// kernel/bpf/syscall.c).
    fn read_statistics(&mut self) {
        let mut numbers = BTreeMap::new();
        for program in hooks::PROGRAMS {
            let fd = self.ebpf.program(program.name).and_then(|p| p.fd().ok());
            let Some(fd) = fd else { continue };
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            if let Ok(text) = fs::read_to_string(path) {
                numbers.insert(program.name, (program.event, parse_fdinfo(&text)));
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

/// The iterator is bound to the namespace of the thread that opens it (`bpf_iter_init_seq_net`,
/// fs/proc/proc_net.c).
fn open_iterator(program: &mut Iter) -> io::Result<File> {
    let link = program.attach().map_err(io::Error::other)?;
    let link = program.take_link(link).map_err(io::Error::other)?;
    link.into_file().map_err(io::Error::other)
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
