//! What `replay FILE alerts` tells: when each alert was told, and when it was over.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alert, SCHEMA_VERSION, Source};
use crate::{detect::alert::Verdicts, time::Nanos};

/// Changes that are kept: a recording may come from anybody.
const MOST: usize = 100_000;

/// What changed in a recording, in the order of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timeline {
    /// Version of this form.
    pub schema_version: u32,
    /// Who took the samples.
    pub source: Source,
    /// Each time that an alert was raised, changed its severity, or was told no more.
    pub changes: Vec<Changed>,
    /// Changes after the first 100,000, which are not in `changes`.
    pub left_out: u64,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// When, in seconds since the first snapshot.
    pub time_seconds: f64,
    /// The same in seconds since 1970.
    pub unix_time_seconds: f64,
    /// `raised`, `severity`, `cleared`, `unknown` when it cannot be told any more whether it still is
    /// so, `inhibited` when another alert says it better from then on, `silenced`.
    pub change: String,
    /// Why it is told no more, unless it was cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// As it is from then on, or was before it was over.
    #[serde(flatten)]
    pub alert: Alert,
}

impl Default for Timeline {
    /// Nothing so far.
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            source: Source::Recording,
            changes: Vec::new(),
            left_out: 0,
        }
    }
}

impl Timeline {
    /// Takes in what changed at `time` since the start.
    pub fn push(&mut self, time: Nanos, verdicts: &Verdicts) {
        for (change, alert) in &verdicts.changes {
            let Some(name) = change.name() else { continue };
            if MOST <= self.changes.len() {
                self.left_out += 1;
                continue;
            }
            self.changes.push(Changed {
                time_seconds: time.as_seconds(),
                unix_time_seconds: Duration::from_nanos(verdicts.unix_time.0).as_secs_f64(),
                change: name.to_owned(),
                reason: change.reason(),
                alert: Alert::new(alert),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        detect::{
            alert::Untold,
            fixture,
            phase::{Change, Lost, Severity},
        },
        input::Absent,
        time::UnixTime,
    };

    #[track_caller]
    fn check(change: Change, expected: &Value) {
        let now = fixture::snapshot(vec![fixture::listener(80)]);
        let told = [("ListenerStalled", Severity::Warning, 0, "7 connections wait")];
        let mut alert = crate::audit::fixture::judged(now, &told).verdicts.alerts[0].clone();
        let why = Absent::NotPermitted;
        match change {
            Change::Lost(_) => {
                let unknown = Untold { since: UnixTime(5_000_000_000), why };
                Arc::make_mut(&mut alert).unknown = Some(unknown);
            }
            Change::Inhibited(by) => Arc::make_mut(&mut alert).inhibited_by = Some(by),
            Change::None
            | Change::Raised
            | Change::Severity
            | Change::Cleared
            | Change::Silenced => {}
        }
        let mut timeline = Timeline::default();
        let changes = vec![(Change::None, alert.clone()), (change, alert)];
        timeline.push(Nanos(0), &Verdicts { changes, ..Verdicts::default() });
        let mut got = serde_json::to_value(&timeline.changes[0]).expect("it is JSON");
        let fields = ["change", "reason", "inhibited_by", "unknown"];
        let got: Value = fields.iter().map(|&name| (name, got[name].take())).collect();
        assert_eq!((1, expected), (timeline.changes.len(), &got));
    }

    #[test]
    fn what_is_told_no_more_has_a_reason_unless_all_is_well() {
        let plain = |change, reason| json!({"change": change, "reason": reason, "inhibited_by": null, "unknown": null});
        check(Change::Raised, &plain("raised", Value::Null));
        check(Change::Severity, &plain("severity", Value::Null));
        check(Change::Cleared, &plain("cleared", Value::Null));
        check(Change::Silenced, &plain("silenced", json!("the configuration silences it")));
        let mut inhibited = plain("inhibited", json!("it is told by AcceptErrors"));
        inhibited["inhibited_by"] = json!("AcceptErrors");
        check(Change::Inhibited("AcceptErrors"), &inhibited);
        let mut unknown = plain("unknown", json!("it cannot be told any more: not permitted"));
        unknown["unknown"] = json!({"since_unix_seconds": 5.0, "why": "not_permitted"});
        check(Change::Lost(Lost::Unknown(Absent::NotPermitted)), &unknown);
    }
}
