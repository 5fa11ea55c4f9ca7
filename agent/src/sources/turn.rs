//! Whose turn it is among the network namespaces; pure.

use crate::{
    id::NetnsId,
    time::{Monotonic, Nanos},
};

/// Each namespace's counters are read at least once in so many samples, or each [`QUIET_EVERY`] if that is
/// longer.
const ROUND: usize = 30;

/// One whose listeners have not moved is not read again before.
const QUIET_EVERY: Nanos = Nanos(5_000_000_000);

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
    /// Whether it could not be read then.
    pub(super) has_failed: bool,
    pub(super) netns: NetnsId,
}

/// Whose counters are to be read: those that moved, those that never were, and of the others the ones
/// that were not read for longest.
pub(super) fn to_read(at: Monotonic, mut all: Vec<Reading>) -> Vec<NetnsId> {
    // those that were never read come first
    all.sort_unstable();
    let turn = all.len().div_ceil(ROUND);
    let n_new = all.iter().take_while(|it| it.read.is_none()).count();
    // those from before the agent at once: what moves from here on counts
    let most = if n_new == all.len() { usize::MAX } else { MOVED_AT_ONCE };
    let is_known = |it: &&Reading| it.has_moved && it.read.is_some();
    let moved = all.iter().filter(is_known).take(most);
    let is_due =
        |it: &&Reading| it.has_failed || it.read.is_none_or(|then| QUIET_EVERY <= at - then);
    let others = all.iter().filter(|it| !is_known(it)).take(turn.max(n_new.min(most)));
    let others = others.filter(is_due);
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
        let reading = |netns| Reading {
            read: read.map(Monotonic),
            has_moved,
            has_failed: false,
            netns: NetnsId(netns),
        };
        (first..).take(n).map(reading).collect()
    }

    #[track_caller]
    fn check(all: &[Vec<Reading>], expected: &[u32]) {
        let expected: Vec<_> = expected.iter().copied().map(NetnsId).collect();
        assert_eq!(to_read(LATER, all.concat()), expected);
    }

    const LATER: Monotonic = Monotonic(100 * QUIET_EVERY.0);

    #[test]
    fn what_did_not_move_is_left_alone_for_a_while() {
        let then = Some(LATER.0);
        let all = [readings(1, 1, then, true), readings(1, 2, then, false)];
        let at = |later: u64| Monotonic(LATER.0 + later);
        assert_eq!(vec![NetnsId(1)], to_read(at(QUIET_EVERY.0 - 1), all.concat()));
        assert_eq!(vec![NetnsId(1), NetnsId(2)], to_read(at(QUIET_EVERY.0), all.concat()));
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
        assert_eq!(250, to_read(LATER, readings(250, 1, None, false)).len());
        let many = [readings(100, 1, Some(1), true), readings(200, 500, None, false)].concat();
        assert_eq!(2 * MOVED_AT_ONCE, to_read(LATER, many).len());
    }

    #[test]
    fn each_has_its_turn_within_a_round() {
        let mut all = readings(250, 1, Some(0), false);
        for at in 1..=ROUND as u64 {
            let at = Monotonic(at * 1_000_000_000 + QUIET_EVERY.0);
            for netns in to_read(at, all.clone()) {
                let reading = all.iter_mut().find(|it| it.netns == netns).expect("one of them");
                reading.read = Some(at);
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
