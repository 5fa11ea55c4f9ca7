//! What of a scrape stands for those that have no series of their own.

#[path = "fixtures/snapshot.rs"]
mod fixture;
#[path = "fixtures/exposition.rs"]
mod parser;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use backlogd::{
    histogram::Histogram,
    id::{ListenerKey, NetnsId},
    metric::{Fold, Group, Kind, LISTENER_LABELS},
    model::snapshot::{Listener, Namespace, PortUse, Snapshot, UdpListener},
    publish::{
        exposition::{Format, encode},
        fold::Caps,
        metrics::{FAMILIES, Family, Scrape},
    },
    time::{Monotonic, Nanos},
};
use backlogd_abi::histogram::BUCKETS;
use proptest::prelude::*;

/// Value by name and labels.
type Series = BTreeMap<(String, Vec<(String, String)>), f64>;

fn scrape(snapshot: &Snapshot, caps: &mut Caps) -> Series {
    let scrape = Scrape::capped(Arc::new(snapshot.clone()), None, caps);
    let bytes = encode(scrape, Format::OpenMetrics).expect("each family gives values of its kind");
    let text = String::from_utf8(bytes).expect("it is text");
    let samples = parser::parse(&text).into_iter();
    let value = |sample: parser::Sample| {
        let value = sample.value.parse().expect("a number");
        ((sample.name, sample.labels), value)
    };
    samples.map(value).collect()
}

/// The labels that name a member of a group.
fn names(group: Group) -> &'static [&'static str] {
    match group {
        Group::Listener | Group::Udp => LISTENER_LABELS,
        Group::Namespace => &["netns"],
        Group::TimeWait => &["netns", "port"],
        Group::Destination => &["netns", "dst", "dst_port"],
    }
}

/// The full names of a family's samples.
fn sample_names(family: &Family) -> Vec<String> {
    let name = family.descriptor.name;
    match family.descriptor.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).into(),
        Kind::Counter | Kind::Gauge | Kind::Info => vec![name.to_owned()],
    }
}

type Labels = Vec<(String, String)>;

/// Those labels that name a member, and the others.
fn split(labels: &Labels, group: Group) -> (Labels, Labels) {
    labels.iter().cloned().partition(|(name, _)| names(group).contains(&name.as_str()))
}

/// Four of each group, no two with the same numbers.
fn many() -> Snapshot {
    let snapshot = fixture::snapshot();
    let netns = |n| NetnsId(1000 + n);
    let listener = |n: u32| {
        let busy = &snapshot.listeners[0];
        let key = ListenerKey { netns: netns(n), ..busy.key };
        let fill_ratio_max = Some(f64::from(n) / 100.0);
        let since_accept = Ok(Nanos(u64::from(n) * 1_000_000_000));
        let length = 7 + u64::from(n);
        Listener { key, fill_ratio_max, since_accept, length, ..grown(busy, u64::from(n)) }
    };
    let udp = |n: u32| {
        let dns = &snapshot.udp[0];
        let key = ListenerKey { netns: netns(n), ..dns.key };
        UdpListener { key, drops: Ok(u64::from(n)), queue_bytes: u64::from(100 * n), ..dns.clone() }
    };
    let namespace = |n: u32| {
        let namespace = &snapshot.namespaces[0];
        let ports = namespace.ports.as_ref().expect("known").iter();
        let ports = ports.map(|of| PortUse { used: of.used * u64::from(n), ..*of }).collect();
        let netstat = BTreeMap::from([("ListenDrops", u64::from(n)), ("ListenOverflows", 5)]);
        Namespace {
            netns: netns(n),
            netstat: Ok(netstat.into()),
            ports: Ok(ports),
            ..namespace.clone()
        }
    };
    Snapshot {
        listeners: (1..5).map(listener).collect(),
        udp: (1..5).map(udp).collect(),
        namespaces: (1..5).map(namespace).collect(),
        ..snapshot
    }
}

/// The listener after each of its counters grew by `n`.
fn grown(listener: &Listener, n: u64) -> Listener {
    let mut listener = listener.clone();
    let mut drops = listener.counters.drops_by;
    let counters = &mut listener.counters;
    for counter in [
        &mut counters.established,
        &mut counters.accepted,
        &mut counters.closed,
        &mut counters.aborted_listener_closed,
        &mut counters.aborted_reset,
        &mut counters.syns,
        &mut counters.syncookies,
        &mut counters.drops,
        &mut counters.socket_drops,
        &mut drops.accept_queue_full_syn,
        &mut drops.accept_queue_full_ack,
        &mut drops.syn_queue_full,
        &mut drops.other,
    ] {
        // small enough for a float to be exact
        *counter = counter.map(|it| it % 10_000 + n);
    }
    counters.drops_by = drops;
    counters.full = Nanos(counters.full.0 + n * 1_000_000_000);
    let mut buckets = [0; BUCKETS];
    buckets[30] = n;
    let histograms = [&mut listener.accept_wait, &mut listener.connection_duration];
    for histogram in histograms.into_iter().flatten() {
        Arc::make_mut(histogram).add(&Histogram::new(buckets, Nanos(n * 500_000)));
    }
    listener
}

/// How the folded values are one.
fn folded(fold: Fold, values: &[f64]) -> Option<f64> {
    match fold {
        Fold::Growth | Fold::Sum => Some(values.iter().sum()),
        // the fixture's destinations are in the order of their ratios
        Fold::Max | Fold::Worst => values.iter().copied().reduce(f64::max),
        Fold::Omitted => None,
    }
}

