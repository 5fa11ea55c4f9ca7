//! Who holds which listening socket, and how those processes are off for descriptors.
//!
//! In: `process.rs`, `pods/`. Out: the owners of a sample. Cost: one pass over all descriptors of the
//! host when a listener appears and once more soon after (a server that forks its workers after
//! listen(2)), at most a twentieth of a core; and one every 1.5 s, or as much more seldom as keeps
//! these below a hundredth, since descriptors are inherited and passed on: 3.5 µs per descriptor, on a
//! thread of its own. With many processes passes are long and rare: whoever is known to have called
//! listen(2) is asked at once, up to 1,024 descriptors in one sample. A few reads per owner and sample,
//! bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::{
    id::{Inode, Pid},
    input::{Absent, Known, ProcessSample},
    sources::{
        background::{Background, Done},
        pods::Pods,
        process::{self, Held, OwnersFound, Pass, ProcessError},
    },
    time::{Monotonic, Nanos},
};

/// When to look for the owners of a new listener again.
const SECOND_LOOK: Nanos = Nanos(2_000_000_000);

/// A pass over all descriptors is followed by this many times its duration without one.
const REST: u32 = 20;

/// The same before a pass for listeners whose owners are known.
const LONG_REST: u32 = 100;

/// After so many passes over what has changed, one looks at all: a process can close one descriptor and
/// get another.
const FULL_EVERY: u32 = 7;

/// Such a pass comes no sooner than this after the one before.
const AGAIN: Nanos = Nanos(1_500_000_000);

/// How often a process's name is read: exec changes it.
const NAMES_EVERY: Nanos = Nanos(1_500_000_000);

/// How often its limit is read, and where it belongs.
const LIMITS_EVERY: Nanos = Nanos(10_000_000_000);

/// Owners that are read anew in one sample; the others show what was read before.
const READ_AT_ONCE: usize = 32;

/// Descriptors of processes that have called listen(2) which are looked at in one sample: 4 ms.
const LOOKED_AT_ONCE: u64 = 1_024;

/// How long a sample waits for a pass; what takes longer is in a later sample.
const PATIENCE: Duration = Duration::from_millis(5);

/// The same for the first sample, so that series start with the name of their owner.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// Whom a pass looked for, what it found, and what each process held then.
type Looked = (BTreeSet<Inode>, Result<OwnersFound, ProcessError>, Held);

/// What is known of owners.
#[derive(Debug)]
pub(super) struct Owners {
    pods: Pods,
    owners: Arc<BTreeMap<Inode, Vec<Pid>>>,
    processes: BTreeMap<Pid, ProcessSample>,
    /// When name and limit of each were read.
    names_read: BTreeMap<Pid, [Monotonic; 2]>,
    /// Inodes to look for, and from when on.
    wanted: BTreeMap<Inode, Monotonic>,
    known: BTreeSet<Inode>,
    /// Inodes that were looked for once.
    looked: BTreeSet<Inode>,
    rest_until: Monotonic,
    long_rest_until: Monotonic,
    /// What each process held in the last pass.
    held: Held,
    /// Passes since the last one over all descriptors.
    short_passes: u32,
    looking: Background<Looked>,
    /// The pid that was read last; the next sample goes on behind it.
    cursor: Option<Pid>,
    /// Processes whose descriptors may not be listed, in the last pass.
    unreadable: u64,
}

