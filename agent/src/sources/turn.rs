//! Whose turn it is among the network namespaces; pure.

use crate::{id::NetnsId, time::Monotonic};

/// Each namespace's counters are read at least once in so many samples.
const ROUND: usize = 30;

/// Namespaces that are read in one sample since their listeners moved; others wait for the next.
const MOVED_AT_ONCE: usize = 64;

/// Namespaces that are entered in one sample.
const ENTERED_AT_ONCE: usize = 16;

/// A namespace that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reading {
    /// When it was last.
    pub(super) read: Option<Monotonic>,
    /// Whether its listeners have moved since.
    pub(super) has_moved: bool,
    pub(super) netns: NetnsId,
}

/// Whose counters are to be read: those that moved, those that never were, and of the others the ones
/// that were not read for longest.
pub(super) fn to_read(mut all: Vec<Reading>) -> Vec<NetnsId> {
    // those that were never read come first
    all.sort_unstable();
    let turn = all.len().div_ceil(ROUND);
    let n_new = all.iter().take_while(|it| it.read.is_none()).count();
    // those from before the agent at once: what moves from here on counts
    let most = if n_new == all.len() { usize::MAX } else { MOVED_AT_ONCE };
    let is_known = |it: &&Reading| it.has_moved && it.read.is_some();
    let moved = all.iter().filter(is_known).take(most);
    let others = all.iter().filter(|it| !is_known(it)).take(turn.max(n_new.min(most)));
    moved.chain(others).map(|it| it.netns).collect()
}

/// Which of `due` are to be entered, all or as many as fit one sample: those that were not for longest.
pub(super) fn to_enter<T>(
    mut due: Vec<(Option<Monotonic>, NetnsId, T)>,
    all: bool,
) -> Vec<(NetnsId, T)> {
    due.sort_unstable_by_key(|(entered, netns, _)| (*entered, *netns));
    due.truncate(if all { usize::MAX } else { ENTERED_AT_ONCE });
    due.into_iter().map(|(_, netns, way)| (netns, way)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` namespaces from `first` on.
    fn readings(n: usize, first: u32, read: Option<u64>, has_moved: bool) -> Vec<Reading> {
        let reading =
            |netns| Reading { read: read.map(Monotonic), has_moved, netns: NetnsId(netns) };
        (first..).take(n).map(reading).collect()
    }

    #[track_caller]
    fn check(all: &[Vec<Reading>], expected: &[u32]) {
        let expected: Vec<_> = expected.iter().copied().map(NetnsId).collect();
        assert_eq!(to_read(all.concat()), expected);
    }

    #[test]
    fn what_moved_is_read_and_of_the_others_a_thirtieth() {
        check(&[], &[]);
        let quiet = || readings(58, 100, Some(7), false);
        check(&[quiet(), readings(2, 1, Some(9), true)], &[1, 2, 100, 101]);
        // the one that was not read for longest
        check(&[quiet(), readings(1, 900, Some(3), false)], &[900, 100]);
        // and those that never were
        check(&[quiet(), readings(3, 1, None, true)], &[1, 2, 3]);
    }

    #[test]
    fn at_the_start_all_are_read_and_later_as_many_as_fit() {
        assert_eq!(250, to_read(readings(250, 1, None, false)).len());
        let many = [readings(100, 1, Some(1), true), readings(200, 500, None, false)].concat();
        assert_eq!(2 * MOVED_AT_ONCE, to_read(many).len());
    }

    #[test]
    fn each_has_its_turn_within_a_round() {
        let mut all = readings(250, 1, Some(0), false);
        for at in 1..=ROUND as u64 {
            for netns in to_read(all.clone()) {
                let reading = all.iter_mut().find(|it| it.netns == netns).expect("one of them");
                reading.read = Some(Monotonic(at));
            }
        }
        assert!(all.iter().all(|it| it.read != Some(Monotonic(0))));
    }

    #[test]
    fn those_that_were_not_entered_for_longest_are_first() {
        let due = || {
            let one = |n: u32| (Some(Monotonic(u64::from(100 - n))), NetnsId(n), ());
            [(None, NetnsId(900), ())].into_iter().chain((1..=20).map(one)).collect::<Vec<_>>()
        };
        let entered = to_enter(due(), false);
        assert_eq!(ENTERED_AT_ONCE, entered.len());
        assert_eq!([900, 20, 19], [0, 1, 2].map(|at| entered[at].0.0));
        assert_eq!(21, to_enter(due(), true).len());
    }
}
