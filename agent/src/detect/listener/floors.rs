//! The lowest value of each span of time, so that what comes and goes does not show, and what only
//! comes does.

use crate::time::{Monotonic, Nanos};

/// The lowest value in each of the last `N` spans.
#[derive(Clone, Debug)]
pub(super) struct Floors<const N: usize> {
    /// When the span that runs ends.
    ends: Option<Monotonic>,
    lowest: u64,
    /// Of those that are over, the oldest first; the last `n` of them are there.
    done: [Floor; N],
    n: usize,
}

/// One span that is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Floor {
    /// The lowest value.
    pub(super) lowest: u64,
    /// What two counters were at its end.
    pub(super) counters: [u64; 2],
}

impl<const N: usize> Default for Floors<N> {
    fn default() -> Self {
        Self { ends: None, lowest: 0, done: [Floor::default(); N], n: 0 }
    }
}

impl<const N: usize> Floors<N> {
    /// Takes in one more value, and what two counters are. After a pause of a span or more everything
    /// begins anew.
    pub(super) fn see(&mut self, at: Monotonic, value: u64, counters: [u64; 2], span: Nanos) {
        let ends = match self.ends {
            Some(ends) if at < ends + span => ends,
            _ => return *self = Self { ends: Some(at + span), lowest: value, ..Self::default() },
        };
        self.lowest = self.lowest.min(value);
        if ends <= at {
            self.done.rotate_left(1);
            self.done[N - 1] = Floor { lowest: self.lowest, counters };
            self.n = (self.n + 1).min(N);
            (self.ends, self.lowest) = (Some(ends + span), value);
        }
    }

    /// The newest of them.
    pub(super) fn last(&self) -> Option<Floor> {
        (0 < self.n).then(|| self.done[N - 1])
    }

    /// All of them, the oldest first, once there are enough.
    pub(super) fn all(&self) -> Option<&[Floor; N]> {
        (self.n == N).then_some(&self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[(u64, u64)], expected: Option<[u64; 2]>) {
        let mut floors = Floors::<2>::default();
        for &(at, value) in values {
            floors.see(Monotonic(at), value, [0, 0], Nanos(10));
        }
        assert_eq!(expected, floors.all().map(|all| all.map(|it| it.lowest)), "{values:?}");
    }

    #[test]
    fn each_span_has_its_lowest_value() {
        check(&[], None);
        check(&[(100, 5), (105, 3), (110, 9)], None);
        check(&[(100, 5), (105, 3), (110, 9), (115, 9), (120, 7)], Some([3, 7]));
        check(&[(100, 5), (110, 9), (120, 7), (130, 8), (140, 8)], Some([7, 8]));
        // nobody knows what it was meanwhile
        check(&[(100, 5), (105, 3), (110, 9), (140, 9), (150, 7)], None);
    }
}