impl Owners {
    /// Knows nobody so far. `root` is where the files of kubelet and container runtimes are.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            pods: Pods::new(root),
            owners: Arc::default(),
            processes: BTreeMap::new(),
            names_read: BTreeMap::new(),
            wanted: BTreeMap::new(),
            known: BTreeSet::new(),
            looked: BTreeSet::new(),
            rest_until: Monotonic::default(),
            long_rest_until: Monotonic::default(),
            held: Held::default(),
            short_passes: 0,
            looking: Background::new("owners"),
            cursor: None,
            unreadable: 0,
        }
    }

    /// Brings the owners up to date for the sockets that listen now; `makers` are those who made some of
    /// them do so, as far as they are known.
    pub(super) fn update(
        &mut self,
        at: Monotonic,
        listening: &BTreeSet<Inode>,
        makers: impl FnOnce(&BTreeSet<Inode>) -> BTreeSet<Pid>,
    ) {
        let is_other = self.known != *listening;
        if is_other {
            let new: BTreeSet<Inode> = listening.difference(&self.known).copied().collect();
            self.wanted.extend(new.iter().map(|inode| (*inode, at)));
            self.ask(&makers(&new), &new);
            self.wanted.retain(|inode, _| listening.contains(inode));
            self.looked.retain(|inode| listening.contains(inode));
            if self.owners.keys().any(|inode| !listening.contains(inode)) {
                Arc::make_mut(&mut self.owners).retain(|inode, _| listening.contains(inode));
            }
        }
        // who is known already can wait
        let patience = match self.wanted.is_empty() {
            _ if self.known.is_empty() => FIRST_PATIENCE,
            false => PATIENCE,
            true => Duration::ZERO,
        };
        let is_wanted = self.rest_until <= at && self.wanted.values().any(|&from| from <= at);
        if !self.looking.is_busy() && (is_wanted || self.long_rest_until <= at) {
            let is_full = is_wanted || FULL_EVERY <= self.short_passes;
            self.short_passes = if is_full { 0 } else { self.short_passes + 1 };
            self.start_looking(
                at,
                listening.clone(),
                if is_full { Pass::Full } else { Pass::Changed },
            );
        }
        self.finish_looking(at, patience);
        if is_other {
            self.known.clone_from(listening);
        }
        self.read_processes(at);
    }

    /// The owners by inode.
    #[must_use]
    pub(super) fn owners(&self) -> Arc<BTreeMap<Inode, Vec<Pid>>> {
        self.owners.clone()
    }

    /// The processes that own something.
    #[must_use]
    pub(super) fn processes(&self) -> &BTreeMap<Pid, ProcessSample> {
        &self.processes
    }

    /// Processes that the last pass was not allowed to look into.
    #[must_use]
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Takes those of `pids` for owners that hold any of the `new` sockets, until a pass says more.
    fn ask(&mut self, pids: &BTreeSet<Pid>, new: &BTreeSet<Inode>) {
        let mut left = LOOKED_AT_ONCE;
        for pid in pids {
            let Some(rest) = process::open_fds(*pid).ok().and_then(|n| left.checked_sub(n)) else {
                continue;
            };
            left = rest;
            for inode in process::held_by(*pid, new).unwrap_or_default() {
                let owners = Arc::make_mut(&mut self.owners).entry(inode).or_default();
                if !owners.contains(pid) {
                    owners.push(*pid);
                }
            }
        }
    }

    fn start_looking(&mut self, at: Monotonic, due: BTreeSet<Inode>, pass: Pass) {
        let mut held = std::mem::take(&mut self.held);
        // whatever comes of it
        (self.rest_until, self.long_rest_until) = (at + AGAIN, at + AGAIN);
        self.looking.start(move || {
            let found = process::owners(&due, pass, &mut held);
            (due, found, held)
        });
    }

    fn finish_looking(&mut self, at: Monotonic, patience: Duration) {
        let Some(Done { value: (due, found, held), took, .. }) = self.looking.finish(patience)
        else {
            return;
        };
        self.held = held;
        self.rest_until = at + Nanos::from(took.saturating_mul(REST));
        self.long_rest_until = at + AGAIN.max(took.saturating_mul(LONG_REST).into());
        let found = match found {
            Ok(found) => found,
            Err(err) => return tracing::debug!(error = %err, "owners not found"),
        };
        self.unreadable = found.unreadable;
        for inode in &due {
            // whoever was just found is looked for once more soon
            let Some(wanted) = self.wanted.get_mut(inode).filter(|from| **from <= at) else {
                continue;
            };
            match self.looked.insert(*inode) {
                true => *wanted = at + SECOND_LOOK,
                false => _ = self.wanted.remove(inode),
            }
        }
        let is_same = |inode| self.owners.get(inode) == found.owners.get(inode);
        if !due.iter().all(is_same) {
            let owners = Arc::make_mut(&mut self.owners);
            owners.retain(|inode, _| !due.contains(inode));
            owners.extend(found.owners);
        }
    }

    fn read_processes(&mut self, at: Monotonic) {
        let pids: BTreeSet<Pid> = self.owners.values().flatten().copied().collect();
        self.processes.retain(|pid, _| pids.contains(pid));
        self.names_read.retain(|pid, _| pids.contains(pid));
        let new = pids.iter().filter(|pid| !self.processes.contains_key(pid));
        let behind = pids.iter().filter(|pid| self.cursor < Some(**pid));
        let before = pids.iter().filter(|pid| Some(**pid) <= self.cursor);
        let turn: Vec<Pid> = new
            .chain(
                behind
                    .chain(before)
                    .filter(|pid| self.processes.contains_key(pid))
                    .take(READ_AT_ONCE),
            )
            .copied()
            .collect();
        for pid in turn {
            self.cursor = Some(pid);
            match self.read_process(pid, at) {
                Ok(process) => _ = self.processes.insert(pid, process),
                Err(_) => self.lose(pid, at),
            }
        }
    }

    /// Descriptors each time; the rest changes rarely and costs ten times as much.
    fn read_process(&mut self, pid: Pid, at: Monotonic) -> Known<ProcessSample> {
        let [name, limit] = self.names_read.get(&pid).copied().unwrap_or_default();
        let known = self.processes.get(&pid);
        let Some(known) = known.filter(|_| at - limit < LIMITS_EVERY) else {
            self.names_read.insert(pid, [at, at]);
            let mut process = process::read(pid)?;
            process.workload = self.pods.of(pid, at).unwrap_or_default().into();
            return Ok(process);
        };
        let open_fds = process::open_fds(pid);
        if open_fds == Err(Absent::Unreadable) {
            return Err(Absent::Unreadable);
        }
        let mut process = ProcessSample { open_fds, ..known.clone() };
        if NAMES_EVERY <= at - name {
            self.names_read.insert(pid, [at, limit]);
            process.comm = process::comm(pid)?;
        }
        Ok(process)
    }

    /// A process that is gone: whoever else holds its listeners is looked for.
    fn lose(&mut self, pid: Pid, at: Monotonic) {
        self.processes.remove(&pid);
        self.names_read.remove(&pid);
        for (inode, pids) in Arc::make_mut(&mut self.owners) {
            if pids.contains(&pid) {
                pids.retain(|other| *other != pid);
                self.wanted.insert(*inode, at);
            }
        }
    }
}
