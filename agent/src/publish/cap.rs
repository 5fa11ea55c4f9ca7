//! Which of many have series of their own, and what the others counted together. Pure.
//!
//! In: the members of a group (listeners, namespaces, …) at one scrape, how much each deserves to be
//! seen, and what it counted. Out: who is named and who is folded; what a named one counted by its
//! own name, and what the folded ones counted together.
//!
//! Who is named: a member that has a name keeps it while it is there. Free names go to those that
//! deserve most, by [`Rank`]. Where none is free, one of a higher class takes the name of one that has
//! not been of that class for [`HOLD`], from the next scrape on. So nobody's series come and go.
//!
//! What is counted: the growth of a counter between two scrapes belongs to one series alone, that of
//! the member if it is named, else the one of all that are folded. So the growth of all series together
//! is the growth of all members, and no series goes back: a member that loses its name leaves its past
//! behind, as a series that ends does, and one that gets it leaves its past with the folded ones, and
//! begins at what its name showed before.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    histogram::Histogram,
    time::{Monotonic, Nanos},
};

/// How long a named member counts as of the class that it was.
const HOLD: Nanos = Nanos(60_000_000_000);

/// How long a member that is not there is remembered: one whose namespace cannot be read comes back.
const REMEMBERED: Nanos = Nanos(300_000_000_000);

/// How many such are remembered.
const MAX_REMEMBERED: usize = 16_384;

/// How much a member deserves series of its own, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// It only has a past.
    Gone,
    /// Nothing happens.
    Quiet,
    /// It has traffic.
    Serving,
    /// People will look for it.
    Trouble,
}

/// The order in which free names are given, highest first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rank {
    /// First by this.
    pub(super) class: Class,
    /// Then by how much it does.
    pub(super) traffic: f64,
}

/// What a member counted, by the counter's name. Unknown counters are missing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Plain counters.
    pub(super) numbers: BTreeMap<&'static str, u64>,
    /// Histograms.
    pub(super) histograms: BTreeMap<&'static str, Arc<Histogram>>,
}

/// How a member is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shown {
    /// By its name, with all that it counted.
    Named,
    /// By its name, with this part of what it counted.
    Partly(Counts),
    /// With the others.
    Folded,
}

/// One group from scrape to scrape.
#[derive(Debug)]
pub(super) struct Cap<K> {
    limit: usize,
    named: BTreeMap<K, Held>,
    /// Of members that are folded, or were.
    accounts: BTreeMap<K, Account>,
    /// Those that are not there, and since when.
    missing: BTreeMap<K, Monotonic>,
    other: Counts,
    n_folded: u64,
}

/// The highest class of the last [`HOLD`].
#[derive(Clone, Copy, Debug)]
struct Held {
    class: Class,
    until: Monotonic,
}

/// Whose the counts of one member are.
#[derive(Clone, Debug)]
enum Account {
    /// All of them its own, but these.
    Named { folded: Counts },
    /// As it stood at the last scrape; `own` of it is its own. Of one that had a name, what is not
    /// known has been shown by that name, as far as it went.
    Folded { own: Counts, last: Counts, had_name: bool },
}

