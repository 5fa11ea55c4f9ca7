use proptest::prelude::*;

use super::*;
use crate::{limits::Bound, words::Words};

fn limits(soft: usize, hard: impl Into<Option<usize>>) -> Limits {
    Limits { hard: hard.into(), fd_reserve: Some(100), ..Limits::soft(soft) }
}

fn account() -> Account {
    Account { entries: Vec::new(), next: 0 }
}

/// Adds listeners, and shares out as is done after each change.
fn add(account: &mut Account, limits: Limits, nofile: usize) -> Result<u64, String> {
    let id = account.add(limits, nofile).map_err(|err| err.to_string())?;
    account.share_out(nofile);
    Ok(id)
}

fn in_force(account: &Account) -> Vec<(usize, usize, Bound)> {
    account
        .entries
        .iter()
        .map(|it| (it.bounds.soft(), it.bounds.hard(), it.bounds.bound()))
        .collect()
}

/// Has the listener `id` have `n` connections.
fn open(account: &mut Account, id: u64, n: usize) {
    let entry = account.entry(id);
    let gate = Arc::new(Gate::new(&entry.bounds, Words::own()));
    assert!((0..n).all(|_| gate.take_hard()), "{n} of {:?}", entry.bounds);
    entry.gate = Some(gate);
}

#[test]
fn two_listeners_may_not_have_more_than_there_is() {
    let mut account = account();
    add(&mut account, limits(500, 700), 1_024).expect("there is room");
    assert_eq!(
        add(&mut account, limits(500, 700), 1_024).expect_err("there is none"),
        "hard limit is 700, expected at most 224: RLIMIT_NOFILE is 1024, of which 100 are reserved \
         and 700 claimed by other listeners of this process; it would have to be 1500"
    );
    assert_eq!(account.entries.len(), 1, "it claims nothing");
    let two = Limits { fds_per_connection: 2, ..limits(100, 120) };
    assert_eq!(
        add(&mut account, two, 1_024).expect_err("there is none"),
        "hard limit is 120, expected at most 112: a connection takes 2 descriptors, RLIMIT_NOFILE \
         is 1024, of which 100 are reserved and 700 claimed by other listeners of this process; it \
         would have to be 1040"
    );
    add(&mut account, two, 1_040).expect("as was said");
    assert_eq!(account.others(None), 940);
}

#[test]
fn a_derived_limit_is_what_is_left() {
    let mut account = account();
    let first = add(&mut account, limits(500, 700), 1_024).expect("there is room");
    // 180 at least, 225 where there are as many, and 224 are left
    add(&mut account, limits(180, None), 1_024).expect("there is room");
    assert_eq!(in_force(&account), [(500, 700, Bound::Given), (180, 224, Bound::Descriptors)]);
    account.change(first, limits(500, 650), 1_024).expect("it is less");
    account.share_out(1_024);
    assert_eq!(in_force(&account), [(500, 650, Bound::Given), (180, 225, Bound::Soft)]);
}

#[test]
fn the_largest_reserve_holds_for_all() {
    let mut account = account();
    let much = Limits { fd_reserve: Some(400), ..limits(100, 200) };
    add(&mut account, much, 1_024).expect("there is room");
    let err = add(&mut account, limits(400, 500), 1_024).expect_err("there is none");
    assert!(err.contains("at most 424: RLIMIT_NOFILE is 1024, of which 400 are reserved"), "{err}");
}

#[test]
fn who_is_lowered_claims_what_is_open() {
    let mut account = account();
    let first = add(&mut account, limits(500, 700), 1_024).expect("there is room");
    open(&mut account, first, 600);
    account.change(first, limits(50, 100), 1_024).expect("it is less");
    account.share_out(1_024);
    assert_eq!(in_force(&account), [(50, 100, Bound::Given)]);
    assert!(add(&mut account, limits(500, 700), 1_024).is_err(), "600 are open");
    add(&mut account, limits(250, 324), 1_024).expect("as many are left");
    let gate = account.entry(first).gate.clone().expect("it is open");
    (0..500).for_each(|_| gate.give_back_hard());
    account.change(1, limits(500, 824), 1_024).expect("100 are open");
}

#[test]
fn who_is_closed_claims_what_is_open() {
    let mut account = account();
    let first = add(&mut account, limits(500, 700), 1_024).expect("there is room");
    open(&mut account, first, 10);
    account.entry(first).is_closed = true;
    account.share_out(1_024);
    assert_eq!(account.others(None), 10);
    assert!(add(&mut account, limits(500, 915), 1_024).is_err());
    add(&mut account, limits(500, 914), 1_024).expect("all but 10");
}

#[test]
fn a_lower_rlimit_is_shared_and_a_higher_one_restores() {
    let mut account = account();
    let first = add(&mut account, limits(500, 700), 2_000).expect("there is room");
    open(&mut account, first, 650);
    add(&mut account, limits(500, None), 2_000).expect("there is room");
    let full = [(500, 700, Bound::Given), (500, 625, Bound::Soft)];
    assert_eq!(in_force(&account), full);
    // 1,300 at least: a part is taken from the derived one alone
    account.share_out(1_410);
    assert_eq!(in_force(&account), [full[0], (500, 610, Bound::Descriptors)]);
    // half of the least
    account.share_out(750);
    let half = [(291, 350, Bound::Descriptors), (250, 300, Bound::Descriptors)];
    assert_eq!(in_force(&account), half);
    let gate = account.entry(first).gate.clone().expect("it is open");
    assert_eq!((gate.soft_limit(), gate.hard_limit(), gate.own_taken()), (291, 350, 650));
    assert!(gate.is_full(), "nobody was ended");
    // nothing is left, and who listens goes on
    account.share_out(64);
    let none = [(1, 2, Bound::Descriptors), (1, 2, Bound::Descriptors)];
    assert_eq!(in_force(&account), none);
    account.share_out(2_000);
    assert_eq!(in_force(&account), full);
    assert_eq!((gate.soft_limit(), gate.hard_limit()), (500, 700));
}

