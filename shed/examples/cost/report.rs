//! What was measured, beside what was hoped for.

use serde_json::{Value, json};

/// The rows of the bench.
#[derive(Debug)]
pub(crate) struct Report {
    bench: &'static str,
    rows: Vec<Value>,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self { bench, rows: Vec::new() }
    }

    /// A number that should be at most `goal`; without one, it explains another.
    pub(crate) fn row(
        &mut self,
        what: impl Into<String>,
        goal: Option<f64>,
        measured: f64,
        unit: &str,
        how: impl Into<String>,
    ) {
        let (what, how): (String, String) = (what.into(), how.into());
        let met = goal.map(|limit| measured <= limit);
        let goal = goal.map(|limit| json!({ "at_most": limit }));
        self.rows.push(json!({
            "what": what, "goal": goal, "measured": measured, "unit": unit, "met": met, "how": how,
        }));
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
