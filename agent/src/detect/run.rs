//! A count that goes on growing, told from one that grew once.

use crate::time::{Monotonic, Nanos};

/// How far a count has grown since it last stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// When it was looked at last, and what it was.
    last: Option<(Monotonic, u64)>,
    growing: Option<Growing>,
}

/// A count that has grown more than once without a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Growing {
    /// The look before it began to grow, and what it was.
    before: (Monotonic, u64),
    /// The first look at which it had grown.
    first: Monotonic,
    /// The last one.
    moved: Monotonic,
}

/// What a [`Run`] shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grown {
    /// By how much.
    pub(super) by: u64,
    /// In which time, at most.
    pub(super) over: Nanos,
    /// From the first to the last look at which it had grown: 0 after a single step.
    pub(super) lasting: Nanos,
}

impl Run {
    /// Takes in the count at `at`. What stands still for longer than `pause` begins anew.
    pub(super) fn next(&mut self, at: Monotonic, count: u64, pause: Nanos) {
        let Some(before) = self.last.replace((at, count)) else { return };
        if before.1 < count {
            let growing = self.growing.get_or_insert(Growing { before, first: at, moved: at });
            growing.moved = at;
        } else if self.growing.is_some_and(|it| pause < at - it.moved) {
            self.growing = None;
        }
    }

    /// How far it has grown; `None` while it stands still.
    pub(super) fn grown(&self) -> Option<Grown> {
        let (Growing { before, first, moved }, (_, count)) = self.growing.zip(self.last)?;
        Some(Grown {
            by: count.saturating_sub(before.1),
            over: moved - before.0,
            lasting: moved - first,
        })
    }
}

impl Grown {
    /// Each second.
    pub(super) fn per_second(self) -> f64 {
        self.by as f64 / self.over.as_seconds().max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Counts at one look after the other, a second apart.
    #[track_caller]
    fn check(counts: &[u64], expected: Option<(u64, u64, u64)>) {
        let mut run = Run::default();
        for (at, &count) in (1..).zip(counts) {
            run.next(Monotonic(at * SECOND), count, Nanos(2 * SECOND));
        }
        let grown = run.grown();
        let seconds = |nanos: Nanos| nanos.0 / SECOND;
        let got = grown.map(|it| (it.by, seconds(it.over), seconds(it.lasting)));
        assert_eq!(expected, got, "{counts:?}");
    }

    #[test]
    fn what_grew_once_does_not_last() {
        check(&[], None);
        check(&[7], None);
        check(&[7, 7], None);
        check(&[7, 9], Some((2, 1, 0)));
        check(&[7, 9, 9, 9], Some((2, 1, 0)));
        check(&[7, 9, 9, 9, 9], None);
        check(&[7, 9, 10, 10, 12], Some((5, 4, 3)));
        check(&[7, 9, 9, 9, 9, 10], Some((1, 1, 0)));
        check(&[7, 3, 2, 4], Some((2, 1, 0)));
    }
}
