//! Listeners: what stands for those that have no series of their own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{NEARLY_FULL, OfGroup, Row, add, labels, merge, raise};
use crate::{
    histogram::Histogram,
    id::{ListenerKey, NetnsId},
    input::{Absent, Connections, Known},
    model::snapshot::{Counters, DropsBy, Listener, Rates},
    publish::cap::{Cap, Class, Counts, Rank},
    time::{Monotonic, Nanos},
};

const GROUP: OfGroup<ListenerKey, Listener> = OfGroup {
    key: |listener| listener.key,
    rank,
    labels: |listener| labels(listener.key, listener.comm.as_deref(), &listener.workload),
    other: "addr",
    counts,
    set,
    none,
    fold,
};

pub(super) fn rows(
    cap: &mut Cap<ListenerKey>,
    at: Monotonic,
    listeners: &[Listener],
) -> Vec<Row<Listener>> {
    super::rows(cap, at, listeners, &GROUP)
}

pub(super) fn rank(listener: &Listener) -> Rank {
    let Rates { established, accepted, drops } = listener.rates;
    let traffic = accepted.or(established).unwrap_or(0.0);
    // the peak, too: rates forget in ten seconds, and scrapes are further apart
    let peak = listener.length_max.unwrap_or(0) as f64 / listener.limit.max(1) as f64;
    let is_full = NEARLY_FULL <= listener.fill_ratio_max.unwrap_or(0.0).max(peak);
    let class = match listener.members.as_slice() {
        [] => Class::Gone,
        _ if is_full || listener.stalled == Ok(true) || drops.is_ok_and(|rate| 0.0 < rate) => {
            Class::Trouble
        }
        _ if 0.0 < traffic => Class::Serving,
        _ => Class::Quiet,
    };
    Rank { class, traffic }
}

type OfCounters = fn(&mut Counters) -> &mut Known<u64>;

/// Where each counter is.
const COUNTERS: [(&str, OfCounters); 14] = [
    ("established", |it| &mut it.established),
    ("accepted", |it| &mut it.accepted),
    ("closed", |it| &mut it.closed),
    ("aborted_listener_closed", |it| &mut it.aborted_listener_closed),
    ("aborted_reset", |it| &mut it.aborted_reset),
    ("syns", |it| &mut it.syns),
    ("syncookies", |it| &mut it.syncookies),
    ("drops", |it| &mut it.drops),
    ("accept_queue_full_syn", |it| &mut it.drops_by.accept_queue_full_syn),
    ("accept_queue_full_ack", |it| &mut it.drops_by.accept_queue_full_ack),
    ("syn_queue_full", |it| &mut it.drops_by.syn_queue_full),
    ("other", |it| &mut it.drops_by.other),
    ("unspecified", |it| &mut it.drops_by.unspecified),
    ("socket_drops", |it| &mut it.socket_drops),
];

/// The one that is a time.
const FULL: &str = "full";

type OfListener = fn(&mut Listener) -> &mut Known<Arc<Histogram>>;

/// Where each histogram is.
const HISTOGRAMS: [(&str, OfListener); 2] = [
    ("accept_wait", |it| &mut it.accept_wait),
    ("connection_duration", |it| &mut it.connection_duration),
];

fn counts(listener: &Listener) -> Counts {
    let mut counters = listener.counters;
    let known = COUNTERS.iter().filter_map(|(name, at)| Some((*name, at(&mut counters).ok()?)));
    let mut numbers: BTreeMap<_, _> = known.collect();
    numbers.insert(FULL, listener.counters.full.0);
    let [(wait, _), (duration, _)] = HISTOGRAMS;
    let histograms = [(wait, &listener.accept_wait), (duration, &listener.connection_duration)];
    let known = histograms.into_iter().filter_map(|(name, it)| Some((name, it.clone().ok()?)));
    Counts { numbers, histograms: known.collect() }
}

fn set(listener: &mut Listener, counts: &Counts) {
    for (name, at) in COUNTERS {
        if let Some(n) = counts.numbers.get(name) {
            *at(&mut listener.counters) = Ok(*n);
        }
    }
    listener.counters.full = Nanos(counts.numbers.get(FULL).copied().unwrap_or(0));
    for (name, at) in HISTOGRAMS {
        if let Some(histogram) = counts.histograms.get(name) {
            *at(listener) = Ok(histogram.clone());
        }
    }
}

fn none() -> Listener {
    const NONE: Known<u64> = Err(Absent::TooEarly);
    let addr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    Listener {
        key: ListenerKey { netns: NetnsId(0), addr, port: 0 },
        v6only: false,
        members: Vec::new(),
        owners: Arc::default(),
        comm: None,
        workload: Arc::default(),
        length: 0,
        limit: 0,
        length_max: NONE,
        fill_ratio_max: None,
        syn_queue: NONE,
        counters: Counters {
            established: NONE,
            found: Err(Absent::TooEarly),
            accepted: NONE,
            closed: NONE,
            aborted_listener_closed: NONE,
            aborted_reset: NONE,
            syns: NONE,
            syncookies: NONE,
            drops: NONE,
            drops_by: DropsBy {
                accept_queue_full_syn: NONE,
                accept_queue_full_ack: NONE,
                syn_queue_full: NONE,
                other: NONE,
                unspecified: NONE,
            },
            socket_drops: NONE,
            full: Nanos(0),
        },
        accept_wait: Err(Absent::TooEarly),
        connection_duration: Err(Absent::TooEarly),
        rates: Rates {
            established: Err(Absent::TooEarly),
            accepted: Err(Absent::TooEarly),
            drops: Err(Absent::TooEarly),
        },
        open: NONE,
        connections: Err(Absent::TooEarly),
        since_accept: Err(Absent::TooEarly),
        stalled: Err(Absent::TooEarly),
    }
}

/// What is gone has no gauges, and adds none.
fn fold(rest: &mut Listener, listener: &Listener) {
    if listener.members.is_empty() {
        return;
    }
    rest.members.extend(&listener.members);
    rest.length += listener.length;
    rest.limit += listener.limit;
    add(&mut rest.length_max, listener.length_max);
    let ratios = rest.fill_ratio_max.into_iter().chain(listener.fill_ratio_max);
    rest.fill_ratio_max = ratios.reduce(f64::max);
    add(&mut rest.syn_queue, listener.syn_queue);
    add(&mut rest.open, listener.open);
    merge(&mut rest.connections, listener.connections, sum);
    raise(&mut rest.since_accept, listener.since_accept);
    raise(&mut rest.stalled, listener.stalled);
}

fn sum(a: Connections, b: Connections) -> Connections {
    Connections {
        accepted: a.accepted + b.accepted,
        close_wait: a.close_wait + b.close_wait,
        fin_wait: a.fin_wait + b.fin_wait,
        queued: a.queued + b.queued,
        time_wait: a.time_wait + b.time_wait,
        unread_bytes: a.unread_bytes + b.unread_bytes,
        unread_bytes_max: a.unread_bytes_max.max(b.unread_bytes_max),
        unsent_bytes: a.unsent_bytes + b.unsent_bytes,
        unsent_bytes_max: a.unsent_bytes_max.max(b.unsent_bytes_max),
    }
}
