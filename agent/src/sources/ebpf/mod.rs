//! The eBPF programs: loading, and what they counted.
//!
//! In: the prebuilt object, the kernel's BTF. Out: [`SlotsSample`], and what the iterator saw. Cost:
//! 60–100 ms at start; a sample reads mapped memory and runs the sweep over the records, or the
//! iterator over the listeners of one namespace.

mod adopt;
mod attach;
pub mod btf;
mod census;
mod closer;
pub mod events;
mod failed;
mod histograms;
mod hooks;
pub mod load;
pub mod maps;
mod offsets;
mod statistics;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{MapData, Stack},
    programs::{Iter, Program, RawTracePointRunOptions, TestRun as _},
};
use backlogd_abi::cell;

use self::events::{Events, Watch, WatchError};
use crate::{
    event::Filter,
    id::{Cookie, NetnsId, Slot},
    input::{Absent, CallErrors, Hook, Known, SlotRecord, SlotsSample, Tier},
    time::Nanos,
};

pub use load::LoadError;

/// The program that looks at all followed listeners at once.
const SWEEP: &str = "sweep";

/// The program that counts the connections that are there.
const CENSUS: &str = "census";

/// Reading every program's page costs some 10 µs each: not in every sample.
const STATISTICS_EVERY: u32 = 10;

/// The loaded programs. They are detached when this is dropped, or when the process ends in any
/// way.
pub struct Programs {
    ebpf: Ebpf,
    free: Stack<MapData, u32>,
    slots: Arc<maps::Slots>,
    cells: maps::Cells,
    waits: histograms::Histograms,
    durations: histograms::Histograms,
    failed: failed::FailedCalls,
    /// Since somebody watches.
    watch: Option<Watch>,
    hooks: Arc<[Hook]>,
    closer: closer::Closer,
    census: Option<census::Census>,
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

    /// Whether a program serves an event.
    fn served(&self, event: &str) -> Known<()> {
        let served = |hook: &Hook| hook.event == event && hook.tier < Tier::Sampled;
        if self.hooks.iter().any(served) { Ok(()) } else { Err(Absent::NotOnThisKernel) }
    }

    /// Which namespaces have records, and what moved in each.
    #[must_use]
    pub fn activity(&self) -> BTreeMap<NetnsId, maps::Activity> {
        self.slots.activity()
    }

