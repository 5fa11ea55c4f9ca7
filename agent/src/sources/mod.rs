//! I/O in, ground facts out: one pass over the sources makes a [`Sample`].
//!
//! The order within a pass is what makes its numbers fit each other: PassiveOpens and ListenDrops,
//! then the records of the eBPF programs, then the sockets. A source that fails leaves
//! its own part absent, is logged when that changes, and the pass goes on.
//!
//! The sockets' numbers come from the sweep, which reads the same fields of the same sockets as a
//! dump, in all namespaces at once; sock_diag is asked now and then for what has no record. Where
//! the kernel lets no program read by address, they come from the iterator while the set of listeners
//! stays as it is, and from dumps (`live.rs`), and namespaces take turns.

mod background;
pub mod ebpf;
pub mod host;
mod inside;
mod listen;
mod live;
pub mod machine;
pub mod netns;
pub mod netstat;
mod others;
mod own;
mod owners;
pub mod pods;
pub mod process;
pub mod sock_diag;
pub mod sockets;
pub mod sockstat;
mod spaces;
pub mod sysctl;
mod tables;
mod threads;
mod turn;
pub mod udp;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    ops::RangeInclusive,
    panic::resume_unwind,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Instant,
};

use thiserror::Error;

use crate::{
    error,
    id::{Cookie, Inode, NetnsId, Pid},
    input::{
        Absent, Hook, Known, NamespaceSample, Sample, SlotsSample, Source, TcpMemoryLimits, Tier,
        UdpSocket,
    },
    sources::{
        ebpf::{
            Programs,
            events::WatchError,
            load::{LoadError, LoadOptions},
        },
        live::{Extra, Live},
        netstat::{Fields, Netstat},
        owners::Owners,
        sock_diag::{SockDiag, SockDiagError},
        spaces::Spaces,
        tables::Tables,
        threads::Looks,
    },
    sys::{self, clock, heap},
    time::{Monotonic, Nanos},
};

/// How to open the sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Whether to load the eBPF programs.
    pub ebpf: bool,
    /// Whether the log says what is missed without them.
    pub tells_cost: bool,
    /// How many listening sockets the programs can follow.
    pub slots: u32,
    /// The best kind of hook that may be tried. [`Tier::Sampled`]: no programs.
    pub tier: Tier,
    /// Whether the tracepoints of system calls may be on for good, where nothing else sees accept.
    pub accept_tracepoints: bool,
    /// Bytes of the ring buffer for events; a power of two, at least a page.
    pub events_bytes: u32,
    /// Whose listeners are looked at.
    pub namespaces: Namespaces,
    /// How much of a core reads of whole socket tables may take; 0: there are none.
    pub table_share: f64,
    /// Where the files of kubelet and container runtimes are: `/` on the host.
    pub root: PathBuf,
}

/// Which network namespaces are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namespaces {
    /// All of the host, as far as the agent may.
    #[default]
    All,
    /// The one of the thread that opens the sources.
    Own,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ebpf: true,
            tells_cost: true,
            slots: backlogd_abi::SLOTS,
            tier: Tier::Fentry,
            accept_tracepoints: false,
            events_bytes: 4096,
            namespaces: Namespaces::All,
            table_share: 0.02,
            root: "/".into(),
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

