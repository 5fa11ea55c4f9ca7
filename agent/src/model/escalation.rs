//! When to look closer for a while: at what fails in accept(2), where only the tracepoints of
//! system calls see that, and they cost every system call of the host a little.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    id::ListenerKey,
    time::{Monotonic, Nanos},
};

/// How long a closer look lasts.
const LASTS: Duration = Duration::from_secs(5);

/// From the beginning of one to the beginning of the next at least.
const EVERY: Duration = Duration::from_secs(60);

/// Whether to look closer.
#[derive(Clone, Debug, Default)]
pub(super) struct Escalation {
    /// Those that were stalled in the sample before.
    stalled: BTreeSet<ListenerKey>,
    /// Whether one has become stalled while no closer look was allowed.
    waiting: bool,
    since: Option<Monotonic>,
    active: bool,
}

impl Escalation {
    /// Takes in who is stalled at `at`. A closer look begins when a listener becomes stalled, one at
    /// a time, at most once a minute; it ends after five seconds.
    pub(super) fn next(&mut self, at: Monotonic, stalled: BTreeSet<ListenerKey>) {
        self.waiting = !stalled.is_empty() && (self.waiting || !stalled.is_subset(&self.stalled));
        self.stalled = stalled;
        let age = self.since.map(|since| at - since);
        self.active &= age.is_some_and(|age| age < Nanos::from(LASTS));
        if !self.active && self.waiting && age.is_none_or(|age| Nanos::from(EVERY) <= age) {
            self.since = Some(at);
            self.active = true;
            self.waiting = false;
        }
    }

    /// Whether it is to be on until the next sample.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::id::NetnsId;

    fn key(port: u16) -> ListenerKey {
        ListenerKey { netns: NetnsId(1), addr: IpAddr::V4(Ipv4Addr::LOCALHOST), port }
    }

    /// Second, ports that are stalled then, and whether to look closer.
    #[track_caller]
    fn check(samples: &[(u64, &[u16], bool)]) {
        let mut escalation = Escalation::default();
        for (second, stalled, expected) in samples {
            let stalled = stalled.iter().copied().map(key).collect();
            escalation.next(Monotonic(second * 1_000_000_000), stalled);
            assert_eq!(*expected, escalation.is_active(), "at {second} s of {samples:?}");
        }
    }

    #[test]
    fn a_listener_that_becomes_stalled_is_looked_at_for_five_seconds() {
        check(&[(0, &[], false), (1, &[80], true), (5, &[80], true), (6, &[80], false)]);
        check(&[(0, &[80], true), (1, &[], true), (5, &[], false)]);
    }

    #[test]
    fn a_minute_passes_from_one_look_to_the_next() {
        let first: (u64, &[u16], bool) = (0, &[80], true);
        // one that stays stalled is not looked at again
        check(&[first, (5, &[80], false), (60, &[80], false)]);
        // another one waits for its turn, and not if it recovers
        check(&[first, (5, &[80, 81], false), (59, &[80, 81], false), (60, &[80, 81], true)]);
        check(&[first, (5, &[81], false), (30, &[], false), (60, &[], false)]);
    }
}
