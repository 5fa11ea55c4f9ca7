//! The queue by virtual time, and what would be sent.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    super::{
        payload::{self, LARGEST, Style},
        queue::{BATCH, MOST, Outcome, Queue, Telling},
    },
    ABOUT, THEN, alert, verdicts,
};
use crate::{
    detect::{
        alert::{Alert, AlertId, Untold, Verdicts},
        phase::{
            Change, Lost,
            Severity::{self, Critical, Warning},
        },
        rule::About,
        subject::SubjectKind,
    },
    id::Pid,
    input::Absent,
    outlet::Form,
    time::{Monotonic, Nanos, UnixTime},
};

const RESEND: Nanos = Nanos(60_000_000_000);

/// A receiver and its agent.
struct Scene {
    queue: Queue,
    seconds: u64,
    told: Verdicts,
}

impl Scene {
    fn new() -> Self {
        Self {
            queue: Queue::new(Form::Alertmanager, RESEND, 1),
            seconds: 0,
            told: Verdicts::default(),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.seconds * 1_000_000_000)
    }

    /// Lets time pass, a look a second; what is sent, as (second, port, severity, is over).
    fn run(
        &mut self,
        seconds: u64,
        told: &[(u16, Severity)],
        outcome: Outcome,
    ) -> Vec<(u64, u16, Severity, bool)> {
        self.told = verdicts(told.iter().map(|&(port, severity)| alert(port, severity)));
        let mut sent = Vec::new();
        for _ in 0..seconds {
            self.queue.look(self.now(), &self.told);
            loop {
                let due = self.queue.due(self.now());
                if due.is_empty() {
                    break;
                }
                assert!(self.queue.next_at().is_some_and(|at| at <= self.now()));
                sent.extend(due.iter().map(|it| self.line(it)));
                self.queue.answered(self.now(), &due, outcome);
            }
            self.seconds += 1;
        }
        sent
    }

    fn line(&self, it: &Telling) -> (u64, u16, Severity, bool) {
        let port = it.alert.subject.labels.port.expect("a port");
        (self.seconds, port, it.alert.severity, it.ended.is_some())
    }
}

#[test]
fn what_fires_is_sent_at_once_and_again_and_its_end_once() {
    let mut scene = Scene::new();
    let sent = scene.run(130, &[(80, Warning)], Outcome::Taken);
    let expected: Vec<_> = [0, 60, 120].map(|at| (at, 80, Warning, false)).into();
    assert_eq!(expected, sent);
    let sent = scene.run(100, &[], Outcome::Taken);
    assert_eq!(vec![(130, 80, Warning, true)], sent);
    assert_eq!((None, 0), (scene.queue.next_at(), scene.queue.pending()));
}

#[test]
fn another_severity_is_another_alert_and_ends_the_first() {
    let mut scene = Scene::new();
    scene.run(10, &[(80, Warning)], Outcome::Taken);
    let sent = scene.run(1, &[(80, Critical)], Outcome::Taken);
    assert_eq!(vec![(10, 80, Critical, false), (10, 80, Warning, true)], sent);
}

#[test]
fn a_dead_receiver_is_tried_ever_more_seldom_and_loses_nothing_that_fires() {
    let mut scene = Scene::new();
    let tries: Vec<u64> =
        scene.run(600, &[(80, Warning)], Outcome::Failed).iter().map(|it| it.0).collect();
    let waits: Vec<u64> = tries.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(waits[0] <= 2 && waits[1] <= 4, "{waits:?}");
    assert!(waits.iter().all(|&wait| wait <= 61), "{waits:?}");
    assert!(waits.is_sorted() && 10 < waits.len() && waits.len() < 20, "{waits:?}");
    // one more alert, and the receiver comes back
    let sent = scene.run(61, &[(80, Warning), (81, Critical)], Outcome::Taken);
    let ports: Vec<u16> = sent.iter().map(|it| it.1).collect();
    assert_eq!(vec![81, 80], ports, "worst first");
    // it fails anew: the first wait is short again
    let tries = scene.run(90, &[(80, Warning), (81, Critical)], Outcome::Failed);
    let first = tries[0].0;
    let second = tries.iter().find(|it| it.0 != first).expect("another try").0;
    assert!(second - first <= 2);
}

#[test]
fn an_end_is_told_when_the_receiver_is_back_or_forgotten_after_a_while() {
    let mut scene = Scene::new();
    scene.run(10, &[(80, Warning)], Outcome::Taken);
    scene.run(600, &[], Outcome::Failed);
    let sent = scene.run(61, &[], Outcome::Taken);
    assert!(matches!(sent[..], [(_, 80, Warning, true)]), "{sent:?}");
    scene.run(10, &[(80, Warning)], Outcome::Taken);
    scene.run(901, &[], Outcome::Failed);
    assert_eq!((None, 0), (scene.queue.next_at(), scene.queue.pending()));
}

