//! What a scrape shows of each group: the members that are named, and one that stands for the rest.
//!
//! In: a [`Snapshot`] and what [`Caps`] keep from scrape to scrape. Out: rows, from which every
//! family of a group gives its series, so that the cap is applied in this one place. How the rest is
//! folded is a property of the family ([`crate::metric::Fold`]), and done here member by member: the rest is a
//! listener, a namespace, … like the others. Who is named: `publish/cap.rs`.

mod listener;
mod namespace;
mod port;
mod udp;

pub(super) use self::{
    namespace::{Read, Space},
    port::{TimeWait, Worst},
};
use super::cap::{Cap, Class, Counts, Rank, Shown};
use crate::{
    id::{ListenerKey, NetnsId},
    input::{Known, Workload},
    metric::Group,
    model::snapshot::{Listener, Snapshot, UdpListener},
    time::Monotonic,
};

/// The value of a label that stands for the rest.
const OTHER: &str = "other";

/// A queue that is so full, or ports that are so scarce, are trouble.
const NEARLY_FULL: f64 = 0.8;

/// What is kept from scrape to scrape: who has series of its own, and what the others counted. One
/// for each reader whose scrapes must not contradict each other.
#[derive(Debug)]
pub struct Caps {
    limit: usize,
    listeners: Cap<ListenerKey>,
    udp: Cap<ListenerKey>,
    namespaces: Cap<NetnsId>,
    time_wait: Cap<port::Key>,
    destinations: Cap<port::Towards>,
}

/// What a scrape shows of each group.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) listeners: Vec<Row<Listener>>,
    pub(super) udp: Vec<Row<UdpListener>>,
    pub(super) namespaces: Vec<Row<Space>>,
    pub(super) time_wait: Vec<Row<TimeWait>>,
    pub(super) destinations: Vec<Row<Worst>>,
    folded: [u64; 5],
}

/// A member of a group, or what stands for several, and the labels that name it.
#[derive(Clone, Debug)]
pub(super) struct Row<T> {
    pub(super) labels: Vec<(&'static str, String)>,
    of: Of<T>,
}

#[derive(Clone, Debug)]
enum Of<T> {
    /// A member as it is, by its index.
    Member(usize),
    /// What is nowhere else.
    Own(Box<T>),
}

impl<T> Row<T> {
    fn own(labels: Vec<(&'static str, String)>, of: T) -> Self {
        Self { labels, of: Of::Own(Box::new(of)) }
    }

    fn member(labels: Vec<(&'static str, String)>, index: usize) -> Self {
        Self { labels, of: Of::Member(index) }
    }

    /// What it shows; `members` are those that it was made from.
    pub(super) fn of<'r>(&'r self, members: &'r [T]) -> Option<&'r T> {
        match &self.of {
            Of::Member(index) => members.get(*index),
            Of::Own(of) => Some(of),
        }
    }
}

impl Caps {
    /// With series of their own for so many members of each group.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            limit,
            listeners: Cap::new(limit),
            udp: Cap::new(limit),
            namespaces: Cap::new(limit),
            time_wait: Cap::new(limit),
            destinations: Cap::new(limit),
        }
    }