    /// The records of all namespaces, as they are now. Gives back the slots of listeners that are
    /// gone with all their connections: their record is in this sample for the last time.
    pub fn read(&mut self) -> SlotsSample {
        let mut records = Vec::new();
        self.slots.read(&mut records);
        if let Some(census) = &mut self.census {
            census.update(&mut records);
        }
        let mut waits = Vec::new();
        let mut durations = Vec::new();
        for record in &mut records {
            let (slot, cookie) = (record.slot, record.cookie);
            waits.extend(self.waits.growth(slot, record.accepted).map(|more| (cookie, more)));
            // what the histogram holds, so that the two agree at every sample
            record.accepted = self.waits.count(slot);
            durations.extend(self.durations.growth(slot, record.closed).map(|more| (cookie, more)));
        }
        self.recycle(&records);
        let [accept, connect] = self.failed.read(self.cells.get(cell::ERRORS));
        let errors = CallErrors {
            accept: self.served("accept_error").or(self.closer.has_looked()).map(|()| accept),
            connect: self.served("connect_error").map(|()| connect),
        };
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
            errors,
            map_full: self.cells.get(cell::MAP_FULL),
            closer_looks: self.closer.seen(),
            corrections: self
                .census
                .as_ref()
                .map_or(Err(Absent::NotOnThisKernel), |census| Ok(census.corrections())),
            waits,
            durations,
            records,
        }
    }

    /// Looks at the listeners of all records, in all namespaces: fills in what each shows now.
    /// `false` where this kernel lets no program do that.
    ///
    /// # Errors
    /// What bpf(2) answers.
    pub fn sweep(&mut self, sample: &mut SlotsSample) -> io::Result<bool> {
        let Some(Program::RawTracePoint(program)) = self.ebpf.program(SWEEP) else {
            return Ok(false);
        };
        if program.fd().is_err() {
            return Ok(false);
        }
        self.pass = self.pass.wrapping_add(1);
        self.cells.set(cell::PASS, self.pass.into());
        let end = sample.records.last().map_or(0, |record| record.slot.0 + 1);
        for first in (0..end).step_by(backlogd_abi::SWEEP as usize) {
            program.test_run(sweep_from(first.into())).map_err(io::Error::other)?;
        }
        // the slot of a socket that is gone can be another's since the records were read
        for record in sample.records.iter_mut().filter(|record| record.final_drops.is_none()) {
            if let Some(visit) = self.slots.visit(record.slot, self.pass) {
                record.syn_queue = Some(visit.syn_queue);
                record.live = Some(visit.socket(record));
            }
        }
        Ok(true)
    }

    /// Looks at `n_listeners` listeners of this thread's namespace `netns`: fills in the SYN queues
    /// of their records, and says what it saw. `None` without the iterator.
    ///
    /// # Errors
    /// What bpf(2) or read(2) answers.
    pub fn look(
        &mut self,
        sample: &mut SlotsSample,
        netns: NetnsId,
        n_listeners: usize,
    ) -> io::Result<Option<Look>> {
        if self.served("adopt").is_err() || n_listeners == 0 {
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

    /// From here on the programs send the events that `filter` takes. Once: then the reader's end is
    /// gone.
    ///
    /// # Errors
    /// [`WatchError`]
    pub fn watch(&mut self, filter: &Filter) -> Result<Events, WatchError> {
        let mut take = |name| self.ebpf.take_map(name).ok_or(WatchError::Map(name));
        let events = Events::open(take("EVENTS")?)?;
        let mut watch = Watch::open(take("FILTER")?)?;
        watch.set(filter)?;
        self.watch = Some(watch);
        Ok(events)
    }

    /// No further event is sent.
    ///
    /// # Errors
    /// [`WatchError::Filter`]
    pub fn unwatch(&mut self) -> Result<(), WatchError> {
        self.watch.as_mut().map_or(Ok(()), Watch::stop)
    }

    /// Tells the programs which listeners' events pass a filter by owner.
    pub fn watch_listeners(&self, records: &[SlotRecord], is_wanted: impl Fn(Cookie) -> bool) {
        for record in records {
            self.slots.watch(record.slot, record.cookie, is_wanted(record.cookie));
        }
    }

    /// Events that the ring buffer had no room for.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.cells.get(cell::EVENTS_LOST)
    }

    fn recycle(&mut self, records: &[SlotRecord]) {
        let dead = |record: &&SlotRecord| record.final_drops.is_some();
        for record in records.iter().filter(dead) {
            if record.tagged() <= record.closed {
                self.give_back(record.slot);
            }
        }
        // under pressure also while connections live on, those with the fewest first
        let (used, capacity) = (records.len(), self.slots.capacity() as usize);
        if capacity - capacity / 8 <= used {
            let mut left: Vec<_> = records
                .iter()
                .filter(dead)
                .filter(|record| record.closed < record.tagged())
                .collect();
            left.sort_by_key(|record| record.tagged() - record.closed);
            for record in left.iter().take(capacity / 8) {
                self.give_back(record.slot);
            }
        }
    }

    fn give_back(&mut self, slot: Slot) {
        self.slots.clear(slot);
        self.waits.clear(slot);
        self.durations.clear(slot);
        if let Some(census) = &mut self.census {
            census.clear(slot);
        }
        // it has room for every slot
        if let Err(err) = self.free.push(slot.0, 0) {
            tracing::debug!(slot = slot.0, error = %err, "slot not given back");
        }
    }
}

/// Looks at the records from the one of this number on.
fn sweep_from(first: u64) -> RawTracePointRunOptions {
    let mut options = RawTracePointRunOptions::new();
    options.args[0] = first;
    options
}

/// The iterator is bound to the namespace of the thread that opens it (`bpf_iter_init_seq_net`,
/// fs/proc/proc_net.c).
fn open_iterator(program: &mut Iter) -> io::Result<File> {
    let link = program.attach().map_err(io::Error::other)?;
    let link = program.take_link(link).map_err(io::Error::other)?;
    link.into_file().map_err(io::Error::other)
}