#[test]
fn a_limit_without_end_is_enough() {
    let mut account = account();
    for _ in 0..3 {
        add(&mut account, limits(1_000_000, None), usize::MAX).expect("there is room");
    }
    assert!(in_force(&account).iter().all(|it| it.1 == 1_250_000));
}

/// Of an account.
#[derive(Clone, Copy, Debug)]
enum Step {
    Add(Limits),
    Change(usize, Limits),
    /// As many connections come, or end.
    Come(usize, usize),
    End(usize, usize),
    Close(usize),
    Remove(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let limits = || {
        let hard = prop::option::of(0_usize..200);
        (1_usize..300, hard, 1_usize..3).prop_map(|(soft, above, fds)| Limits {
            hard: above.map(|above| soft + soft.div_ceil(5) + above),
            fd_reserve: Some(50),
            fds_per_connection: fds,
            soft,
        })
    };
    let step = prop_oneof![
        limits().prop_map(Step::Add),
        (0_usize..4, limits()).prop_map(|(at, limits)| Step::Change(at, limits)),
        (0_usize..4, 0_usize..400).prop_map(|(at, n)| Step::Come(at, n)),
        (0_usize..4, 0_usize..400).prop_map(|(at, n)| Step::End(at, n)),
        (0_usize..4).prop_map(Step::Close),
        (0_usize..4).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 1..40)
}

const NOFILE: usize = 1_050;

/// Takes one step; what cannot be is refused.
fn take(account: &mut Account, step: Step) {
    match step {
        Step::Add(limits) => {
            if let Ok(id) = account.add(limits, NOFILE) {
                open(account, id, 0);
            }
        }
        Step::Change(n, limits) => {
            if let Some(entry) = account.entries.get(n) {
                let (id, fds_per_connection) = (entry.id, entry.asked.fds);
                drop(account.change(id, Limits { fds_per_connection, ..limits }, NOFILE));
            }
        }
        Step::Come(n, more) => {
            if let Some(entry) = account.entries.get(n).filter(|entry| !entry.is_closed) {
                let gate = entry.gate.as_ref().expect("it is open");
                (0..more).take_while(|_| gate.take_hard()).for_each(drop);
            }
        }
        Step::End(n, less) => {
            if let Some(gate) = account.entries.get(n).and_then(|entry| entry.gate.as_ref()) {
                (0..less.min(gate.own_taken())).for_each(|_| gate.give_back_hard());
            }
        }
        Step::Close(n) => {
            if let Some(entry) = account.entries.get_mut(n) {
                entry.is_closed = true;
            }
        }
        Step::Remove(n) if n < account.entries.len() => drop(account.entries.remove(n)),
        Step::Remove(_) => {}
    }
    account.share_out(NOFILE);
}

proptest! {
    /// While RLIMIT_NOFILE stays, whatever comes and goes.
    #[test]
    fn listeners_never_claim_more_than_there_is(steps in steps()) {
        let mut account = account();
        for step in steps {
            take(&mut account, step);
            let may_open = account.entries.iter().map(|entry| {
                let gate = entry.gate.as_ref().expect("it is open");
                let most = if entry.is_closed { 0 } else { gate.hard_limit() };
                most.max(gate.own_taken()) * entry.asked.fds
            });
            prop_assert!(may_open.sum::<usize>() <= NOFILE - 50, "{step:?}: {account:?}");
            for entry in account.entries.iter().filter(|entry| !entry.is_closed) {
                let bounds = entry.bounds;
                prop_assert_eq!(bounds.soft(), entry.limits.soft);
                prop_assert!((entry.asked.least..=entry.asked.full).contains(&bounds.hard()));
            }
        }
    }

    /// However low it gets.
    #[test]
    fn a_lower_rlimit_is_never_exceeded(
        softs in prop::collection::vec(1_usize..300, 1..5),
        nofile in 60_usize..3_000,
    ) {
        let mut account = account();
        for soft in &softs {
            account.add(limits(*soft, None), usize::MAX).expect("there is room");
        }
        account.share_out(nofile);
        let in_force = in_force(&account);
        // each has 2, if they are there or not
        let sum: usize = in_force.iter().map(|(_, hard, _)| hard).filter(|&&it| 2 < it).sum();
        prop_assert!(sum <= nofile.saturating_sub(100), "{in_force:?}");
        for (soft, hard, _) in in_force {
            prop_assert!(soft + soft.div_ceil(5) <= hard, "{soft} {hard}");
        }
    }
}

#[test]
fn listeners_to_be_have_no_more_than_there_is_together() {
    let limits = |soft, hard| Limits { hard, ..Limits::soft(soft) };
    let check = |all: &[Limits], expected: Result<Vec<(usize, usize)>, (usize, &str)>| {
        let got = Bounds::together(all, 1_024)
            .map(|all| all.iter().map(|it| (it.soft(), it.hard())).collect())
            .map_err(|(place, err)| (place, err.to_string()));
        assert_eq!(got, expected.map_err(|(place, err)| (place, err.to_owned())));
    };
    check(&[], Ok(vec![]));
    check(&[limits(100, None), limits(200, Some(300))], Ok(vec![(100, 125), (200, 300)]));
    check(
        &[limits(500, Some(700)), limits(500, Some(700))],
        Err((
            1,
            "hard limit is 700, expected at most 196: RLIMIT_NOFILE is 1024, of which 128 are \
             reserved and 700 claimed by other listeners of this process; it would have to be 1599",
        )),
    );
}
