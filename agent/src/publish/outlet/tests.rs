//! The queue by virtual time, payloads by their text, couriers against real servers.

mod queue;
mod server;
mod wire;

use std::sync::Arc;

use crate::{
    detect::{
        alert::{Alert, AlertId, Verdicts},
        phase::{Severity, Timing},
        rule::{About, Evidence},
        subject::{Labels, Subject, SubjectKind},
    },
    id::{NetnsId, Pid},
    time::{Nanos, UnixTime},
};

/// 2023-11-14T22:13:20Z
const THEN: UnixTime = UnixTime(1_700_000_000_000_000_000);

const ABOUT: About = About {
    name: "ListenerStalled",
    summary: "Connections wait and nobody accepts them",
    why: "Clients believe that they are connected.",
    timing: Timing { raise_for: Nanos(0), clear_for: Nanos(0) },
    min_age: Nanos(0),
    outlives: Nanos(0),
    thresholds: &[],
    inhibited_by: &[],
};

fn alert(port: u16, severity: Severity) -> Arc<Alert> {
    let evidence = Arc::new(Evidence {
        seen: "7 connections wait".into(),
        cause: Some("the process is stopped".into()),
        mend: "kill -CONT 100".into(),
        values: Vec::new(),
    });
    let labels = Labels {
        netns: Some(NetnsId(7)),
        addr: Some([0, 0, 0, 0].into()),
        port: Some(port),
        comm: Some("nginx".into()),
        ..Labels::default()
    };
    let name = format!("nginx 0.0.0.0:{port}");
    let pids = Arc::new([Pid(100), Pid(101)]);
    Arc::new(Alert {
        id: AlertId(port.into()),
        about: &ABOUT,
        subject: Arc::new(Subject { kind: SubjectKind::Listener, name, labels, pids }),
        severity,
        since: THEN,
        raised: THEN,
        at_raise: evidence.clone(),
        latest: evidence,
        unknown: None,
        inhibited_by: None,
    })
}

fn verdicts(alerts: impl IntoIterator<Item = Arc<Alert>>) -> Verdicts {
    let unix_time = UnixTime(THEN.0 + 60_000_000_000);
    Verdicts { unix_time, alerts: alerts.into_iter().collect(), ..Verdicts::default() }
}
