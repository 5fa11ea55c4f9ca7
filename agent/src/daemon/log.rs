//! What the daemon logs of each sample: alerts that change, and entries that take nothing; and of
//! the configuration, that it silences everything.

use crate::detect::{
    alert::{Alert, Verdicts},
    phase::{Change, Severity},
    rule::Evidence,
    tuning::Tuning,
};

/// Most changes of one sample, or entries that match nothing, that are logged one by one.
const LOGGED: usize = 20;

/// One line for each alert that begins, becomes better or worse, or is told no more.
pub(super) fn log_changes(verdicts: &Verdicts) {
    for (change, alert) in verdicts.changes.iter().take(LOGGED) {
        let (alert_name, severity) = (alert.about.name, alert.severity.name());
        let subject = &alert.subject.name;
        let evidence = &alert.latest;
        match change {
            Change::Cleared => {
                tracing::info!(alert = alert_name, severity, subject, "cleared");
            }
            Change::Lost(why) => tracing::warn!(
                alert = alert_name,
                severity,
                subject,
                seen = evidence.seen,
                "cannot be told any more: {why}"
            ),
            Change::Inhibited(by) => {
                tracing::info!(
                    alert = alert_name,
                    severity,
                    subject,
                    "is told by {by} from now on"
                );
            }
            Change::Silenced => {
                tracing::info!(
                    alert = alert_name,
                    severity,
                    subject,
                    "silenced by the configuration"
                );
            }
            Change::Raised | Change::Severity => log_wrong(alert),
            Change::None => {}
        }
    }
    let more = verdicts.changes.len().saturating_sub(LOGGED);
    if 0 < more {
        tracing::warn!(more, "more alerts have changed: see /api/v1/alerts");
    }
}

/// What is wrong, as an error where somebody must act at once.
fn log_wrong(alert: &Alert) {
    let (name, severity, subject) = (alert.about.name, alert.severity.name(), &alert.subject.name);
    let Evidence { seen, cause, mend, .. } = &*alert.latest;
    let summary = alert.about.summary;
    match alert.severity {
        Severity::Critical => {
            tracing::error!(alert = name, severity, subject, seen, cause, mend, "{summary}");
        }
        Severity::Warning | Severity::Info => {
            tracing::warn!(alert = name, severity, subject, seen, cause, mend, "{summary}");
        }
    }
}

/// One line where nothing will ever be told.
pub(super) fn log_muted(tuning: &Tuning) {
    if let Some(entry) = tuning.mutes_all() {
        tracing::warn!("{} silences all detections: no alert is told", entry.place);
    }
}

/// One line for each entry that takes no subject, which may be a slip of the pen.
pub(super) fn log_idle(verdicts: &Verdicts) {
    for entry in verdicts.idle.iter().take(LOGGED) {
        tracing::warn!("{entry} has matched nothing so far");
    }
    let more = verdicts.idle.len().saturating_sub(LOGGED);
    if 0 < more {
        tracing::warn!(more, "more entries of the configuration have matched nothing so far");
    }
}
