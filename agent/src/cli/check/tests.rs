use std::sync::Arc;

use super::*;
use crate::publish::api::Unknown;
use crate::{
    audit,
    detect::{
        self, Detector, Judged,
        phase::Severity,
        tuning::{Expected, Tuning},
    },
    input::Absent,
    model::snapshot::Snapshot,
    time::Nanos,
};

const PIPE: Terminal = Terminal { size: None, color: false, redraws: false };
const NARROW: Terminal = Terminal { size: Some((80, 24)), ..PIPE };

fn report(change: impl FnOnce(&mut Snapshot)) -> Report {
    let mut now = detect::fixture::snapshot([80, 443].map(detect::fixture::listener).into());
    change(&mut now);
    let seen = "17 connections wait; nobody has accepted for 75 s";
    let stalled = [("ListenerStalled", Severity::Critical, 1, seen)];
    let n = usize::from(now.listeners[1].stalled == Ok(true));
    let judged = audit::fixture::judged(now, &stalled[..n]);
    Report::new(&judged, Source::Daemon, None)
}

/// Nobody accepts on port 443, whose backlog is small.
fn stalled(now: &mut Snapshot) {
    let it = &mut now.listeners[1];
    it.comm = Some("a|b\nc".into());
    it.members[0].limit = 16;
    (it.length, it.limit, it.fill_ratio_max) = (17, 16, Some(17.0 / 16.0));
    it.stalled = Ok(true);
    it.since_accept = Ok(Nanos(75_000_000_000));
    it.counters.drops_by.accept_queue_full_syn = Ok(40);
    it.counters.drops = Ok(40);
}

fn blind(now: &mut Snapshot) {
    let it = &mut now.listeners[0];
    it.length = 3;
    it.stalled = Err(Absent::NoEbpf);
    now.degraded.insert("owners", "needs CAP_SYS_PTRACE".to_owned());
}

#[track_caller]
fn check(change: impl FnOnce(&mut Snapshot), wanted: &str, expected: Option<(Status, &str)>) {
    let report = report(change);
    let report = match wanted {
        "" => Some(report),
        wanted => report.only(wanted.parse().expect("the case is right")),
    };
    let got = report.as_ref().map(|it| (it.status, it.summary.as_str()));
    assert_eq!(expected, got, "{wanted:?}: {report:#?}");
}

#[test]
fn the_summary_has_the_worst_and_how_many() {
    check(|_| {}, "", Some((Status::Fine, "OK: 2 listeners, nothing is wrong")));
    let first = "CRITICAL: 1 alert, 1 info: ListenerStalled a|b\nc 0.0.0.0:443";
    check(stalled, "", Some((Status::Critical, first)));
    check(stalled, "443", Some((Status::Critical, first)));
    check(stalled, "0.0.0.0", Some((Status::Critical, first)));
    check(stalled, "80", Some((Status::Fine, "OK: 1 listener, nothing is wrong")));
    check(stalled, "127.0.0.1:443", None);
    check(stalled, "8080", None);
    let unknown = "UNKNOWN: 2 listeners, 1 detection not judged: whether anybody accepts on 0.0.0.0:80 cannot be told: \
                   no eBPF program runs";
    check(blind, "", Some((Status::Unknown, unknown)));
    let unjudged = "OK: 1 listener, nothing is wrong, 1 detection not judged";
    check(blind, "443", Some((Status::Fine, unjudged)));
    let gone = |now: &mut Snapshot| now.listeners[0].members.clear();
    check(gone, "80", None);
    let cookies = |now: &mut Snapshot| {
        now.namespaces[0].sysctls = Arc::new([("tcp_syncookies", 0)].into());
    };
    let finding = "WARNING: 1 finding: SynCookiesOff net:[7]";
    check(cookies, "", Some((Status::Warning, finding)));
    check(cookies, "443", Some((Status::Fine, "OK: 1 listener, nothing is wrong")));
}

/// What is told of a listener on port 9999 at `addr`, or anywhere, that the configuration wants and that has
/// been missing for so many seconds.
fn expects(addr: Option<&str>, look: Option<u64>, seconds: u64, watched: Option<u64>) -> Report {
    let mut now = detect::fixture::snapshot(vec![detect::fixture::listener(80)]);
    let expected = Expected {
        addr: addr.map(|addr| addr.parse().expect("an address")),
        port: 9_999,
        namespace: None,
        within: Nanos(60_000_000_000),
        look: look.map(|seconds| Nanos(seconds * 1_000_000_000)),
        place: String::new(),
    };
    let mut detector =
        Detector::new(Arc::new(Tuning { expected: vec![expected], ..Tuning::default() }));
    let mut verdicts = detector.judge(&now);
    for _ in 0..seconds {
        now.at = now.at + Nanos(1_000_000_000);
        verdicts = detector.judge(&now);
    }
    let judged = Judged { snapshot: now.into(), verdicts: verdicts.into() };
    let watched = watched.map(|seconds| Nanos(seconds * 1_000_000_000));
    Report::new(&judged, Source::Standalone, watched)
}

