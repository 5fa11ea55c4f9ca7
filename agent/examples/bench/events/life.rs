//! What the programs of a process spend on a connection, from the SYN until both of its ends are
//! gone.

use std::collections::BTreeSet;

use anyhow::Result;

use super::meter::{Batch, Meter};
use crate::{load::Loop, report::median};

/// How much is measured: connections that are open at once, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) batches: usize,
    pub(crate) connections: u32,
}

/// One program's part in a connection.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// To accept.
    pub(crate) open: Cost,
    /// From accept on.
    pub(crate) close: Cost,
}

/// Per connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) runs: f64,
    /// Less as many runs of the empty program.
    pub(crate) nanos: f64,
}

/// Medians over batches of connections to one listener.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// Nanoseconds of a run of the empty program.
    pub(crate) empty: f64,
    /// Of all programs that ran.
    pub(crate) parts: Vec<Part>,
}

impl Life {
    /// Connects and accepts a batch, then closes both ends of all.
    pub(crate) fn measure(meter: &Meter, server: &Loop, plan: Plan) -> Result<Self> {
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        for _ in 0..plan.batches {
            let connect =
                || (0..plan.connections).map(|_| server.connect()).collect::<Result<Vec<_>>>();
            let (batch, open) = meter.over(connect)?;
            opened.push(batch);
            let close = || {
                drop(open);
                Ok(())
            };
            closed.push(meter.over(close)?.0);
        }
        let empty = median(&opened.iter().map(|batch| batch.empty).collect::<Vec<_>>());
        let names: BTreeSet<&String> = opened.iter().flat_map(|b| b.programs.keys()).collect();
        let part = |name: &String| Part {
            name: name.clone(),
            open: cost(&opened, name, empty, plan),
            close: cost(&closed, name, empty, plan),
        };
        let parts = names.into_iter().map(part).filter(|part| 0.01 < part.runs()).collect();
        Ok(Self { empty, parts })
    }

    pub(crate) fn open(&self) -> f64 {
        self.parts.iter().map(|part| part.open.nanos).sum()
    }

    pub(crate) fn close(&self) -> f64 {
        self.parts.iter().map(|part| part.close.nanos).sum()
    }

    /// Net nanoseconds of the whole.
    pub(crate) fn nanos(&self) -> f64 {
        self.open() + self.close()
    }

    pub(crate) fn runs(&self) -> f64 {
        self.parts.iter().map(Part::runs).sum()
    }

    /// With the statistics' own time.
    pub(crate) fn gross(&self) -> f64 {
        self.nanos() + self.runs() * self.empty
    }

    /// Each program in a few words.
    pub(crate) fn describe(&self) -> String {
        let words = |part: &Part| {
            format!("{} {:.0} ns in {:.2} runs", part.name, part.nanos(), part.runs())
        };
        self.parts.iter().map(words).collect::<Vec<_>>().join(", ")
    }
}

impl Part {
    pub(crate) fn runs(&self) -> f64 {
        self.open.runs + self.close.runs
    }

    pub(crate) fn nanos(&self) -> f64 {
        self.open.nanos + self.close.nanos
    }
}

fn cost(batches: &[Batch], name: &str, empty: f64, plan: Plan) -> Cost {
    let n = f64::from(plan.connections);
    let of = |pick: fn(&Cost) -> f64| {
        let each = batches.iter().map(|batch| {
            let spent = batch.programs.get(name).copied().unwrap_or_default();
            pick(&Cost { runs: spent.runs / n, nanos: (spent.nanos - spent.runs * empty) / n })
        });
        median(&each.collect::<Vec<_>>())
    };
    Cost { runs: of(|cost| cost.runs), nanos: of(|cost| cost.nanos) }
}
