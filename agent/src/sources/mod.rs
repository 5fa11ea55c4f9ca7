//! I/O in, ground facts out: one pass over the sources makes a [`Sample`].
//!
//! The order within a pass is what makes its numbers fit each other: PassiveOpens and ListenDrops,
//! then the records of the eBPF programs, then the sockets. A source that fails leaves
//! its own part absent, is logged when that changes, and the pass goes on.
//!
//! While the set of listeners stays as it is, the sockets' numbers come from the iterator alone,
//! which reads the same fields of the same sockets as a dump; sock_diag is asked when it changes
//! (`live.rs`).

pub mod ebpf;
pub mod host;
mod live;
pub mod machine;
pub mod netstat;
mod owners;
pub mod process;
pub mod sock_diag;
pub mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    sync::Arc,
    time::Instant,
};

use thiserror::Error;

use crate::{
    error,
    id::{Inode, NetnsId},
    input::{
        Absent, Hook, HostSample, Known, ListenSocket, NamespaceSample, Sample, SlotsSample,
        Source, Tier,
    },
    sources::{
        ebpf::{Look, Programs, events::WatchError, load::LoadOptions},
        live::Live,
        netstat::{Fields, Netstat},
        owners::Owners,
        sock_diag::{SockDiag, SockDiagError},
    },
    sys::{clock, heap, netns},
    time::{Monotonic, Nanos},
};

/// Limits change rarely: they are read in every tenth sample.
const SYSCTLS_EVERY: u64 = 10;

/// How to open the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether to load the eBPF programs.
    pub ebpf: bool,
    /// How many listening sockets the programs can follow.
    pub slots: u32,
    /// The best kind of hook that may be tried. [`Tier::Sampled`]: no programs.
    pub tier: Tier,
    /// Whether the tracepoints of system calls may be on for good, where nothing else sees accept.
    pub accept_tracepoints: bool,
    /// Bytes of the ring buffer for events; a power of two, at least a page.
    pub events_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ebpf: true,
            slots: backlogd_abi::SLOTS,
            tier: Tier::Fentry,
            accept_tracepoints: false,
            events_bytes: 4096,
        }
    }
}