#[test]
fn the_rest_is_one_in_the_way_that_each_family_says() {
    let snapshot = many();
    let all = scrape(&snapshot, &mut Caps::new(u32::MAX));
    let capped = scrape(&snapshot, &mut Caps::new(1));
    for family in FAMILIES.iter().copied().flatten() {
        let Some((group, fold)) = family.folds else { continue };
        let other = vec![(group.label().to_owned(), "other".to_owned())];
        for name in sample_names(family) {
            let mut rest: BTreeMap<Labels, Vec<f64>> = BTreeMap::new();
            let mut named = BTreeSet::new();
            for ((_, labels), value) in all.iter().filter(|((it, _), _)| *it == name) {
                let (member, own) = split(labels, group);
                match capped.get(&(name.clone(), labels.clone())) {
                    Some(shown) => assert_eq!(shown, value, "{name} {labels:?}"),
                    None => rest.entry(own).or_default().push(*value),
                }
                if capped.contains_key(&(name.clone(), labels.clone())) {
                    named.insert(member);
                }
            }
            assert_eq!(named.len(), 1, "{name}: {named:?}");
            assert!(!rest.is_empty(), "{name} is not tried");
            let of_name = capped.iter().filter(|((it, _), _)| *it == name);
            let others: BTreeMap<_, _> = of_name
                .filter(|((_, labels), _)| split(labels, group).0 == other)
                .map(|((_, labels), value)| (split(labels, group).1, *value))
                .collect();
            let expected: BTreeMap<_, _> = rest
                .into_iter()
                .filter_map(|(own, values)| Some((own, folded(fold, &values)?)))
                .collect();
            assert_eq!(
                others.keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>(),
                "{name}, {fold:?}"
            );
            for (own, value) in others {
                let off = (value - expected[&own]).abs();
                assert!(off < 1e-9, "{name} {own:?}, {fold:?}: {value}, not {}", expected[&own]);
            }
        }
        let n = all.get(&(
            "backlogd_series_folded_total".to_owned(),
            vec![("family".to_owned(), family.descriptor.name.to_owned())],
        ));
        assert_eq!(n, Some(&0.0));
    }
}

#[test]
fn what_was_folded_is_counted_by_family() {
    let mut caps = Caps::new(3);
    let mut count = |family: &str| {
        let series = scrape(&many(), &mut caps);
        let labels = vec![("family".to_owned(), family.to_owned())];
        series.get(&("backlogd_series_folded_total".to_owned(), labels)).copied()
    };
    assert_eq!(count("backlogd_listener_stalled"), Some(1.0));
    assert_eq!(count("backlogd_udp_drops_total"), Some(1.0));
    assert_eq!(count("backlogd_time_wait_sockets"), Some(9.0));
    assert_eq!(count("backlogd_netstat_total"), Some(1.0), "once for each that is folded");
    assert_eq!(count("backlogd_hook_info"), None);
}

#[test]
fn the_rest_has_no_gauges_when_there_is_room_for_all_again() {
    let (mut snapshot, mut caps) = (many(), Caps::new(2));
    scrape(&snapshot, &mut caps);
    let names = |series: &Series| -> BTreeSet<String> {
        let is_other = |labels: &Labels| labels.contains(&("addr".to_owned(), "other".to_owned()));
        series.keys().filter(|(_, labels)| is_other(labels)).map(|(name, _)| name.clone()).collect()
    };
    snapshot.listeners.truncate(2);
    snapshot.udp.truncate(2);
    for name in names(&scrape(&snapshot, &mut caps)) {
        let is_counted = ["_total", "_bucket", "_sum", "_count", "_listener_sockets"];
        assert!(is_counted.iter().any(|end| name.ends_with(end)), "{name}");
    }
}

/// How far counters grew since `before`, by sample name and own labels; those that were never there
/// began at 0. Nothing may go back.
fn growth(
    before: &mut Series,
    now: &Series,
) -> Result<BTreeMap<(String, Labels), f64>, TestCaseError> {
    let mut growth = BTreeMap::new();
    for family in FAMILIES.iter().copied().flatten() {
        let Some((group, Fold::Growth)) = family.folds else { continue };
        for name in sample_names(family) {
            for ((_, labels), value) in now.iter().filter(|((it, _), _)| *it == name) {
                let last = before.insert((name.clone(), labels.clone()), *value).unwrap_or(0.0);
                prop_assert!(last <= *value, "{} {:?} from {} to {}", name, labels, last, value);
                let grown = growth.entry((name.clone(), split(labels, group).1)).or_insert(0.0);
                *grown += value - last;
            }
        }
    }
    Ok(growth)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn counters_grow_together_as_they_would_without_a_limit(
        limit in 0..5_u32,
        turns in prop::collection::vec(prop::collection::vec((0..9_u64, any::<bool>()), 4), 1..8),
    ) {
        let (mut snapshot, mut caps) = (many(), Caps::new(limit));
        let (mut before, mut uncapped) = (Series::new(), Series::new());
        for (turn, seconds) in turns.into_iter().zip(0..) {
            snapshot.at = Monotonic(seconds * 40_000_000_000);
            for (n, (grows, is_stalled)) in turn.into_iter().enumerate() {
                snapshot.listeners[n] = grown(&snapshot.listeners[n], grows);
                snapshot.listeners[n].stalled = Ok(is_stalled);
                snapshot.udp[n].drops = snapshot.udp[n].drops.map(|drops| drops + grows);
                let netstat = snapshot.namespaces[n].netstat.as_mut().expect("known");
                Arc::make_mut(netstat).entry("ListenDrops").and_modify(|drops| *drops += grows);
            }
            let expected = growth(&mut uncapped, &scrape(&snapshot, &mut Caps::new(u32::MAX)))?;
            let got = growth(&mut before, &scrape(&snapshot, &mut caps))?;
            prop_assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, n) in expected {
                prop_assert!((got[&name] - n).abs() < 1e-6, "{:?}: {} not {}", name, got[&name], n);
            }
        }
    }
}
