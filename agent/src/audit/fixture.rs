//! Alerts for tests, whatever the detections would say.

use std::sync::Arc;

use super::subject_of;
use crate::{
    detect::{
        self, Judged,
        alert::{Alert, AlertId, Unknown, Verdicts},
        phase::Severity,
        rule::Evidence,
    },
    input::Absent,
    model::snapshot::Snapshot,
};

/// A snapshot of which alerts are told about listeners, by name and index.
pub(crate) fn judged(now: Snapshot, alerts: &[(&str, Severity, usize, &str)]) -> Judged {
    let alert = |&(name, severity, at, seen): &(&str, Severity, usize, &str)| {
        let about = detect::all().into_iter().find(|it| it.name == name).expect("there is one");
        let listener = &now.listeners[at];
        let known = detect::why_unserved(listener, &now).filter(|_| name == "ListenerStalled");
        let (cause, mend) = known.unzip();
        let evidence = Arc::new(Evidence {
            seen: seen.to_owned(),
            cause,
            mend: mend.unwrap_or_else(|| format!("backlogd explain {}", listener.key.port)),
            values: Vec::new(),
        });
        Arc::new(Alert {
            id: AlertId(1),
            about,
            subject: Arc::new(subject_of(listener, &now)),
            severity,
            since: now.unix_time,
            raised: now.unix_time,
            at_raise: evidence.clone(),
            latest: evidence,
            unknown: None,
            inhibited_by: None,
        })
    };
    let unknown = now.listeners.iter().filter_map(|it| it.stalled.err());
    let unknown = unknown.filter(|&why| why != Absent::TooEarly).map(|why| Unknown {
        alert: "ListenerStalled",
        why,
        subjects: 1,
        of: now.listeners.len(),
    });
    let verdicts = Verdicts {
        at: now.at,
        unix_time: now.unix_time,
        alerts: alerts.iter().map(alert).collect(),
        unknown: unknown.collect(),
        ..Verdicts::default()
    };
    Judged { snapshot: Arc::new(now), verdicts: Arc::new(verdicts) }
}
