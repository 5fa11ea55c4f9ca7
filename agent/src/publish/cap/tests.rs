use proptest::prelude::*;

use super::*;

const GONE: Class = Class::Gone;
const QUIET: Class = Class::Quiet;
const SERVING: Class = Class::Serving;
const TROUBLE: Class = Class::Trouble;

fn second(n: u64) -> Monotonic {
    Monotonic(n * 1_000_000_000)
}

fn numbers(n: u64) -> Counts {
    let histogram = {
        let mut buckets = *Histogram::default().buckets();
        buckets[7] = n;
        Arc::new(Histogram::new(buckets, Nanos(2 * n)))
    };
    Counts { numbers: BTreeMap::from([("n", n)]), histograms: BTreeMap::from([("h", histogram)]) }
}

/// The one number, which the histogram has, too.
#[track_caller]
fn number(counts: &Counts) -> u64 {
    let n = counts.numbers.get("n").copied().unwrap_or(0);
    let histogram = counts.histograms.get("h");
    let both = histogram.map_or((0, Nanos(0)), |it| (it.count(), it.sum()));
    assert_eq!(both, (n, Nanos(2 * n)));
    n
}

/// Classes of members `a`, `b`, … at one second, and who is named then.
#[track_caller]
fn check(limit: usize, looks: &[(u64, &[Class], &str)]) {
    let mut cap = Cap::new(limit);
    for &(at, classes, expected) in looks {
        let rank = |&class: &Class| Rank { class, traffic: 0.0 };
        let members: Vec<_> = ('a'..).zip(classes.iter().map(rank)).collect();
        let shown = cap.next(second(at), &members, |_| Counts::default());
        let named = members.iter().zip(&shown).filter(|(_, shown)| **shown != Shown::Folded);
        let named: String = named.map(|((key, _), _)| *key).collect();
        assert_eq!(named, expected, "at {at} s of {looks:?}");
    }
}

#[test]
fn names_go_by_trouble_and_stay_where_they_are() {
    check(2, &[(0, &[QUIET, SERVING, TROUBLE], "bc"), (1, &[QUIET, QUIET, QUIET], "bc")]);
    check(2, &[(0, &[QUIET, QUIET], "ab"), (1, &[QUIET, QUIET, SERVING], "ab")]);
    check(0, &[(0, &[TROUBLE], "")]);
}

#[test]
fn trouble_takes_a_name_at_the_next_scrape_and_keeps_it_for_a_minute() {
    check(
        1,
        &[
            (0, &[QUIET, QUIET], "a"),
            (1, &[QUIET, TROUBLE], "a"),
            (2, &[QUIET, QUIET], "b"),
            (3, &[SERVING, QUIET], "b"),
            (61, &[SERVING, QUIET], "b"),
            (62, &[SERVING, QUIET], "a"),
        ],
    );
}

#[test]
fn what_is_gone_gives_its_name_at_once() {
    let looks: [(u64, &[Class], &str); 3] =
        [(0, &[SERVING, QUIET], "a"), (1, &[GONE, QUIET], "a"), (2, &[GONE, QUIET], "b")];
    check(1, &looks);
}

#[test]
fn among_equals_the_busiest_and_then_the_first_is_named() {
    let rank = |traffic| Rank { class: SERVING, traffic };
    let members = [(1, rank(1.0)), (2, rank(9.0)), (3, rank(1.0))];
    let shown = Cap::new(2).next(second(0), &members, |_| Counts::default());
    assert_eq!(shown, [Shown::Named, Shown::Named, Shown::Folded]);
}

#[test]
fn a_member_that_has_a_name_again_goes_on_where_it_stopped() {
    let mut cap = Cap::new(1);
    let mut look = |at, a: (Class, u64), b: (Class, u64)| {
        let rank = |class| Rank { class, traffic: 0.0 };
        let members = [('a', rank(a.0)), ('b', rank(b.0))];
        let shown = cap.next(second(at), &members, |index| numbers([a.1, b.1][index]));
        (shown, cap.other().map_or(0, number))
    };
    let (named, folded) = (Shown::Named, Shown::Folded);
    let own = |n| Shown::Partly(numbers(n));
    assert_eq!(look(0, (QUIET, 100), (QUIET, 7)), (vec![named.clone(), folded.clone()], 7));
    assert_eq!(look(1, (QUIET, 110), (TROUBLE, 10)), (vec![named, folded.clone()], 10));
    // 3 since then, by its name; the 5 of the other are with the folded ones
    assert_eq!(look(2, (QUIET, 115), (TROUBLE, 13)), (vec![folded.clone(), own(3)], 15));
    assert_eq!(look(90, (TROUBLE, 120), (QUIET, 13)), (vec![folded.clone(), own(3)], 20));
    assert_eq!(look(91, (TROUBLE, 121), (QUIET, 14)), (vec![own(111), folded], 21));
}

