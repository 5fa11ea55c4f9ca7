//! Compared with the plain rule, pair by pair.

use proptest::prelude::*;

use super::*;
use crate::{
    detect::{
        alert::AlertId,
        phase::{
            Severity::{Critical, Warning},
            Timing,
        },
        rule::{About, Evidence},
        subject::Labels,
    },
    time::{Nanos, UnixTime},
};

const fn about(name: &'static str, inhibited_by: &'static [&'static str]) -> About {
    About {
        name,
        summary: "",
        why: "",
        timing: Timing { raise_for: Nanos(0), clear_for: Nanos(0) },
        min_age: Nanos(0),
        outlives: Nanos(0),
        thresholds: &[],
        inhibited_by,
    }
}

static ABOUTS: [About; 3] =
    [about("Worst", &[]), about("Bad", &["Worst"]), about("Least", &["Bad", "Worst"])];

fn alert(about: &'static About, kind: SubjectKind, labels: Labels, pids: &[u32]) -> Arc<Alert> {
    let subject = Subject {
        kind,
        name: String::new(),
        labels,
        pids: pids.iter().map(|&pid| Pid(pid)).collect(),
    };
    let evidence = Arc::new(Evidence::default());
    Arc::new(Alert {
        id: AlertId(0),
        about,
        subject: Arc::new(subject),
        severity: Warning,
        since: UnixTime(0),
        raised: UnixTime(0),
        at_raise: evidence.clone(),
        latest: evidence,
        unknown: None,
        inhibited_by: None,
    })
}

/// Whether `one` is about the same listener as `other`, or about the tasks that serve it, or, where it is
/// critical, about a listener that the process of the other one serves.
fn is_same_listener(one: &Alert, other: &Alert) -> bool {
    let (by, of) = (&one.subject, &other.subject);
    let is_common = || by.pids.iter().any(|pid| of.pids.contains(pid));
    let (theirs, ours) = (&by.labels, &of.labels);
    match by.kind {
        SubjectKind::Caller if of.kind == SubjectKind::Destination => true,
        SubjectKind::Caller | SubjectKind::Process => {
            if by.pids.is_empty() || of.pids.is_empty() {
                theirs.comm.is_some() && theirs.comm == ours.comm
            } else {
                is_common()
            }
        }
        SubjectKind::Listener if of.kind == SubjectKind::Process => {
            place(by) == place(of) || one.severity == Critical && is_common()
        }
        SubjectKind::Host | SubjectKind::Agent => true,
        SubjectKind::Namespace => theirs.netns == ours.netns,
        SubjectKind::Listener
        | SubjectKind::Expected
        | SubjectKind::Destination
        | SubjectKind::Udp => place(by) == place(of),
    }
}

/// Who says the alert better that is told: pair by pair.
fn told_by(of: &Alert, all: &[Arc<Alert>]) -> Option<&'static str> {
    let better = of.about.inhibited_by.iter().find_map(|name| {
        let mut named = all.iter().filter(|it| it.about.name == *name);
        named.find(|by| is_same_listener(by, of))
    })?;
    told_by(better, all).or(Some(better.about.name))
}

fn alerts() -> impl Strategy<Value = Vec<Arc<Alert>>> {
    use SubjectKind::{
        Agent, Caller, Destination, Expected, Host, Listener, Namespace, Process, Udp,
    };
    let kinds = [Listener, Expected, Process, Caller, Destination, Udp, Namespace, Host, Agent];
    let netns = prop::option::of((7_u32..9).prop_map(NetnsId));
    let port = prop::option::of(80_u16..82);
    let comm = prop::option::of(prop::sample::select(vec!["nginx", "redis"]));
    let pids = prop::collection::vec(1_u32..4, 0..3);
    let kind = prop::sample::select(kinds.to_vec());
    let severity = prop::sample::select(vec![Warning, Critical]);
    let one = (0..3_usize, kind, netns, port, comm, pids, severity);
    let one = one.prop_map(|(about, kind, netns, port, comm, pids, severity)| {
        let labels = Labels { netns, port, comm: comm.map(Arc::from), ..Labels::default() };
        let mut alert = alert(&ABOUTS[about], kind, labels, &pids);
        Arc::make_mut(&mut alert).severity = severity;
        alert
    });
    prop::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn what_shares_something_is_what_each_pair_tells(mut alerts in alerts()) {
        let before = alerts.clone();
        inhibit(&mut alerts);
        for alert in &alerts {
            prop_assert_eq!(told_by(alert, &before), alert.inhibited_by, "{:#?}", before);
        }
    }
}

#[test]
fn ten_thousand_alerts_are_looked_up_and_not_compared_in_pairs() {
    let of = |about: usize, port: u16| {
        let labels = Labels { port: Some(port), comm: Some("nginx".into()), ..Labels::default() };
        alert(&ABOUTS[about], SubjectKind::Listener, labels, &[port.into()])
    };
    let mut alerts: Vec<_> =
        (0..5_000).flat_map(|port| [of(2, port), of(0, 10_000 + port)]).collect();
    alerts.push(of(0, 4_999));
    let shared = |alert: &Arc<Alert>| offers(alert).count() + asks(&alert.subject).count();
    assert!(alerts.iter().map(shared).sum::<usize>() <= 8 * alerts.len());
    assert!(Index::new(&alerts).0.len() <= alerts.len());
    inhibit(&mut alerts);
    let inhibited = alerts.iter().filter(|alert| alert.inhibited_by.is_some());
    let ports: Vec<_> = inhibited.map(|alert| alert.subject.labels.port).collect();
    assert_eq!(vec![Some(4_999)], ports);
}
