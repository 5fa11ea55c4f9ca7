//! Detections about processes that own listeners, by name: what is told is of the one that is nearest to its
//! limit.

mod fds_filling_up;
mod fds_near_limit;

use std::sync::Arc;

use crate::{
    detect::{
        book::Kind,
        climb::Climb,
        command::raise_nofile,
        history::History,
        rule::{COUNTERS, Look, Rule},
        subject::{Labels, Place, Subject, SubjectKind},
        tuning::{Target, Tuning},
    },
    id::Pid,
    input::{FdKinds, Known},
    model::snapshot::{Listener, Process, Snapshot},
};

/// Names of processes that have used up a part of their descriptors, or of which that is not known.
pub(super) struct Processes;

/// A look at one.
type At<'i, 'a> = Look<'i, 'a, Processes>;

/// What is below that is not remembered.
const LEAST_RATIO: f64 = 0.02;
/// Listeners that are named.
const SHOWN: usize = 3;

/// The process of one name that is nearest to its limit.
#[derive(Clone, Copy)]
pub(super) struct Worst<'a> {
    pid: Pid,
    process: &'a Process,
    ratio: f64,
}

impl Kind for Processes {
    type Key = Arc<str>;
    type Item<'a> = Worst<'a>;
    type Memory = Climb;

    const KIND: SubjectKind = SubjectKind::Process;

    const RULES: &'static [Rule<Self>] = &[fds_filling_up::RULE, fds_near_limit::RULE];

    fn each<'a>(now: &'a Snapshot, _: &'a Tuning, visit: &mut dyn FnMut(Arc<str>, Worst<'a>)) {
        let worst = now.processes.iter().filter_map(|(&pid, process)| {
            let ratio = match (process.now.open_fds, process.now.max_fds) {
                (Ok(open), Ok(max)) => open as f64 / max.max(1) as f64,
                // not known, which the detections say
                (Err(_), _) | (_, Err(_)) => return Some(Worst { pid, process, ratio: 0.0 }),
            };
            (LEAST_RATIO <= ratio).then_some(Worst { pid, process, ratio })
        });
        let mut worst: Vec<Worst<'a>> = worst.collect();
        worst.sort_by(|one, other| {
            let comm = one.process.now.comm.cmp(&other.process.now.comm);
            comm.then(other.ratio.total_cmp(&one.ratio))
        });
        worst.dedup_by(|next, one| next.process.now.comm == one.process.now.comm);
        worst.into_iter().for_each(|it| visit(it.process.now.comm.clone(), it));
    }

    fn counters(_: Worst<'_>, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        [None; COUNTERS]
    }

    fn remember(climb: &mut Climb, it: Worst<'_>, _: &History<COUNTERS>, now: &Snapshot) {
        if let Ok(open) = it.process.now.open_fds {
            climb.push(now.at, open);
        }
    }

    fn target(it: Worst<'_>) -> Target {
        let (comm, workload) = (it.process.now.comm.clone(), it.process.now.workload.clone());
        Target { comm: Some(comm), workload, ..Target::default() }
    }

    fn subject(it: Worst<'_>, _: &Snapshot) -> Subject {
        let comm = &it.process.now.comm;
        Subject {
            kind: Self::KIND,
            name: comm.to_string(),
            // which process is the worst changes, and with it where it belongs
            labels: Labels { comm: Some(comm.clone()), ..Labels::default() },
            pids: Arc::new([it.pid]),
        }
    }
}

impl<'a> Worst<'a> {
    /// Open descriptors, and how many there may be.
    fn fds(&self) -> Known<(u64, u64)> {
        Ok((self.process.now.open_fds?, self.process.now.max_fds?))
    }

    /// Its listeners.
    fn listeners<'s>(&self, now: &'s Snapshot) -> impl Iterator<Item = &'s Listener> + use<'s> {
        let pid = self.pid;
        now.listeners.iter().filter(move |it| it.owners.contains(&pid))
    }

    /// How many are open, of how many, what they are, and where it listens.
    fn describe(&self, now: &Snapshot) -> String {
        let (open, max) = self.fds().unwrap_or_default();
        let mut text = format!(
            "pid {}: {open} of {max} descriptors open, {:.0} %",
            self.pid,
            100.0 * self.ratio
        );
        if let Some(FdKinds { sockets, pipes, files, others, is_partial }) =
            self.process.now.fd_kinds.filter(|kinds| *kinds != FdKinds::default())
        {
            let least = if is_partial { "at least " } else { "" };
            let kinds = [(sockets, "socket"), (files, "file"), (pipes, "pipe"), (others, "other")];
            let kinds = kinds.into_iter().filter(|(n, _)| 0 < *n);
            let kinds =
                kinds.map(|(n, kind)| format!("{n} {kind}{}", if n == 1 { "" } else { "s" }));
            text.push_str(&format!("; {least}{}", kinds.collect::<Vec<_>>().join(", ")));
        }
        let places: Vec<String> = self
            .listeners(now)
            .take(SHOWN)
            .map(|it| Place(it.key.addr, it.key.port).to_string())
            .collect();
        if !places.is_empty() {
            text.push_str(&format!("; listens on {}", places.join(", ")));
        }
        text
    }

    /// Connections of its listeners that it has not closed, where they are a good part.
    fn cause(&self, now: &Snapshot) -> Option<String> {
        let close_waits =
            |it: &Listener| it.connections.map_or(0, |connections| connections.close_wait);
        let n: u64 = self.listeners(now).map(close_waits).sum();
        let (open, _) = self.fds().ok()?;
        (open <= 4 * n && 0 < n).then(|| {
            format!("{n} connections are in CLOSE_WAIT: the peers have closed, it has not")
        })
    }

    /// What shows them, and what makes room: the soft limit, as far as the hard one lets it.
    fn mend(&self) -> String {
        let (pid, max) = (self.pid, self.fds().map_or(0, |(_, max)| max));
        format!("ls -l /proc/{pid}/fd; {}", raise_nofile(pid, max))
    }
}

#[cfg(test)]
mod tests;