impl<K: Copy + Ord> Cap<K> {
    /// With at most `limit` names.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            named: BTreeMap::new(),
            accounts: BTreeMap::new(),
            missing: BTreeMap::new(),
            other: Counts::default(),
            n_folded: 0,
        }
    }

    /// How each of `members` is shown; they are in the order of their keys. `counts` tells what the
    /// one with this index counted.
    pub(super) fn next(
        &mut self,
        at: Monotonic,
        members: &[(K, Rank)],
        counts: impl Fn(usize) -> Counts,
    ) -> Vec<Shown> {
        debug_assert!(members.is_sorted_by_key(|(key, _)| *key), "members come in order");
        self.note_missing(at, members);
        let mut waiting = Vec::new();
        for (index, (key, rank)) in members.iter().enumerate() {
            match self.named.get_mut(key) {
                Some(held) => held.see(rank.class, at),
                None => waiting.push(index),
            }
        }
        waiting.sort_by(|&a, &b| compare(&members[b], &members[a]));
        let n_free = self.limit.saturating_sub(self.named.len()).min(waiting.len());
        for index in waiting.drain(..n_free) {
            let (key, rank) = members[index];
            self.named.insert(key, Held::new(rank.class, at));
        }
        let keys = members.iter().map(|(key, _)| *key).enumerate();
        let shown = keys.map(|(index, key)| self.show(key, || counts(index))).collect();
        self.displace(at, members, &waiting, counts);
        for (key, _) in members {
            self.missing.remove(key);
        }
        shown
    }

    /// What all that were folded counted then; `None`: nobody ever was.
    pub(super) fn other(&self) -> Option<&Counts> {
        (0 < self.n_folded).then_some(&self.other)
    }

    /// How often a member was folded.
    pub(super) fn n_folded(&self) -> u64 {
        self.n_folded
    }

    /// Those that are not there any more have no name, but an account, for a while.
    fn note_missing(&mut self, at: Monotonic, members: &[(K, Rank)]) {
        let is_there = |key: &K| members.binary_search_by_key(key, |(key, _)| *key).is_ok();
        let (named, accounts) = (self.named.keys(), self.accounts.keys());
        let gone: Vec<K> = named.chain(accounts).copied().filter(|key| !is_there(key)).collect();
        for key in gone {
            self.named.remove(&key);
            if self.missing.len() < MAX_REMEMBERED {
                self.missing.entry(key).or_insert(at);
            }
        }
        self.missing.retain(|_, since| at - *since <= REMEMBERED);
        let missing = &self.missing;
        self.accounts.retain(|key, _| is_there(key) || missing.contains_key(key));
    }

    fn show(&mut self, key: K, counts: impl FnOnce() -> Counts) -> Shown {
        let account = self.accounts.remove(&key);
        if self.named.contains_key(&key) {
            let folded = match account {
                None => return Shown::Named,
                Some(Account::Named { folded }) => folded,
                Some(Account::Folded { own, last, .. }) => last.less(&own),
            };
            let now = counts();
            if now.is_behind(&folded) {
                // its counters began anew
                return Shown::Named;
            }
            let own = now.less(&folded);
            self.accounts.insert(key, Account::Named { folded });
            return Shown::Partly(own);
        }
        let now = counts();
        let (mut own, mut last, had_name) = match account {
            Some(Account::Folded { own, last, had_name }) if !now.is_behind(&last) => {
                (own, last, had_name)
            }
            Some(Account::Folded { .. }) => Default::default(),
            Some(Account::Named { folded }) => {
                self.n_folded += 1;
                (now.less(&folded), now.clone(), true)
            }
            // it had a name when it was last there, and what it counted has been shown
            None if self.missing.contains_key(&key) => {
                self.n_folded += 1;
                (now.clone(), now.clone(), true)
            }
            None => {
                self.n_folded += 1;
                Default::default()
            }
        };
        if had_name {
            own.learn(&now, &last);
            last.learn(&now, &last.clone());
        }
        self.other.add_growth(&now, &last);
        let last = last.renewed(now);
        self.accounts.insert(key, Account::Folded { own, last, had_name });
        Shown::Folded
    }

    /// Gives names away, from the next scrape on: what this one shows is then all that the old holder
    /// counted by its name.
    fn displace(
        &mut self,
        at: Monotonic,
        members: &[(K, Rank)],
        waiting: &[usize],
        counts: impl Fn(usize) -> Counts,
    ) {
        let best = waiting.iter().map(|&index| members[index].1.class).max();
        if self.named.values().all(|held| best <= Some(held.class)) {
            return;
        }
        let mut holders: Vec<(usize, Class)> = Vec::with_capacity(self.named.len());
        for (index, (key, _)) in members.iter().enumerate() {
            holders.extend(self.named.get(key).map(|held| (index, held.class)));
        }
        holders.sort_by(|&(a, class), &(b, other)| {
            class.cmp(&other).then_with(|| compare(&members[a], &members[b]))
        });
        for (&taker, (holder, held)) in waiting.iter().zip(holders) {
            let (key, rank) = members[taker];
            if rank.class <= held {
                break;
            }
            self.named.insert(key, Held::new(rank.class, at));
            let (key, now) = (members[holder].0, counts(holder));
            self.named.remove(&key);
            let own = match self.accounts.remove(&key) {
                Some(Account::Named { folded }) => now.less(&folded),
                Some(Account::Folded { .. }) | None => now.clone(),
            };
            self.accounts.insert(key, Account::Folded { own, last: now, had_name: true });
            self.n_folded += 1;
        }
    }
}

