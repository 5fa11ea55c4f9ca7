//! Counters that never go back: the only place where one counter is subtracted from another.

use crate::input::{Absent, Known};

/// How far a counter of the kernel moved since it was last looked at.
///
/// `wrapped` counters are 32 bits wide in the kernel (`sk_drops`); a step back is then a step over
/// 2^32, since no counter moves that far between two samples.
#[must_use]
pub(super) fn moved_u32(before: u32, now: u32) -> u64 {
    u64::from(now.wrapping_sub(before))
}

/// How far a counter moved. One that stands lower than before has begun anew (its owner was
/// replaced): then it moved by what it shows.
#[must_use]
pub(super) fn moved(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// A counter that is published: it only grows, and may be unknown for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Total {
    value: u64,
    absent: Option<Absent>,
}

impl Total {
    /// Zero.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self { value: 0, absent: None }
    }

    /// Adds.
    pub(super) fn add(&mut self, n: u64) {
        self.value = self.value.saturating_add(n);
    }

    /// Whether the value can be had, from here on. What was counted stays.
    pub(super) fn set_absent(&mut self, absent: Option<Absent>) {
        self.absent = absent;
    }

    /// The value, or why there is none.
    pub(super) fn known(&self) -> Known<u64> {
        self.absent.map_or(Ok(self.value), Err)
    }
}

impl Default for Total {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_step_back_is_a_wrap_or_a_restart_and_never_negative() {
        assert_eq!(3, moved_u32(u32::MAX - 1, 1));
        assert_eq!(5, moved(10, 15));
        assert_eq!(7, moved(10, 7));
    }

    #[test]
    fn a_total_that_was_unknown_goes_on_where_it_was() {
        let mut total = Total::new();
        total.add(5);
        total.set_absent(Some(Absent::NoSlot));
        assert_eq!(Err(Absent::NoSlot), total.known());
        total.set_absent(None);
        total.add(2);
        assert_eq!(Ok(7), total.known());
    }

    proptest! {
        #[test]
        fn a_total_never_goes_back(steps in prop::collection::vec(any::<u64>(), 0..50)) {
            let mut total = Total::new();
            let mut before = 0;
            for step in steps {
                total.add(step);
                let now = total.known().expect("never absent here");
                prop_assert!(before <= now);
                before = now;
            }
        }
    }
}
