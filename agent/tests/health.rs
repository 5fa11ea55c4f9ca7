//! Healthy servers, recorded for half an hour each: no detection fires. docs/health.md says what they
//! are and how to record them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::BufReader,
    path::PathBuf,
};

use backlogd::{
    detect::Detector,
    id::{Cookie, Pid},
    model::snapshot::{Listener, Snapshot},
    recording::Recording,
    time::Nanos,
};

const SECOND: f64 = 1e9;

/// What a recording showed.
#[derive(Debug, Default)]
struct Seen {
    snapshots: u64,
    seconds: f64,
    /// Those that fired, told or not: what they saw when they were raised.
    alerts: BTreeMap<(&'static str, String), String>,
    listeners: usize,
    /// Over the whole recording, per second.
    accepted: f64,
    /// The highest rate over some ten seconds.
    accepted_highest: f64,
    closed: u64,
    open: u64,
    drops: u64,
    socket_drops: u64,
    sockets: BTreeSet<Cookie>,
    owners: BTreeSet<Pid>,
    /// The most places of a queue that were taken, of all.
    fullest: f64,
    /// Snapshots in which a queue went unserved for a second or more.
    pauses: u64,
    /// Snapshots in which waits were known.
    waits: u64,
}

impl Seen {
    fn see(&mut self, now: &Snapshot) {
        self.snapshots += 1;
        self.listeners = now.listeners.len();
        now.listeners.iter().for_each(|listener| self.see_listener(listener));
    }

    fn see_listener(&mut self, it: &Listener) {
        let counters = &it.counters;
        self.accepted = counters.accepted.map_or(0.0, |n| n as f64 / self.seconds);
        self.accepted_highest = self.accepted_highest.max(it.rates.accepted.unwrap_or(0.0));
        self.closed = counters.closed.unwrap_or(0);
        self.open = it.open.unwrap_or(0);
        self.drops = counters.drops.expect("known on each kernel");
        self.socket_drops = counters.socket_drops.expect("known on each kernel");
        self.sockets.extend(it.members.iter().map(|member| member.cookie));
        self.owners.extend(it.owners.iter());
        let length = it.length_max.unwrap_or(0) as f64;
        self.fullest = self.fullest.max(length / it.limit.max(1) as f64);
        let waiting = it.members.iter().filter_map(|member| member.waiting.ok());
        self.pauses += u64::from(waiting.max() >= Some(Nanos(950_000_000)));
        self.waits += u64::from(it.accept_wait.is_ok());
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/health")
}

/// Plays a recording through all detections, as the daemon does without a configuration.
fn replay(case: &str) -> Seen {
    let path = folder().join(case).with_extension("backlogd");
    let file = File::open(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let recording = Recording::open(BufReader::new(file)).expect("a recording");
    let (mut detector, mut seen, mut first) = (Detector::default(), Seen::default(), None);
    for snapshot in recording.snapshots() {
        let snapshot = snapshot.expect("a whole recording");
        let at = snapshot.at.0 as f64 / SECOND;
        seen.seconds = at - *first.get_or_insert(at);
        seen.see(&snapshot);
        for alert in detector.judge(&snapshot).alerts {
            let (name, subject) = (alert.about.name, &alert.subject.name);
            let began = seen.seconds.round();
            let text = &alert.at_raise.seen;
            seen.alerts.entry((name, subject.clone())).or_insert(format!("at {began} s: {text}"));
        }
    }
    seen
}

/// Nothing fires in half an hour, and the case was what it is meant to be.
#[track_caller]
fn check(case: &str, is_what_it_says: impl FnOnce(&Seen) -> bool) {
    let seen = replay(case);
    assert!(1_700 <= seen.snapshots && 29.0 * 60.0 <= seen.seconds, "{case} is short: {seen:?}");
    assert!(seen.alerts.is_empty(), "{case}: {:#?}", seen.alerts);
    assert_eq!(0, seen.drops, "{case}: {seen:?}");
    assert!(is_what_it_says(&seen), "{case} shows something else: {seen:?}");
}

#[test]
fn each_recording_is_replayed() {
    let files = fs::read_dir(folder()).expect("the recordings");
    let files = files.map(|file| file.expect("a file").path());
    let found: BTreeSet<_> =
        files.map(|path| path.file_stem().expect("a name").to_owned()).collect();
    let expected = [
        "idle",
        "nginx",
        "prefork",
        "deferred",
        "connections",
        "pool",
        "activation",
        "burst",
        "pause",
        "deploy",
    ];
    assert_eq!(expected.into_iter().map(Into::into).collect::<BTreeSet<_>>(), found);
}

#[test]
fn an_idle_host_is_healthy() {
    check("idle", |seen| seen.listeners == 2 && seen.accepted == 0.0);
}

/// 725 connections for 5,000 requests, each second.
#[test]
fn nginx_at_5000_requests_a_second_is_healthy() {
    check("nginx", |seen| 690.0 <= seen.accepted && seen.owners.len() == 3);
}

#[test]
fn prefork_servers_are_healthy() {
    check("prefork", |seen| {
        seen.owners.len() == 8 && 0.3 < seen.fullest && 30.0 < seen.accepted && 1_000 < seen.waits
    });
}

/// Each ACK that is passed over adds to `sk_drops`, and is no listen drop.
#[test]
fn tcp_defer_accept_is_healthy() {
    check("deferred", |seen| 10_000 < seen.socket_drops && 15.0 < seen.accepted);
}

#[test]
fn ten_thousand_idle_connections_are_healthy() {
    check("connections", |seen| 10_000 <= seen.open && 1_000 < seen.closed);
}

#[test]
fn a_pool_that_keeps_its_connections_is_healthy() {
    check("pool", |seen| seen.open == 1_000 && seen.closed == 0);
}

/// One process listens, and each start of the service is another that accepts.
#[test]
fn socket_activation_is_healthy() {
    check("activation", |seen| 20 < seen.owners.len() && 0.3 < seen.accepted);
}

#[test]
fn a_burst_within_the_limit_is_healthy() {
    check("burst", |seen| {
        0.5 < seen.fullest
            && 150.0 < seen.accepted_highest
            && seen.accepted < 60.0
            && 1_000 < seen.waits
    });
}

#[test]
fn a_pause_below_the_threshold_is_healthy() {
    check("pause", |seen| 20 < seen.pauses && 1_000 < seen.waits);
}

#[test]
fn blue_green_restarts_are_healthy() {
    check("deploy", |seen| 6 <= seen.sockets.len() && 15.0 < seen.accepted && 1_000 < seen.waits);
}