#[test]
fn what_fires_again_before_its_end_was_told_is_no_end() {
    let mut scene = Scene::new();
    scene.run(10, &[(80, Warning)], Outcome::Taken);
    scene.run(10, &[], Outcome::Failed);
    let sent = scene.run(40, &[(80, Warning)], Outcome::Taken);
    assert!(matches!(sent[..], [(_, 80, Warning, false)]), "{sent:?}");
}

#[test]
fn the_end_of_what_is_not_cleared_says_why() {
    for (change, reason) in [
        (Change::Cleared, None),
        (
            Change::Lost(Lost::Unknown(Absent::NotPermitted)),
            Some("it cannot be told any more: not permitted"),
        ),
        (Change::Inhibited("AcceptErrors"), Some("it is told by AcceptErrors")),
        (Change::Silenced, Some("the configuration silences it")),
    ] {
        let mut queue = Queue::new(Form::Alertmanager, RESEND, 1);
        let fires = alert(80, Warning);
        queue.look(Monotonic(0), &verdicts([fires.clone()]));
        queue.answered(Monotonic(0), &queue.due(Monotonic(0)), Outcome::Taken);
        let changes = vec![(change, fires.clone())];
        queue.look(Monotonic(1), &Verdicts { changes, ..verdicts([]) });
        // a receiver that is told late is told why
        queue.look(Monotonic(2), &verdicts([]));
        let due = queue.due(Monotonic(2));
        assert_eq!((1, true), (due.len(), due[0].ended.is_some()));
        assert_eq!(reason, due[0].reason.as_deref());
        let style = style(Form::Alertmanager);
        let (body, _) = payload::body(&style, THEN, &due).expect("it can be encoded");
        let got: Value = serde_json::from_slice(&body).expect("it is JSON");
        assert_eq!(reason, got[0]["annotations"]["ended"].as_str());
        queue.look(Monotonic(3), &verdicts([fires]));
        let due = queue.due(Monotonic(3));
        assert_eq!((None, None), (due[0].ended, due[0].reason.as_deref()));
    }
}

#[test]
fn what_fires_and_cannot_be_told_says_so() {
    let mut alert = alert(80, Warning);
    Arc::make_mut(&mut alert).unknown = Some(Untold { since: THEN, why: Absent::NoEbpf });
    let telling = Telling { alert, ..telling(None) };
    let style = style(Form::Webhook);
    let (body, _) = payload::body(&style, THEN, &[telling]).expect("it can be encoded");
    let got: Value = serde_json::from_slice(&body).expect("it is JSON");
    let unknown = "cannot be told since 2023-11-14T22:13:20.000Z: no eBPF program runs";
    assert_eq!(json!(unknown), got["alerts"][0]["annotations"]["unknown"]);
    assert_eq!(json!("firing"), got["alerts"][0]["status"]);
}

#[test]
fn what_changes_while_a_request_is_under_way_is_sent_after_it() {
    let mut scene = Scene::new();
    scene.queue.look(scene.now(), &verdicts([alert(80, Warning)]));
    let first = scene.queue.due(scene.now());
    scene.queue.look(scene.now(), &verdicts([]));
    scene.queue.answered(scene.now(), &first, Outcome::Taken);
    let second = scene.queue.due(scene.now());
    assert_eq!(1, second.len());
    assert!(second[0].ended.is_some());
}

#[test]
fn what_is_refused_is_sent_again_only_when_it_is_due_and_fires() {
    let mut scene = Scene::new();
    let sent = scene.run(61, &[(80, Warning)], Outcome::Refused);
    assert_eq!(vec![0, 60], sent.iter().map(|it| it.0).collect::<Vec<_>>());
    let sent = scene.run(100, &[], Outcome::Refused);
    assert_eq!(vec![(61, 80, Warning, true)], sent);
}

#[test]
fn ten_thousand_alerts_are_sent_in_batches_and_no_more_are_kept() {
    let mut queue = Queue::new(Form::Alertmanager, RESEND, 1);
    let all = |n: u16| verdicts((1..=n).map(|port| alert(port, Warning)));
    let most = u16::try_from(MOST).expect("a port");
    assert_eq!(1, queue.look(Monotonic(0), &all(most + 1)));
    let mut n = Vec::new();
    loop {
        let mut due = queue.due(Monotonic(0));
        if due.is_empty() {
            break;
        }
        let style = style(Form::Alertmanager);
        let (body, taken) = payload::body(&style, THEN, &due).expect("it can be encoded");
        assert!(body.len() <= LARGEST + 2, "{}", body.len());
        due.truncate(taken);
        queue.answered(Monotonic(0), &due, Outcome::Taken);
        n.push(taken);
    }
    assert_eq!(MOST, n.iter().sum::<usize>());
    assert_eq!(MOST / BATCH, n.len());
    // one that is over makes room
    let mut others = all(most + 1);
    others.alerts.remove(0);
    assert_eq!(1, queue.look(Monotonic(1), &others));
    assert_eq!(0, queue.look(Monotonic(2), &others));
    assert_eq!(1, queue.due(Monotonic(2)).len());
}

