//! Entries that come due at ticks: a hashed wheel, without a clock.
//!
//! Inserting costs a push, and a tick costs a walk over one slot of [`SLOTS`]. Nothing is taken out
//! before it is due: whoever inserts asks again then whether it still matters.

/// Ticks since some beginning.
pub(crate) type Tick = u64;

/// An entry that is due after more ticks than this is walked over once a turn.
const SLOTS: u64 = 128;

/// Entries in the order in which they come due.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    slots: Vec<Vec<(Tick, T)>>,
    at: Tick,
    len: usize,
}

impl<T> Wheel<T> {
    /// An empty one, at a tick.
    pub(crate) fn new(at: Tick) -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), at, len: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has `entry` come due at `due`; at the next tick, if that has passed.
    pub(crate) fn insert(&mut self, due: Tick, entry: T) {
        let due = due.max(self.at + 1);
        self.slots[slot(due)].push((due, entry));
        self.len += 1;
    }

    /// Goes on to tick `to`, and adds what came due to `out`, in any order.
    pub(crate) fn advance(&mut self, to: Tick, out: &mut Vec<T>) {
        let before = out.len();
        let turn = self.at.max(to.saturating_sub(SLOTS));
        for tick in turn + 1..=to {
            out.extend(self.slots[slot(tick)].extract_if(.., |(due, _)| *due <= to).map(|it| it.1));
        }
        self.at = self.at.max(to);
        self.len -= out.len() - before;
    }
}

fn slot(tick: Tick) -> usize {
    usize::try_from(tick % SLOTS).expect("below 128")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Tick),
        Advance(Tick),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..1_000_u64).prop_map(Step::Insert),
            2 => (0..5_u64).prop_map(Step::Advance),
            1 => (0..400_u64).prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn gives_what_a_sorted_list_gives(
            begin in 0..10_000_u64,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let (mut wheel, mut at) = (Wheel::new(begin), begin);
            let mut list: Vec<(Tick, usize)> = Vec::new();
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(after) => {
                        // some are in the past
                        let due = (at + after).saturating_sub(20);
                        wheel.insert(due, id);
                        list.push((due.max(at + 1), id));
                        list.sort_unstable();
                    }
                    Step::Advance(by) => {
                        at += by;
                        let mut got = Vec::new();
                        wheel.advance(at, &mut got);
                        got.sort_unstable();
                        let n = list.partition_point(|(due, _)| *due <= at);
                        let mut expected: Vec<_> = list.drain(..n).map(|(_, id)| id).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(got, expected);
                    }
                }
                prop_assert_eq!(wheel.is_empty(), list.is_empty());
            }
        }
    }

    #[test]
    fn going_back_gives_nothing() {
        let (mut wheel, mut out) = (Wheel::new(10), Vec::new());
        wheel.insert(11, 'a');
        wheel.advance(9, &mut out);
        assert!(out.is_empty());
        wheel.advance(11, &mut out);
        assert_eq!(out, ['a']);
    }
}