/// Everything that reads the kernel. Belongs to the thread that opened it, and counts that thread's
/// network namespace as its own.
pub struct Sources {
    netns: NetnsId,
    /// All others; `None`: not looked at.
    spaces: Option<Spaces>,
    sock_diag: SockDiag,
    netstat: Known<Netstat>,
    programs: Known<Programs>,
    hooks: Arc<[Hook]>,
    live: Live,
    extra: Extra,
    owners: Owners,
    looks: Looks,
    tables: Tables,
    /// The own namespace's, and when they were read.
    udp: Option<(Monotonic, Known<Arc<Vec<UdpSocket>>>)>,
    udp6_errors: Fields,
    sysctls: Arc<BTreeMap<&'static str, i64>>,
    reserved_ports: Arc<[RangeInclusive<u16>]>,
    tcp_memory_limits: Known<TcpMemoryLimits>,
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
        let netns = sys::netns::current().map_err(OpenError::Netns)?;
        let sock_diag = SockDiag::open().map_err(OpenError::SockDiag)?;
        let (programs, hooks) = open_programs(options, netns);
        let mut sources = Self {
            netns,
            spaces: (options.namespaces == Namespaces::All).then(Spaces::default),
            sock_diag,
            netstat: Err(Absent::Unreadable),
            programs,
            hooks,
            live: Live::default(),
            extra: Extra::default(),
            owners: Owners::new(&options.root),
            looks: Looks::new(&options.root),
            tables: Tables::new(options.table_share),
            udp: None,
            udp6_errors: Fields::new(),
            sysctls: Arc::default(),
            reserved_ports: Arc::default(),
            tcp_memory_limits: Err(Absent::TooEarly),
            passes: 0,
            degraded: BTreeMap::new(),
        };
        let netstat = Netstat::open();
        sources.netstat = sources.note("netstat", netstat);
        sources.adopt();
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
        timer.time(Source::Netstat, || self.read_spaces(at));
        let snmp = timer.time(Source::Netstat, || self.read_snmp(&mut fields));
        let (passive_opens, connected) = (snmp.and_then(|it| it.0), snmp.and_then(|it| it.1));
        let netstat = timer.time(Source::Netstat, || self.read_netstat(&mut fields));
        let mut slots = timer.time(Source::Ebpf, || self.read_slots());
        let first = self.passes == 0;
        let passive_opens_after =
            if first { self.read_snmp(&mut Fields::new()).and_then(|it| it.0).ok() } else { None };
        if let Some(spaces) = &mut self.spaces {
            timer.time(Source::Netstat, || spaces.read_again(at));
        }
        let swept = timer.time(Source::Ebpf, || self.sweep(&mut slots));
        let sockets = if swept {
            Ok(self.swept_sockets(&mut slots, &mut timer))
        } else {
            self.read_sockets(&mut slots, &mut timer)
        };
        let sockstat = timer.time(Source::Netstat, || self.read_sockstat());
        let udp = timer.time(Source::SockDiag, || self.read_udp(at, &mut fields));
        let own = NamespaceSample {
            netns: self.netns,
            is_new: false,
            sockets,
            passive_opens,
            passive_opens_after,
            netstat: netstat.map(|()| fields.into()),
            sysctls: self.sysctls.clone(),
            reserved_ports: self.reserved_ports.clone(),
            connected,
            sockstat,
            table: Err(Absent::TooEarly),
            udp,
        };
        timer.time(Source::SockDiag, || self.enter_spaces(at, &slots, swept));
        let mut namespaces = self.namespaces(own, &slots, swept);
        let spaces = self.spaces.as_ref();
        self.tables.update(at, self.netns, &mut namespaces, |netns| spaces?.way(netns));
        timer.time(Source::Process, || self.read_owners(at, &namespaces, &slots));
        let host = host::read(sockstat, self.tcp_memory_limits);
        self.passes += 1;
        timer.add(Source::Total, start);
        Sample {
            at,
            unix_time,
            namespaces,
            slots,
            owners: self.owners.owners(),
            processes: self.owners.processes().clone(),
            threads: self.looks.found(at),
            host,
            degraded: self.degraded.clone(),
            durations: timer.durations.into_iter().collect(),
        }
    }

    /// Sees for a while what only the tracepoints of system calls see, or no longer.
    pub fn look_closer(&mut self, on: bool) {
        if let Ok(programs) = &mut self.programs {
            let result = programs.look_closer(on);
            if on || result.is_err() {
                let _ = self.note("closer look", result);
            }
        }
    }

    /// Looks beside the samples at what the threads of these processes do. What is found is in a later
    /// sample, mostly the next.
    pub fn look_at_threads(&mut self, pids: &[Pid]) {
        self.looks.ask(clock::monotonic(), pids);
    }

    fn read_slots(&mut self) -> Known<SlotsSample> {
        match &mut self.programs {
            Ok(programs) => Ok(programs.read()),
            Err(absent) => Err(*absent),
        }
    }

    fn read_owners(
        &mut self,
        at: Monotonic,
        namespaces: &[NamespaceSample],
        slots: &Known<SlotsSample>,
    ) {
        let sockets = namespaces.iter().filter_map(|namespace| namespace.sockets.as_ref().ok());
        let udp = namespaces.iter().filter_map(|namespace| namespace.udp.as_ref().ok());
        let inodes: BTreeSet<Inode> = sockets
            .flatten()
            .map(|socket| socket.inode)
            .chain(udp.flat_map(|udp| udp.iter().map(|socket| socket.inode)))
            .filter(|inode| inode.0 != 0)
            .collect();
        if namespaces.iter().any(|namespace| namespace.sockets.is_ok()) {
            self.owners.update(at, &inodes, |new| makers(new, namespaces, slots));
            // without their number, which changes with every process
            let result = match self.owners.unreadable() {
                0 => Ok(()),
                _ => {
                    Err("descriptors of some processes may not be listed: their listeners have no \
                          owner (needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, and no security \
                          module that refuses all the same)")
                }
            };
            let _ = self.note("owners", result);
        }
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

/// Who called listen(2) on these sockets, by their records.
fn makers(
    new: &BTreeSet<Inode>,
    namespaces: &[NamespaceSample],
    slots: &Known<SlotsSample>,
) -> BTreeSet<Pid> {
    if new.is_empty() {
        return BTreeSet::new();
    }
    let sockets = namespaces.iter().flat_map(|namespace| namespace.sockets.iter().flatten());
    let cookies: BTreeSet<Cookie> =
        sockets.filter(|socket| new.contains(&socket.inode)).map(|socket| socket.cookie).collect();
    let records = slots.iter().flat_map(|slots| &slots.records);
    records.filter(|record| cookies.contains(&record.cookie)).filter_map(|it| it.pid).collect()
}

/// Loads the programs, or says on one line what is missing and what that costs, where that is wanted.
fn open_programs(options: &Options, netns: NetnsId) -> (Known<Programs>, Arc<[Hook]>) {
    const COST: &str = "sampled only: no established, accepted, closed or SYN-queue numbers, and \
                        peaks between samples are missed";
    let why = if !options.ebpf {
        "switched off by no_ebpf".to_owned()
    } else if Tier::Sampled <= options.tier {
        format!("switched off by tier {}", options.tier.name())
    } else {
        let options = LoadOptions {
            slots: options.slots,
            netns: (options.namespaces == Namespaces::Own).then_some(netns),
            best: options.tier,
            accept_tracepoints: options.accept_tracepoints,
            events_bytes: options.events_bytes,
        };
        // on a thread of its own, whose heap the kernel's BTF may tear to pieces
        let loaded = thread::scope(|scope| {
            let thread = thread::Builder::new().name("load".to_owned());
            let load = thread.spawn_scoped(scope, || Programs::load(&options));
            load.map(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        heap::give_back();
        match loaded.unwrap_or_else(|err| Err(LoadError::Thread(err))) {
            Ok(programs) => {
                let hooks = programs.hooks();
                return (Ok(programs), hooks);
            }
            Err(err) => error::chain(&err),
        }
    };
    if options.tells_cost {
        tracing::warn!(missing = %why, cost = COST, "no eBPF");
    }
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
