//! What was measured, beside what was hoped for.

use serde_json::{Value, json};

/// What a number should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Shown to explain another number.
    None,
}

/// The rows of one bench.
#[derive(Debug)]
pub(crate) struct Report {
    bench: &'static str,
    rows: Vec<Value>,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self { bench, rows: Vec::new() }
    }

    pub(crate) fn row(
        &mut self,
        what: impl Into<String>,
        goal: Goal,
        measured: f64,
        unit: &str,
        how: impl Into<String>,
    ) {
        let (what, how) = (what.into(), how.into());
        let (goal, met) = match goal {
            Goal::AtMost(limit) => (json!({ "at_most": limit }), json!(measured <= limit)),
            Goal::AtLeast(limit) => (json!({ "at_least": limit }), json!(limit <= measured)),
            Goal::None => (Value::Null, Value::Null),
        };
        self.rows.push(json!({
            "what": what, "goal": goal, "measured": measured, "unit": unit, "met": met, "how": how,
        }));
    }

    /// What cannot be measured here, and why.
    pub(crate) fn absent(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.row(what, Goal::None, f64::NAN, "", how);
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "bench": self.bench, "rows": self.rows })
    }
}

/// The value that `part` of all values do not exceed; 0.5 is the median. NaN without values.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (1..=sorted.len()).find(|&rank| part * sorted.len() as f64 <= rank as f64);
    rank.and_then(|rank| sorted.get(rank - 1)).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}