/// Why nothing at all can be read.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The thread's namespace has no name.
    #[error("the network namespace of this thread cannot be told")]
    Netns(#[source] io::Error),
    /// Without sock_diag there are no listeners.
    #[error("sock_diag cannot be opened")]
    SockDiag(#[source] SockDiagError),
}

/// Everything that reads the kernel. Belongs to the network namespace of the thread that opened
/// it, and to that thread.
pub struct Sources {
    netns: NetnsId,
    sock_diag: SockDiag,
    netstat: Known<Netstat>,
    programs: Known<Programs>,
    hooks: Arc<[Hook]>,
    live: Live,
    owners: Owners,
    sysctls: BTreeMap<&'static str, i64>,
    passes: u64,
    /// What does not work at the moment, and why: so that each change is logged once.
    degraded: BTreeMap<&'static str, String>,
}

impl Sources {
    /// Opens the sources in the calling thread's network namespace. A missing privilege, kernel
    /// without BTF, refused program: degrades the sample, is logged, and is no error.
    ///
    /// # Errors
    /// [`OpenError`]: there is nothing to read.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let netns = netns::current().map_err(OpenError::Netns)?;
        let sock_diag = SockDiag::open().map_err(OpenError::SockDiag)?;
        let (programs, hooks) = open_programs(options, netns);
        let mut sources = Self {
            netns,
            sock_diag,
            netstat: Err(Absent::Unreadable),
            programs,
            hooks,
            live: Live::default(),
            owners: Owners::default(),
            sysctls: BTreeMap::new(),
            passes: 0,
            degraded: BTreeMap::new(),
        };
        let netstat = Netstat::open();
        sources.netstat = sources.note("netstat", netstat);
        Ok(sources)
    }

    /// How each event is obtained on this kernel, and why not better.
    #[must_use]
    pub fn hooks(&self) -> Arc<[Hook]> {
        self.hooks.clone()
    }

    /// The eBPF programs, for somebody who watches.
    ///
    /// # Errors
    /// [`WatchError::NoPrograms`], with what is missing.
    pub fn programs(&mut self) -> Result<&mut Programs, WatchError> {
        let why = self.hooks.iter().find(|hook| hook.tier == Tier::None).map(|hook| &hook.why);
        self.programs.as_mut().map_err(|absent| {
            WatchError::NoPrograms(why.map_or_else(|| absent.to_string(), ToString::to_string))
        })
    }

    /// One pass over the sources.
    pub fn sample(&mut self) -> Sample {
        let start = Instant::now();
        let (at, unix_time) = (clock::monotonic(), clock::realtime());
        let mut timer = Timer::default();
        let mut fields = Fields::new();
        let passive_opens = timer.time(Source::Netstat, || self.read_snmp(&mut fields));
        let netstat = timer.time(Source::Netstat, || self.read_netstat(&mut fields));
        let mut slots = timer.time(Source::Ebpf, || self.read_slots());
        let first = self.passes == 0;
        let passive_opens_after =
            if first { self.read_snmp(&mut Fields::new()).ok() } else { None };
        let sockets = self.read_sockets(&mut slots, &mut timer);
        let netstat = netstat.map(|()| fields);
        let host = timer.time(Source::Process, || self.read_owners(at, &sockets));
        self.passes += 1;
        timer.add(Source::Total, start);
        Sample {
            at,
            unix_time,
            namespaces: vec![NamespaceSample {
                netns: self.netns,
                sockets,
                passive_opens,
                passive_opens_after,
                netstat,
                sysctls: self.sysctls.clone(),
            }],
            slots,
            owners: self.owners.owners(),
            processes: self.owners.processes().clone(),
            host,
            degraded: self.degraded.clone(),
            durations: timer.durations.into_iter().collect(),
        }
    }

    /// Sees for a while what only the tracepoints of system calls see, or no longer.
    pub fn look_closer(&mut self, on: bool) {
        if let Ok(programs) = &mut self.programs {
            let result = programs.look_closer(on);
            let _ = self.note("closer look", result);
        }
    }

    /// PassiveOpens, and the other fields of the same file.
    fn read_snmp(&mut self, fields: &mut Fields) -> Known<u64> {
        let Ok(netstat) = &mut self.netstat else { return Err(Absent::Unreadable) };
        let result = netstat.snmp(fields);
        self.note("snmp", result)?;
        fields.get("PassiveOpens").copied().ok_or(Absent::NotOnThisKernel)
    }

    fn read_slots(&mut self) -> Known<SlotsSample> {
        match &mut self.programs {
            Ok(programs) => Ok(programs.read()),
            Err(absent) => Err(*absent),
        }
    }

    /// The sockets that listen: as the iterator saw them, or a dump.
    fn read_sockets(
        &mut self,
        slots: &mut Known<SlotsSample>,
        timer: &mut Timer,
    ) -> Known<Vec<ListenSocket>> {
        let no_slot = slots.as_ref().map_or(0, |slots| slots.no_slot);
        if self.live.is_trusted(no_slot) {
            let look = timer.time(Source::Ebpf, || self.look(slots, self.live.len()));
            if let Some(sockets) = look.and_then(|look| self.live.seen_again(&look)) {
                return Ok(sockets);
            }
        }
        let sockets = timer.time(Source::SockDiag, || {
            let mut sockets = Vec::new();
            let result = self.sock_diag.listen(&mut sockets);
            let absent = result.as_ref().map_err(SockDiagError::absent).err();
            let known = self.note("sock_diag", result).map(|()| sockets);
            known.map_err(|unreadable| absent.unwrap_or(unreadable))
        });
        self.live.dumped(sockets.as_deref().unwrap_or_default());
        // for the SYN queues, and for listeners that have no slot so far
        timer.time(Source::Ebpf, || self.look(slots, self.live.len()));
        sockets
    }

    fn look(&mut self, slots: &mut Known<SlotsSample>, n_listeners: usize) -> Option<Look> {
        let (Ok(programs), Ok(slots)) = (&mut self.programs, slots) else { return None };
        let result = programs.look(slots, self.netns, n_listeners);
        self.note("iterator", result).ok().flatten()
    }

    fn read_netstat(&mut self, fields: &mut Fields) -> Known<()> {
        if self.passes.is_multiple_of(SYSCTLS_EVERY) {
            self.sysctls = sysctl::read();
        }
        let Ok(netstat) = &mut self.netstat else { return Err(Absent::Unreadable) };
        let result = netstat.netstat(fields);
        self.note("netstat", result)
    }

    fn read_owners(&mut self, at: Monotonic, sockets: &Known<Vec<ListenSocket>>) -> HostSample {
        if let Ok(sockets) = sockets {
            let inodes: BTreeSet<Inode> =
                sockets.iter().map(|socket| socket.inode).filter(|inode| inode.0 != 0).collect();
            self.owners.update(at, &inodes);
            // without their number, which changes with every process
            let result = match self.owners.unreadable() {
                0 => Ok(()),
                _ => {
                    Err("descriptors of some processes may not be listed: their listeners have no \
                          owner (needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)")
                }
            };
            let _ = self.note("owners", result);
        }
        host::read()
    }

    /// Turns an error into an absent fact, and logs when it appears, changes or goes.
    fn note<T, E>(&mut self, what: &'static str, result: Result<T, E>) -> Known<T>
    where
        E: Into<Box<dyn Error>>,
    {
        match result {
            Ok(value) => {
                if self.degraded.remove(what).is_some() {
                    tracing::info!(source = what, "readable");
                }
                Ok(value)
            }
            Err(err) => {
                let text = error::chain(&*err.into());
                if self.degraded.get(what) != Some(&text) {
                    tracing::warn!(source = what, error = %text, "not readable");
                    self.degraded.insert(what, text);
                }
                Err(Absent::Unreadable)
            }
        }
    }
}

/// Loads the programs, or says on one line what is missing and what that costs.
fn open_programs(options: &Options, netns: NetnsId) -> (Known<Programs>, Arc<[Hook]>) {
    const COST: &str = "sampled only: no established, accepted, closed or SYN-queue numbers, and \
                        peaks between samples are missed";
    let why = if !options.ebpf {
        "switched off by no_ebpf".to_owned()
    } else if Tier::Sampled <= options.tier {
        format!("switched off by tier {}", options.tier.name())
    } else {
        let loaded = Programs::load(&LoadOptions {
            slots: options.slots,
            netns,
            best: options.tier,
            accept_tracepoints: options.accept_tracepoints,
            events_bytes: options.events_bytes,
        });
        heap::give_back();
        match loaded {
            Ok(mut programs) => {
                if let Err(err) = programs.adopt() {
                    tracing::warn!(error = %err, "listeners from before the start are not followed");
                }
                let hooks = programs.hooks();
                return (Ok(programs), hooks);
            }
            Err(err) => error::chain(&err),
        }
    };
    tracing::warn!(missing = %why, cost = COST, "no eBPF");
    (Err(Absent::NoEbpf), ebpf::load::hooks_without(&why))
}

/// Durations of one pass.
#[derive(Debug, Default)]
struct Timer {
    durations: BTreeMap<Source, Nanos>,
}

impl Timer {
    fn time<T>(&mut self, source: Source, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = work();
        self.add(source, start);
        value
    }

    fn add(&mut self, source: Source, start: Instant) {
        let duration = self.durations.entry(source).or_default();
        *duration = *duration + start.elapsed().into();
    }
}