/// What is over is sorted once, and not looked through for each that is new.
#[test]
fn as_many_others_at_once_take_the_place_of_what_has_been_over_for_longest() {
    let most = u16::try_from(MOST).expect("a port");
    let all = |ports: std::ops::Range<u16>| verdicts(ports.map(|port| alert(port, Warning)));
    let with_one_again = |ports| {
        let mut told = all(ports);
        told.alerts.insert(0, alert(most / 2, Warning));
        told
    };
    let half = || {
        let mut queue = Queue::new(Form::Alertmanager, RESEND, 1);
        queue.look(Monotonic(0), &all(0..most));
        // first one half of them is over, then the other
        queue.look(Monotonic(1), &all(most / 2..most));
        queue.look(Monotonic(2), &all(0..0));
        queue
    };
    let mut queue = half();
    assert_eq!(0, queue.look(Monotonic(3), &all(most..most + most / 2)));
    let mut over = Vec::new();
    while let due @ [_, ..] = &*queue.due(Monotonic(3)) {
        let ended = due.iter().filter(|it| it.ended.is_some());
        over.extend(ended.filter_map(|it| it.alert.subject.labels.port));
        queue.answered(Monotonic(3), due, Outcome::Taken);
    }
    over.sort_unstable();
    assert_eq!((most / 2..most).collect::<Vec<_>>(), over);
    // one that fires again keeps its place
    assert_eq!(1, half().look(Monotonic(3), &with_one_again(most..2 * most)));
}

#[test]
fn another_process_that_fails_is_told_at_once() {
    let of = |kind, pids: &[u32]| {
        let mut alert = alert(80, Warning);
        let subject = Arc::make_mut(&mut Arc::make_mut(&mut alert).subject);
        (subject.kind, subject.pids) = (kind, pids.iter().map(|&pid| Pid(pid)).collect());
        verdicts([alert])
    };
    #[track_caller]
    fn check(before: &Verdicts, after: &Verdicts, expected: usize) {
        let mut queue = Queue::new(Form::Alertmanager, RESEND, 1);
        queue.look(Monotonic(0), before);
        let due = queue.due(Monotonic(0));
        queue.answered(Monotonic(0), &due, Outcome::Taken);
        queue.look(Monotonic(1), after);
        assert_eq!(expected, queue.due(Monotonic(1)).len(), "{before:?} {after:?}");
    }
    let (caller, listener) = (SubjectKind::Caller, SubjectKind::Listener);
    check(&of(caller, &[7]), &of(caller, &[7, 8]), 1);
    check(&of(caller, &[7, 8]), &of(caller, &[8]), 0);
    check(&of(caller, &[7]), &of(caller, &[7]), 0);
    // workers come and go
    check(&of(listener, &[7]), &of(listener, &[7, 8]), 0);
}

fn style(form: Form) -> Style {
    let labels = vec![("cluster".to_owned(), "eu1".to_owned())];
    Style { form, instance: "host1".into(), labels, resend: RESEND }
}

fn telling(ended: Option<UnixTime>) -> Telling {
    Telling {
        key: 255,
        alert: alert(80, Critical),
        ended,
        reason: None,
        group_fires: ended.is_none(),
    }
}

#[track_caller]
fn check(form: Form, now: UnixTime, telling: Telling, expected: &Value) {
    let (body, n) = payload::body(&style(form), now, &[telling]).expect("it can be encoded");
    assert_eq!(1, n);
    let got: Value = serde_json::from_slice(&body).expect("it is JSON");
    assert_eq!(*expected, got);
}

#[test]
fn an_alert_has_all_that_alertmanager_and_people_need() {
    let mut expected = json!({
        "labels": {
            "alertname": "BacklogdListenerStalled", "severity": "critical", "instance": "host1",
            "cluster": "eu1", "netns": "7", "addr": "0.0.0.0", "port": "80", "comm": "nginx",
        },
        "annotations": {
            "summary": "Connections wait and nobody accepts them",
            "description": "nginx 0.0.0.0:80: 7 connections wait",
            "why": "Clients believe that they are connected.",
            "cause": "the process is stopped",
            "mend": "kill -CONT 100",
            "pids": "100, 101",
        },
        "startsAt": "2023-11-14T22:13:20.000Z",
        "endsAt": "2023-11-14T22:17:21.000Z",
    });
    let later = |seconds: u64| UnixTime(THEN.0 + seconds * 1_000_000_000);
    check(Form::Alertmanager, later(1), telling(None), &json!([expected]));
    expected["endsAt"] = "2023-11-14T22:13:50.000Z".into();
    check(Form::Alertmanager, later(90), telling(Some(later(30))), &json!([expected]));
    // a clock that was put back by an hour
    let earlier = UnixTime(THEN.0 - 3600 * 1_000_000_000);
    expected["startsAt"] = "2023-11-14T21:13:20.000Z".into();
    expected["endsAt"] = "2023-11-14T21:13:20.000Z".into();
    check(Form::Alertmanager, earlier, telling(Some(earlier)), &json!([expected]));
}