impl Held {
    fn new(class: Class, at: Monotonic) -> Self {
        Self { class, until: at + HOLD }
    }

    /// What is gone does not come back by itself, so that its name is free at once.
    fn see(&mut self, class: Class, at: Monotonic) {
        if self.class <= class || self.until <= at || class == Class::Gone {
            *self = Self::new(class, at);
        }
    }
}

/// By rank, then the lower key is the higher.
fn compare<K: Ord>((a, of_a): &(K, Rank), (b, of_b): &(K, Rank)) -> std::cmp::Ordering {
    let by_class = of_a.class.cmp(&of_b.class);
    by_class.then_with(|| of_a.traffic.total_cmp(&of_b.traffic)).then_with(|| b.cmp(a))
}

impl Counts {
    /// Adds what `now` is ahead of `before`.
    fn add_growth(&mut self, now: &Self, before: &Self) {
        for (name, n) in &now.numbers {
            let sum = self.numbers.entry(name).or_default();
            let grown = n.saturating_sub(before.numbers.get(name).copied().unwrap_or(0));
            *sum = sum.saturating_add(grown);
        }
        for (name, now) in &now.histograms {
            let sum = Arc::make_mut(self.histograms.entry(name).or_default());
            match before.histograms.get(name) {
                // most that are folded are idle: the model has not touched it
                Some(before) if Arc::ptr_eq(now, before) => {}
                Some(before) => sum.add(&now.less(before)),
                None => sum.add(now),
            }
        }
    }

    /// What these are ahead of `part`.
    fn less(&self, part: &Self) -> Self {
        let left = |(name, n): (&&'static str, &u64)| {
            (*name, n.saturating_sub(part.numbers.get(name).copied().unwrap_or(0)))
        };
        let left_of = |(name, all): (&&'static str, &Arc<Histogram>)| {
            let rest = part.histograms.get(name).map(|part| Arc::new(all.less(part)));
            (*name, rest.unwrap_or_else(|| all.clone()))
        };
        Self {
            numbers: self.numbers.iter().map(left).collect(),
            histograms: self.histograms.iter().map(left_of).collect(),
        }
    }

    /// Takes in what of `now` was not known so far, neither here nor `before`.
    fn learn(&mut self, now: &Self, before: &Self) {
        for (name, n) in &now.numbers {
            if !before.numbers.contains_key(name) {
                self.numbers.entry(name).or_insert(*n);
            }
        }
        for (name, histogram) in &now.histograms {
            if !before.histograms.contains_key(name) {
                self.histograms.entry(name).or_insert_with(|| histogram.clone());
            }
        }
    }

    /// Whether a number is lower than it was.
    fn is_behind(&self, before: &Self) -> bool {
        self.numbers.iter().any(|(name, n)| before.numbers.get(name).is_some_and(|it| n < it))
    }

    /// As `now`; what is unknown now stays as it was.
    fn renewed(mut self, now: Self) -> Self {
        self.numbers.extend(now.numbers);
        self.histograms.extend(now.histograms);
        self
    }
}

#[cfg(test)]
mod tests;
