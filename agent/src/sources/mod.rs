//! I/O in, ground facts out: one pass over the sources makes a [`Sample`].
//!
//! The order within a pass is what makes its numbers fit each other: PassiveOpens, then the
//! records of the eBPF programs, then the sockets, then ListenDrops. A source that fails leaves
//! its own part absent, is logged when that changes, and the pass goes on.

pub mod ebpf;
pub mod host;
pub mod netstat;
mod owners;
pub mod process;
pub mod sock_diag;
pub mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io,
    sync::Arc,
    time::Instant,
};

use thiserror::Error;

use crate::{
    id::{Inode, NetnsId},
    input::{
        Absent, HostSample, Known, ListenSocket, NamespaceSample, Sample, SlotsSample, Source,
    },
    sources::{ebpf::Programs, netstat::Netstat, owners::Owners, sock_diag::SockDiag},
    sys::{clock, heap, netns},
    time::{Monotonic, Nanos},
};

pub use crate::input::Hook;

/// Limits change rarely: they are read in every tenth sample.
const SYSCTLS_EVERY: u64 = 10;

/// How to open the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether to load the eBPF programs.
    pub ebpf: bool,
    /// How many listening sockets the programs can follow.
    pub slots: u32,
}

/// Why nothing at all can be read.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The thread's namespace has no name.
    #[error("the network namespace of this thread cannot be told")]
    Netns(#[source] io::Error),
    /// Without sock_diag there are no listeners.
    #[error("sock_diag cannot be opened")]
    SockDiag(#[source] sock_diag::SockDiagError),
}

/// Everything that reads the kernel. Belongs to the network namespace of the thread that opened
/// it, and to that thread.
pub struct Sources {
    netns: NetnsId,
    sock_diag: SockDiag,
    netstat: Known<Netstat>,
    programs: Known<Programs>,
    hooks: Arc<[Hook]>,
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
        let (programs, hooks) = open_programs(options);
        let mut sources = Self {
            netns,
            sock_diag,
            netstat: Err(Absent::Unreadable),
            programs,
            hooks,
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

    /// The namespace that is read.
    #[must_use]
    pub fn netns(&self) -> NetnsId {
        self.netns
    }

    /// One pass over the sources.
    pub fn sample(&mut self) -> Sample {
        let start = Instant::now();
        let (at, unix_time) = (clock::monotonic(), clock::realtime());
        let mut timer = Timer::default();
        let passive_opens = timer.time(Source::Netstat, || self.passive_opens());
        let mut slots = timer.time(Source::Ebpf, || self.read_slots());
        let first = self.passes == 0;
        let passive_opens_after = if first { self.passive_opens().ok() } else { None };
        let sockets = timer.time(Source::SockDiag, || self.listen());
        timer.time(Source::Ebpf, || self.read_syn_queues(&mut slots, &sockets));
        let netstat = timer.time(Source::Netstat, || self.read_netstat());
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
            durations: timer.durations.into_iter().collect(),
        }
    }

    fn passive_opens(&mut self) -> Known<u64> {
        let Ok(netstat) = &mut self.netstat else { return Err(Absent::Unreadable) };
        let result = netstat.passive_opens();
        self.note("snmp", result)
    }

    fn read_slots(&mut self) -> Known<SlotsSample> {
        match &mut self.programs {
            Ok(programs) => Ok(programs.read()),
            Err(absent) => Err(*absent),
        }
    }

    fn listen(&mut self) -> Known<Vec<ListenSocket>> {
        let mut sockets = Vec::new();
        let result = self.sock_diag.listen(&mut sockets);
        self.note("sock_diag", result).map(|()| sockets)
    }

    fn read_syn_queues(
        &mut self,
        slots: &mut Known<SlotsSample>,
        sockets: &Known<Vec<ListenSocket>>,
    ) {
        if let (Ok(programs), Ok(slots), Ok(sockets)) = (&mut self.programs, slots, sockets) {
            let result = programs.read_syn_queues(slots, self.netns, sockets.len());
            // the first failure is final and is logged; then the SYN queue stays absent
            let _ = self.note("syn_queue", result);
        }
    }

    fn read_netstat(&mut self) -> Known<BTreeMap<&'static str, u64>> {
        if self.passes.is_multiple_of(SYSCTLS_EVERY) {
            self.sysctls = sysctl::read();
        }
        let Ok(netstat) = &mut self.netstat else { return Err(Absent::Unreadable) };
        let result = netstat.read();
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
    fn note<T, E: Display>(&mut self, what: &'static str, result: Result<T, E>) -> Known<T> {
        match result {
            Ok(value) => {
                if self.degraded.remove(what).is_some() {
                    tracing::info!(source = what, "readable");
                }
                Ok(value)
            }
            Err(err) => {
                let text = err.to_string();
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
fn open_programs(options: &Options) -> (Known<Programs>, Arc<[Hook]>) {
    const COST: &str = "sampled only: no established, accepted, closed or SYN-queue numbers, and \
                        peaks between samples are missed";
    let why = if options.ebpf {
        let loaded = Programs::load(options.slots);
        heap::give_back();
        match loaded {
            Ok(mut programs) => {
                if let Err(err) = programs.adopt() {
                    tracing::warn!(error = %err, "listeners from before the start are not followed");
                }
                let hooks = programs.hooks();
                return (Ok(programs), hooks);
            }
            Err(err) => chain(&err),
        }
    } else {
        "switched off by no_ebpf".to_owned()
    };
    tracing::warn!(missing = %why, cost = COST, "no eBPF");
    (Err(Absent::NoEbpf), ebpf::load::hooks_without(&why))
}

/// An error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |err| (**err).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