    /// How many members of each group are named.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The rows of a scrape. Snapshots come in the order in which they were taken.
    pub(super) fn rows(&mut self, snapshot: &Snapshot) -> Rows {
        let at = snapshot.at;
        Rows {
            listeners: listener::rows(&mut self.listeners, at, &snapshot.listeners),
            udp: udp::rows(&mut self.udp, at, &snapshot.udp),
            namespaces: namespace::rows(&mut self.namespaces, snapshot),
            time_wait: port::time_wait(&mut self.time_wait, snapshot),
            destinations: port::destinations(&mut self.destinations, snapshot),
            folded: Group::ALL.map(|group| match group {
                Group::Listener => self.listeners.n_folded(),
                Group::Udp => self.udp.n_folded(),
                Group::Namespace => self.namespaces.n_folded(),
                Group::TimeWait => self.time_wait.n_folded(),
                Group::Destination => self.destinations.n_folded(),
            }),
        }
    }
}

impl Rows {
    /// How often a member of this group was folded.
    pub(super) fn n_folded(&self, group: Group) -> u64 {
        let folded = Group::ALL.iter().zip(self.folded).find(|(it, _)| **it == group);
        folded.map_or(0, |(_, n)| n)
    }
}

/// The labels of a listener or of a UDP socket.
fn labels(key: ListenerKey, comm: Option<&str>, of: &Workload) -> Vec<(&'static str, String)> {
    let mut labels = Vec::with_capacity(7);
    labels.extend([
        ("netns", key.netns.0.to_string()),
        ("addr", key.addr.to_string()),
        ("port", key.port.to_string()),
    ]);
    let known = [
        ("comm", comm),
        ("namespace", of.namespace.as_deref()),
        ("pod", of.pod.as_deref()),
        ("container", of.container.as_deref()),
    ];
    labels.extend(known.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned()))));
    labels
}

/// One row for each member that is named, and one for the rest, if there ever was one.
fn rows<K: Copy + Ord, T: Clone>(
    cap: &mut Cap<K>,
    at: Monotonic,
    members: &[T],
    group: &OfGroup<K, T>,
) -> Vec<Row<T>> {
    let ranked: Vec<_> = members.iter().map(|it| ((group.key)(it), (group.rank)(it))).collect();
    let shown = cap.next(at, &ranked, |index| (group.counts)(&members[index]));
    let mut rows = Vec::with_capacity(members.len());
    let mut rest = (group.none)();
    for ((index, member), shown) in members.iter().enumerate().zip(shown) {
        match shown {
            Shown::Named => rows.push(Row::member((group.labels)(member), index)),
            Shown::Partly(counts) => {
                let mut part = member.clone();
                (group.set)(&mut part, &counts);
                rows.push(Row::own((group.labels)(member), part));
            }
            Shown::Folded => (group.fold)(&mut rest, member),
        }
    }
    if let Some(counts) = cap.other() {
        (group.set)(&mut rest, counts);
        rows.push(Row::own(vec![(group.other, OTHER.to_owned())], rest));
    }
    rows
}

/// The same rows, for `members` that were made for them alone.
fn owned<T: Clone>(rows: Vec<Row<T>>, members: &[T]) -> Vec<Row<T>> {
    let own = |row: Row<T>| Some(Row::own(row.labels.clone(), row.of(members)?.clone()));
    rows.into_iter().filter_map(own).collect()
}

/// What is peculiar to a group.
struct OfGroup<K, T> {
    key: fn(&T) -> K,
    rank: fn(&T) -> Rank,
    labels: fn(&T) -> Vec<(&'static str, String)>,
    /// The label that says that it is the rest.
    other: &'static str,
    counts: fn(&T) -> Counts,
    /// Puts counters in the place of a member's.
    set: fn(&mut T, &Counts),
    /// The rest, while nobody is folded.
    none: fn() -> T,
    /// Adds a member to the rest, but for its counters.
    fold: fn(&mut T, &T),
}

/// Adds what is known.
fn add(sum: &mut Known<u64>, more: Known<u64>) {
    merge(sum, more, u64::saturating_add);
}

/// The greater of what is known.
fn raise<T: Copy + Ord>(most: &mut Known<T>, other: Known<T>) {
    merge(most, other, T::max);
}

fn merge<T: Copy>(into: &mut Known<T>, more: Known<T>, join: fn(T, T) -> T) {
    *into = match (*into, more) {
        (Ok(a), Ok(b)) => Ok(join(a, b)),
        (Ok(a), Err(_)) => Ok(a),
        (Err(_), other) => other,
    };
}

/// The order in which names are given where only a load is known.
fn rank_by_load(ratio: f64, traffic: f64) -> Rank {
    let class = match ratio {
        ratio if NEARLY_FULL <= ratio => Class::Trouble,
        _ if 0.0 < traffic => Class::Serving,
        _ => Class::Quiet,
    };
    Rank { class, traffic }
}
