//! Detections about one listener, by what is told of made-up hosts.

mod leak;
mod queue;
mod socket;

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::detect::phase::Severity;
use crate::{
    detect::{
        alert::Verdicts,
        fixture::{World, find},
    },
    histogram::Histogram,
    input::{Connections, Table, TableRead},
    model::snapshot::Member,
};

#[test]
fn rules_that_follow_the_configuration_are_in_their_places() {
    let name = |place: usize| Listeners::RULES[place].about.name;
    let names = [LEAK, CLOSE_WAIT, SLOW_ACCEPT].map(name);
    assert_eq!(["ConnectionLeak", "CloseWaitBuildup", "SlowAccept"], names);
    let threshold = |rule: usize, at: usize| Listeners::RULES[rule].about.thresholds[at].name;
    assert_eq!("window_seconds", threshold(LEAK, super::leak::WINDOW));
    assert_eq!("window_seconds", threshold(CLOSE_WAIT, close_wait::WINDOW));
    assert_eq!("seconds", threshold(SLOW_ACCEPT, slow_accept::SECONDS));
}

#[test]
fn what_is_remembered_stays_small() {
    let size = size_of::<Remembered>();
    assert!(size <= 704, "{size} bytes");
}

/// Adds waits for accept, which are accepts too.
fn accept_after(world: &mut World, seconds: f64, n: u64) {
    let mut buckets = *Histogram::default().buckets();
    let wait = Nanos::from_seconds(seconds).expect("a span");
    buckets[backlogd_abi::histogram::bucket(wait.0)] = n;
    let more = Histogram::new(buckets, Nanos(wait.0 * n));
    let listener = world.listener();
    let waits = listener.accept_wait.as_mut().expect("known");
    Arc::make_mut(waits).add(&more);
    for counter in [&mut listener.counters.established, &mut listener.counters.accepted] {
        *counter = counter.map(|before| before + n);
    }
}

/// A read of the table that shows these connections.
fn read_table(world: &mut World, connections: Connections) {
    let (at, key) = (world.now.at, world.listener().key);
    let listeners = BTreeMap::from([((key.addr, key.port), connections)]);
    let table = Table { listeners, ..Table::default() };
    world.now.namespaces[0].table = Ok(Arc::new(TableRead { at, table }));
    world.listener().connections = Ok(connections);
}

fn sysctl(world: &mut World, name: &'static str, value: i64) {
    Arc::make_mut(&mut world.now.namespaces[0].sysctls).insert(name, value);
}

/// What an alert says, why, and what to do.
#[track_caller]
fn check_text(verdicts: &Verdicts, alert: &str, seen: &str, cause: Option<&str>, mend: &str) {
    let latest = &find(verdicts, alert).latest;
    assert_eq!((seen, cause, mend), (&*latest.seen, latest.cause.as_deref(), &*latest.mend));
}

/// Why a detection cannot judge; `None`: it can.
#[track_caller]
fn check_unknown(verdicts: &Verdicts, alert: &str, expected: Option<Absent>) {
    let unknown = verdicts.unknown.iter().find(|it| it.alert == alert);
    assert_eq!(expected, unknown.map(|it| it.why), "{alert}");
}

/// Seconds since the world began.
fn second(world: &World) -> u64 {
    world.now.samples
}
