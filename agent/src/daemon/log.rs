//! What the daemon logs of each sample: alerts that change, and entries that take nothing.

use crate::detect::{alert::Verdicts, phase::Change};

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
            Change::Raised | Change::Severity => tracing::warn!(
                alert = alert_name,
                severity,
                subject,
                seen = evidence.seen,
                cause = evidence.cause,
                mend = evidence.mend,
                "{}",
                alert.about.summary
            ),
            Change::None => {}
        }
    }
    let more = verdicts.changes.len().saturating_sub(LOGGED);
    if 0 < more {
        tracing::warn!(more, "more alerts have changed: see /api/v1/alerts");
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