#[test]
fn who_asks_for_a_listener_that_is_missing_is_told() {
    #[track_caller]
    fn check(addr: Option<&str>, wanted: &str, expected: Option<Status>) {
        let report = expects(addr, None, 60, None);
        let only = report.only(wanted.parse().expect("the case is right"));
        assert_eq!(expected, only.map(|it| it.status), "{addr:?} {wanted}");
    }
    check(None, "9999", Some(Status::Critical));
    check(None, "192.0.2.1:9999", Some(Status::Critical));
    check(None, "80", Some(Status::Fine));
    check(None, "8080", None);
    check(Some("192.0.2.1"), "9999", Some(Status::Critical));
    check(Some("192.0.2.1"), "192.0.2.1", Some(Status::Critical));
    check(Some("192.0.2.1"), "192.0.2.2:9999", None);
    let report = expects(None, None, 60, None).only("9999".parse().expect("a port"));
    let line = nagios::render(&report.expect("it is told"));
    let (begin, end) = line.split_once(": ").expect("the worst is after a colon");
    assert!(begin.starts_with("BACKLOGD CRITICAL - 1 alert"), "{line}");
    assert!(end.starts_with("ExpectedListenerDown port 9999: no listener for 60 s | "), "{line}");
}

#[test]
fn own_samples_tell_of_a_listener_that_is_missing_in_each() {
    let name = "ExpectedListenerDown";
    let report = expects(None, Some(3), 3, Some(3));
    assert_eq!(Status::Warning, report.status);
    assert!(report.summary.ends_with(": ExpectedListenerDown port 9999"), "{}", report.summary);
    assert!(!report.need_longer.iter().any(|it| it == name));
    // of a recording that is shorter than it may be missing
    let report = expects(None, None, 10, Some(10));
    assert_eq!(Status::Fine, report.status);
    assert!(report.need_longer.iter().any(|it| it == name), "{report:?}");
    let report = expects(None, None, 10, None);
    assert!(report.need_longer.is_empty(), "{report:?}");
}

#[test]
fn people_read_what_is_wrong_and_what_mends_it() {
    insta::assert_snapshot!(text::render(&report(stalled), &NARROW, false));
}

#[test]
fn wide_has_infos_in_full_and_what_other_alerts_say_better() {
    insta::assert_snapshot!(text::render(&report(stalled), &PIPE, true));
}

#[test]
fn what_could_not_be_judged_is_told_with_what_is_missing() {
    insta::assert_snapshot!(text::render(&report(blind), &PIPE, false));
}

#[test]
fn what_is_looked_for_on_demand_alone_is_told_with_what_it_waits_for() {
    let mut report = report(|_| {});
    for alert in ["AcceptErrors", "NobodyAccepts"] {
        let alert = alert.to_owned();
        report.unknown.push(Unknown { alert, why: Absent::TooEarly, subjects: 1, of: 1 });
    }
    let text = text::render(&report, &PIPE, false);
    let expected = "AcceptErrors: is looked for only while connections wait and nobody accepts\n\
                    not judged  NobodyAccepts: not enough history so far\n";
    assert!(text.ends_with(expected), "{text}");
    report.missing.push("closer look: tracefs not found".to_owned());
    let text = text::render(&report, &PIPE, false);
    assert_eq!("OK: 2 listeners, nothing is wrong", report.summary);
    let expected = "AcceptErrors: needs a closer look, which cannot be had\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_plugin_prints_one_line_with_one_bar() {
    insta::assert_snapshot!(nagios::render(&report(stalled)));
    insta::assert_snapshot!(nagios::render(&report(|now| {
        now.listeners[0].counters.drops = Err(Absent::NoEbpf);
    })));
    // what a recording may hold
    let many = nagios::render(&report(|now| {
        for it in &mut now.listeners {
            (it.length, it.counters.drops) = (u64::MAX, Ok(u64::MAX));
        }
    }));
    let most = u64::MAX;
    assert!(many.contains(&format!("'queue_length'={most};")), "{many}");
    assert!(many.contains(&format!("'drops'={most}c;")), "{many}");
    insta::assert_snapshot!(nagios::failed("no | such\nlistener"));
}

/// A word that only a later agent knows is not passed over.
#[test]
fn a_severity_that_is_not_known_counts_as_the_worst() {
    let mut report = report(stalled);
    report.alerts[0].severity = "emergency".to_owned();
    let wanted = "443".parse().expect("a port");
    let report = report.only(wanted).expect("somebody listens");
    assert_eq!(Status::Critical, report.status, "{}", report.summary);
    assert_eq!(1, report.counts().alerts);
}