#[test]
fn a_webhook_gets_the_form_of_alertmanagers_own() {
    let (body, _) = payload::body(&style(Form::Webhook), THEN, &[telling(None)]).expect("encoded");
    let got: Value = serde_json::from_slice(&body).expect("it is JSON");
    assert_eq!((&json!("4"), &json!("firing")), (&got["version"], &got["status"]));
    let group = json!({"alertname": "BacklogdListenerStalled", "instance": "host1"});
    let mut common = group.clone();
    common["cluster"] = "eu1".into();
    assert_eq!((&group, &common), (&got["groupLabels"], &got["commonLabels"]));
    let key = r#"{}:{alertname="BacklogdListenerStalled", instance="host1"}"#;
    assert_eq!(json!(key), got["groupKey"]);
    let alert = &got["alerts"][0];
    assert_eq!(
        (&json!("firing"), &json!("00000000000000ff")),
        (&alert["status"], &alert["fingerprint"])
    );
    assert_eq!(json!("0001-01-01T00:00:00Z"), alert["endsAt"]);
    let (body, _) =
        payload::body(&style(Form::Webhook), THEN, &[telling(Some(THEN))]).expect("encoded");
    let got: Value = serde_json::from_slice(&body).expect("it is JSON");
    assert_eq!(
        (&json!("resolved"), &json!("resolved")),
        (&got["status"], &got["alerts"][0]["status"])
    );
}

/// An alert of another name.
fn other(port: u16) -> Arc<Alert> {
    static OTHER: About = About { name: "SlowAccept", ..ABOUT };
    let mut other = Arc::unwrap_or_clone(alert(port, Warning));
    (other.id, other.about) = (AlertId(1_000 + u64::from(port)), &OTHER);
    Arc::new(other)
}

#[test]
fn a_webhook_is_told_of_one_group_at_a_time_which_fires_while_any_of_it_does() {
    let mut queue = Queue::new(Form::Webhook, RESEND, 1);
    // status of the group, its name, and of each alert its port and status
    let sent = |queue: &mut Queue, at: u64| {
        let (at, mut sent) = (Monotonic(at * 1_000_000_000), Vec::new());
        loop {
            let due = queue.due(at);
            if due.is_empty() {
                return sent;
            }
            let body = payload::body(&style(Form::Webhook), THEN, &due).expect("it can be encoded");
            let got: Value = serde_json::from_slice(&body.0).expect("it is JSON");
            queue.answered(at, &due, Outcome::Taken);
            let name = got["groupLabels"]["alertname"].as_str().expect("a name");
            let mut line = format!("{} {name}", got["status"].as_str().expect("a status"));
            for alert in got["alerts"].as_array().expect("alerts") {
                assert_eq!(name, alert["labels"]["alertname"]);
                let (port, status) = (&alert["labels"]["port"], &alert["status"]);
                line += &format!(" {}={}", port.as_str().unwrap(), status.as_str().unwrap());
            }
            sent.push(line);
        }
    };
    let stalled = |port| alert(port, Warning);
    queue.look(Monotonic(0), &verdicts([stalled(80), stalled(81), other(80)]));
    let mut first = sent(&mut queue, 0);
    first.sort();
    assert_eq!(2, first.len(), "{first:?}");
    assert!(first[0].starts_with("firing BacklogdListenerStalled ") && first[0].contains(" 81="));
    assert_eq!("firing BacklogdSlowAccept 80=firing", first[1]);
    // one is over; the other of its group fires, and is not due
    queue.look(Monotonic(1), &verdicts([stalled(81), other(80)]));
    assert_eq!(vec!["firing BacklogdListenerStalled 80=resolved"], sent(&mut queue, 1));
    queue.look(Monotonic(2), &verdicts([other(80)]));
    assert_eq!(vec!["resolved BacklogdListenerStalled 81=resolved"], sent(&mut queue, 2));
    queue.look(Monotonic(3), &verdicts([]));
    assert_eq!(vec!["resolved BacklogdSlowAccept 80=resolved"], sent(&mut queue, 3));
}