#[test]
fn what_is_unknown_when_a_name_is_lost_is_not_counted_again() {
    let mut cap = Cap::new(1);
    let mut look = |at, a: (Class, Option<u64>), b: Class| {
        let rank = |class| Rank { class, traffic: 0.0 };
        let members = [('a', rank(a.0)), ('b', rank(b))];
        let counts = |index| match (index, a.1) {
            (0, Some(n)) => numbers(n),
            _ => Counts::default(),
        };
        let shown = cap.next(second(at), &members, counts);
        (shown[0].clone(), cap.other().map_or(0, number))
    };
    assert_eq!(look(0, (QUIET, Some(100)), QUIET), (Shown::Named, 0));
    assert_eq!(look(1, (QUIET, None), TROUBLE), (Shown::Named, 0));
    assert_eq!(look(2, (QUIET, None), TROUBLE), (Shown::Folded, 0));
    assert_eq!(look(3, (QUIET, Some(105)), TROUBLE), (Shown::Folded, 0));
    assert_eq!(look(4, (QUIET, Some(107)), TROUBLE), (Shown::Folded, 2));
    assert_eq!(look(90, (TROUBLE, Some(107)), QUIET), (Shown::Folded, 2));
    assert_eq!(look(91, (TROUBLE, Some(108)), QUIET), (Shown::Partly(numbers(106)), 2));
}

/// One member at one scrape: whether it is there, its class, and what it counted since the last.
type Step = (bool, usize, u64);

/// Takes the members through `looks`, 10 s apart, and checks what every look must give.
fn follow(limit: usize, looks: &[Vec<Step>]) -> Result<(), TestCaseError> {
    const CLASSES: [Class; 4] = [GONE, QUIET, SERVING, TROUBLE];
    let mut cap = Cap::new(limit);
    let mut value: BTreeMap<usize, u64> = BTreeMap::new();
    // what each had counted when it was last there, and in which look; what each series last showed
    let mut seen: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    let (mut series, mut other) = (BTreeMap::new(), 0);
    // of what was counted between two looks, what was there in both, and in any; over all looks
    let (mut grown, mut certain, mut possible) = (0, 0, 0);
    for (steps, turn) in looks.iter().zip(1..) {
        let mut members = Vec::new();
        for (key, &(is_there, class, grown)) in steps.iter().enumerate() {
            *value.entry(key).or_insert(0) += grown;
            let rank = Rank { class: CLASSES[class], traffic: grown as f64 };
            members.extend(is_there.then_some((key, rank)));
        }
        let shown =
            cap.next(second(10 * turn), &members, |index| numbers(value[&members[index].0]));

        let mut n_named = 0;
        for ((key, _), shown) in members.iter().zip(&shown) {
            let (before, last) = seen.insert(*key, (value[key], turn)).unwrap_or((0, turn - 1));
            possible += value[key] - before;
            certain += if last == turn - 1 { value[key] - before } else { 0 };
            let now = match shown {
                Shown::Folded => continue,
                Shown::Named => value[key],
                Shown::Partly(counts) => number(counts),
            };
            n_named += 1;
            let before = series.insert(*key, now).unwrap_or(0);
            prop_assert!(before <= now, "{} goes back from {} to {}", key, before, now);
            grown += now - before;
        }
        let others = cap.other().map_or(0, number);
        prop_assert!(other <= others, "other goes back from {} to {}", other, others);
        grown += others - other;
        other = others;
        prop_assert!(n_named <= limit, "{} names", n_named);
        prop_assert!(
            certain <= grown && grown <= possible,
            "look {}: {} is not between {} and {}",
            turn,
            grown,
            certain,
            possible
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_series_goes_back_and_together_they_grow_by_what_was_counted(
        limit in 0..5_usize,
        looks in prop::collection::vec(prop::collection::vec((Just(true), 0..4_usize, 0..50_u64), 7), 1..25),
    ) {
        follow(limit, &looks)?;
    }

    /// Those that come back had been counted, and what they count meanwhile may be lost, never more.
    #[test]
    fn members_that_go_and_come_back_are_not_counted_twice(
        limit in 0..5_usize,
        looks in prop::collection::vec(prop::collection::vec((any::<bool>(), 0..4_usize, 0..50_u64), 7), 1..25),
    ) {
        follow(limit, &looks)?;
    }

    #[test]
    fn while_nobody_loses_a_name_all_series_together_are_all_that_was_counted(
        limit in 0..5_usize,
        looks in prop::collection::vec(prop::collection::vec(0..50_u64, 7), 1..12),
    ) {
        let mut cap = Cap::new(limit);
        let mut values = [0; 7];
        for (grown, at) in looks.iter().zip(1..) {
            values.iter_mut().zip(grown).for_each(|(value, grown)| *value += grown);
            let members: Vec<_> = (0..7).map(|key| (key, Rank { class: QUIET, traffic: 0.0 })).collect();
            let shown = cap.next(second(at), &members, |index| numbers(values[index]));
            let own = shown.iter().zip(values).map(|(shown, value)| match shown {
                Shown::Named => value,
                Shown::Partly(counts) => number(counts),
                Shown::Folded => 0,
            });
            let sum = own.sum::<u64>() + cap.other().map_or(0, number);
            prop_assert_eq!(sum, values.iter().sum::<u64>());
        }
    }
}
