//! Whose threads are worth a look: processes that hold a queue which nobody serves.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    id::Pid,
    input::{Known, Sample},
    model::snapshot::{Listener, Member},
    threads::Threads,
    time::{Monotonic, Nanos},
};

/// A queue that went unserved for so long makes its owners suspects: sooner than it is called
/// stalled, so that the cause is there by then. Less than two seconds, since a sample may come some
/// milliseconds too soon.
const WAITED: Duration = Duration::from_millis(1_900);

/// From one look at a process to the next at least.
const EVERY: Duration = Duration::from_secs(5);

/// Processes that are asked for in one sample.
const AT_ONCE: usize = 4;

/// How long what was found is shown.
const KEPT: Duration = Duration::from_secs(60);

/// Whom to look at, and what was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspects {
    /// When each was last asked for.
    asked: BTreeMap<Pid, Monotonic>,
    wanted: Vec<Pid>,
    /// When each was last seen.
    seen: BTreeMap<Pid, Monotonic>,
    found: Arc<BTreeMap<Pid, Known<Threads>>>,
}

impl Suspects {
    /// Takes in what `sample` shows and chooses whom to look at. In the first sample nobody knows
    /// how long a queue has been waiting: any may have been for long.
    pub(super) fn next(&mut self, sample: &Sample, listeners: &[Listener], is_first: bool) {
        self.learn(sample);
        let has_waited = |member: &&Member| {
            let is_long = member.waiting.is_ok_and(|waiting| Nanos::from(WAITED) <= waiting);
            is_long || is_first && 0 < member.length
        };
        let members = listeners.iter().flat_map(|listener| &listener.members);
        let owners = members.filter(has_waited).filter_map(|it| sample.owners.get(&it.inode));
        // whoever is first in any group is a suspect before all who are second
        let mut suspects: BTreeMap<Pid, usize> = BTreeMap::new();
        for owners in owners {
            let mut owners = owners.clone();
            owners.sort_unstable();
            for (rank, pid) in owners.into_iter().enumerate() {
                let known = suspects.entry(pid).or_insert(rank);
                *known = rank.min(*known);
            }
        }
        self.choose(sample.at, &suspects);
    }

    /// Whom to look at until the next sample.
    pub(super) fn wanted(&self) -> &[Pid] {
        &self.wanted
    }

    /// What was found.
    pub(super) fn found(&self) -> Arc<BTreeMap<Pid, Known<Threads>>> {
        self.found.clone()
    }

    fn learn(&mut self, sample: &Sample) {
        self.seen.extend(sample.threads.keys().map(|pid| (*pid, sample.at)));
        self.seen.retain(|pid, then| {
            sample.at - *then < Nanos::from(KEPT) && sample.processes.contains_key(pid)
        });
        if !sample.threads.is_empty() || self.seen.len() < self.found.len() {
            let found = Arc::make_mut(&mut self.found);
            found.extend(sample.threads.clone());
            found.retain(|pid, _| self.seen.contains_key(pid));
        }
    }

    /// Those that were never asked for come first, then those that were not for longest.
    fn choose(&mut self, at: Monotonic, suspects: &BTreeMap<Pid, usize>) {
        let is_recent = |then: &Monotonic| at - *then < Nanos::from(EVERY);
        self.asked.retain(|pid, then| suspects.contains_key(pid) || is_recent(then));
        let mut due: Vec<(Option<Monotonic>, usize, Pid)> = suspects
            .iter()
            .map(|(pid, rank)| (self.asked.get(pid).copied(), *rank, *pid))
            .filter(|(asked, ..)| !asked.as_ref().is_some_and(is_recent))
            .collect();
        due.sort_unstable();
        due.truncate(AT_ONCE);
        self.wanted = due.into_iter().map(|(.., pid)| pid).collect();
        self.asked.extend(self.wanted.iter().map(|pid| (*pid, at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Second, suspects with their ranks, and who is asked for then.
    type Case<'a> = (u64, &'a [(u32, usize)], &'a [u32]);

    #[track_caller]
    fn check(samples: &[Case<'_>]) {
        let mut suspects = Suspects::default();
        for (second, ranks, expected) in samples {
            let ranks = ranks.iter().map(|&(pid, rank)| (Pid(pid), rank)).collect();
            suspects.choose(Monotonic(second * 1_000_000_000), &ranks);
            let wanted: Vec<u32> = suspects.wanted().iter().map(|pid| pid.0).collect();
            assert_eq!(**expected, wanted, "at {second} s of {samples:?}");
        }
    }

    #[test]
    fn a_suspect_is_looked_at_every_five_seconds() {
        let one: &[(u32, usize)] = &[(7, 0)];
        check(&[(0, &[], &[]), (1, one, &[7]), (5, one, &[]), (6, one, &[7]), (7, &[], &[])]);
        // also when it was none meanwhile
        check(&[(1, one, &[7]), (2, &[], &[]), (3, one, &[]), (6, one, &[7])]);
    }

    #[test]
    fn the_first_of_each_socket_come_before_the_others_and_all_have_their_turn() {
        let many: &[(u32, usize)] = &[(1, 2), (2, 1), (3, 0), (4, 0), (5, 1), (6, 1)];
        check(&[
            (0, many, &[3, 4, 2, 5]),
            (1, many, &[6, 1]),
            (2, many, &[]),
            (5, many, &[3, 4, 2, 5]),
            (6, many, &[6, 1]),
        ]);
        // more than there is time for
        let crowd = (1..=30).map(|pid| (Pid(pid), 0)).collect();
        let mut suspects = Suspects::default();
        let mut turns = BTreeMap::new();
        for second in 0..60 {
            suspects.choose(Monotonic(second * 1_000_000_000), &crowd);
            assert_eq!(AT_ONCE, suspects.wanted().len());
            suspects.wanted().iter().for_each(|pid| *turns.entry(*pid).or_insert(0) += 1);
        }
        assert!(turns.len() == 30 && turns.values().all(|n| (7..=9).contains(n)), "{turns:?}");
    }
}
