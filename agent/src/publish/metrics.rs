//! The one list of metric families, and a snapshot's series for each.
//!
//! In: a [`Snapshot`] and the agent's own [`Usage`]. Out: series, given one by one to a sink, in
//! the order of [`FAMILIES`]; `docs/METRICS.md`. An absent value gives no series, and a family
//! without series no lines. Not here: the forms ([`super::exposition`]).

mod agent;
mod alert;
pub(super) mod call;
mod host;
mod listener;
mod namespace;
mod outlet;
mod port;
mod shed;
mod udp;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

pub(super) use self::agent::COMMIT;
use super::{
    fold::{Caps, Rows},
    histogram::{Classic, Octaves},
    outlet::Delivery,
    self_process::{self, Usage},
};
use crate::{
    detect::{Judged, alert::Verdicts},
    histogram::Histogram,
    metric::{Descriptor, Fold, Group, Kind, LISTENER_LABELS},
    model::snapshot::{Durations, Snapshot},
    shed::Counted,
};

/// All families, in the order of the scrape.
pub const FAMILIES: &[&[Family]] = &[
    listener::FAMILIES,
    udp::FAMILIES,
    call::FAMILIES,
    port::FAMILIES,
    namespace::FAMILIES,
    host::FAMILIES,
    alert::FAMILIES,
    outlet::FAMILIES,
    shed::FAMILIES,
    agent::FAMILIES,
    self_process::FAMILIES,
];

/// A family and its series.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What people are told about it.
    pub descriptor: Descriptor,
    /// Of a group whose members may be too many: which one, and how the rest is one.
    pub folds: Option<(Group, Fold)>,
    /// Gives each series of a scrape to the sink; stops at the sink's first error.
    pub(super) emit: fn(&Scrape, Sink<'_>) -> fmt::Result,
}

/// Where series go: called with labels and value of each.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[(&str, &str)], Value<'_>) -> fmt::Result;

/// The value of a series. Integers stay integers, so that they are exact beyond 2^53.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// A count or an amount.
    Unsigned(u64),
    /// An amount that may be below zero.
    Signed(i64),
    /// Seconds or a ratio.
    Real(f64),
    /// Counted by the kernel, and the bounds of its classic form, as powers of 2 s.
    Histogram(&'a Histogram, &'static [i32]),
    /// Counted by a shedding listener.
    Octaves(&'a Octaves),
    /// Counted here.
    Durations(&'a Durations),
    /// The labels say it all.
    Info,
}

/// No row has more labels: those of a listener or of an alert, which has two, and two of a destination.
const MAX_LABELS: usize = LISTENER_LABELS.len() + 4;

/// What one scrape shows.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) verdicts: Arc<Verdicts>,
    /// How many alerts have series of their own.
    pub(super) alert_limit: usize,
    pub(super) process: Option<Usage>,
    pub(super) rows: Rows,
    pub(super) deliveries: BTreeMap<String, Delivery>,
    pub(super) shed: Vec<Counted>,
}

impl Scrape {
    /// A scrape of a snapshot by itself, with series for all there is; without `process` there are
    /// no `process_*` series.
    #[must_use]
    pub fn new(judged: impl Into<Judged>, process: Option<Usage>) -> Self {
        Self::capped(judged, process, &mut Caps::new(u32::MAX))
    }

    /// The same, one of a row of scrapes with a limit to the number of series.
    #[must_use]
    pub fn capped(judged: impl Into<Judged>, process: Option<Usage>, caps: &mut Caps) -> Self {
        let Judged { snapshot, verdicts } = judged.into();
        let (rows, alert_limit) = (caps.rows(&snapshot), caps.limit());
        let (deliveries, shed) = (BTreeMap::new(), Vec::new());
        Self { snapshot, verdicts, alert_limit, process, rows, deliveries, shed }
    }

    /// The same with what receivers of alerts took.
    #[must_use]
    pub fn with_deliveries(mut self, deliveries: BTreeMap<String, Delivery>) -> Self {
        self.deliveries = deliveries;
        self
    }

    /// The same with what the shedding listeners of this process counted.
    #[must_use]
    pub fn with_shed(mut self, shed: Vec<Counted>) -> Self {
        self.shed = shed;
        self
    }

    fn encode_family(&self, family: &Family, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // Refusing the first series tells a family that has one from a family that has none.
        if (family.emit)(self, &mut |_, _| Err(fmt::Error)).is_ok() {
            return Ok(());
        }
        let Descriptor { name, kind, help, .. } = family.descriptor;
        let (name, kind) = match kind {
            Kind::Counter => (name.trim_end_matches("_total"), MetricType::Counter),
            Kind::Gauge => (name, MetricType::Gauge),
            Kind::Histogram => (name, MetricType::Histogram),
            Kind::Info => (name.trim_end_matches("_info"), MetricType::Info),
        };
        let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
        (family.emit)(self, &mut |labels, value| match (labels, value) {
            (labels, Value::Info) => metric.encode_info(&labels),
            ([], value) => encode(&mut metric, family.descriptor.kind, value),
            (labels, value) => {
                encode(&mut metric.encode_family(&labels)?, family.descriptor.kind, value)
            }
        })
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let families = FAMILIES.iter().copied().flatten();
        families.into_iter().try_for_each(|family| self.encode_family(family, &mut encoder))
    }
}

/// Gives a series the labels of its row, and one more if it is given.
fn emit(
    sink: Sink<'_>,
    labels: &[(&'static str, String)],
    more: Option<(&str, &str)>,
    value: Value<'_>,
) -> fmt::Result {
    let mut all = [("", ""); MAX_LABELS];
    let labels = labels.iter().map(|(name, value)| (*name, value.as_str()));
    let mut n = 0;
    for (place, label) in all.iter_mut().zip(labels.chain(more)) {
        *place = label;
        n += 1;
    }
    sink(&all[..n], value)
}

/// Fails when a family gives a value that its kind cannot have.
fn encode(metric: &mut MetricEncoder<'_>, kind: Kind, value: Value<'_>) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Unsigned(n)) => {
            metric.encode_counter::<NoLabelSet, u64, u64>(&n, None)
        }
        (Kind::Counter, Value::Real(x)) => metric.encode_counter::<NoLabelSet, f64, f64>(&x, None),
        (Kind::Gauge, Value::Unsigned(n)) => metric.encode_gauge(&n),
        (Kind::Gauge, Value::Signed(n)) => metric.encode_gauge(&n),
        (Kind::Gauge, Value::Real(x)) => metric.encode_gauge(&x),
        (Kind::Histogram, Value::Histogram(histogram, powers)) => {
            encode_classic(metric, &Classic::new(histogram, powers))
        }
        (Kind::Histogram, Value::Octaves(octaves)) => {
            encode_classic(metric, &Classic::of_octaves(octaves))
        }
        (Kind::Histogram, Value::Durations(durations)) => {
            encode_classic(metric, &Classic::of_durations(durations))
        }
        _ => Err(fmt::Error),
    }
}

fn encode_classic(metric: &mut MetricEncoder<'_>, classic: &Classic) -> fmt::Result {
    let Classic { count, sum, buckets } = classic;
    metric.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
}

/// `docs/METRICS.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(MARKDOWN_HEAD);
    for Family { descriptor, folds, .. } in FAMILIES.iter().copied().flatten() {
        let Descriptor { name, kind, labels, help, source } = descriptor;
        let fold = folds.map_or("", |(_, fold)| fold.name());
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        };
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} | {fold} | {source} |");
    }
    text
}

const MARKDOWN_HEAD: &str = "# Metrics

Made from the descriptors in `agent/src/publish` by `BACKLOGD_BLESS=1 cargo test -p backlogd --test golden`;
not edited by hand.

`GET /metrics` answers in OpenMetrics 1.0 text, or in Prometheus text 0.0.4 where that is asked for (in which the
type of an info is gauge). Units are base units: seconds, bytes, ratios of 1. What cannot be measured on
this kernel is absent, never 0, and `backlogd_hook_info` says how each event is obtained. A counter starts with the
listener's first snapshot, at 0 but for what is found then (`accepted_total` at the connections that are open,
`established_total` at these and the queue's length, `socket_drops_total` at `sk_drops`), and never goes back while the agent runs; a listener that is gone keeps its
counters for a while and loses its gauges. The labels `comm`, `namespace`, `pod` and `container` are left out where they
are not known.

Of listeners, UDP sockets, namespaces, local ports and destinations `series_limit` (2,000) of each have series of their
own; several series that differ in `reason`, `field` or `state` alone count as one. The others are one more, with the
label `addr=\"other\"`, `netns=\"other\"` or `dst=\"other\"` and none that names one. Who is in trouble (stalled, four fifths
full, drops) is named first, then who has traffic; a name stays where it is for a minute at least. The column \"rest\" says
what the one stands for: `sum` or `max` of those that it is for now; `worst`, the value of the one with the highest ratio;
`growth`, what each counted while it had no series of its own, so that no counter goes back and `sum(rate(…))` is the
same as without a limit; a listener that gets series of its own leaves its past in the other, and begins at 0.
`backlogd_series_folded_total` says whether there is a rest.

| name | type | labels | meaning | rest | source |
|---|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        let mut names = BTreeSet::new();
        for Family { descriptor, .. } in FAMILIES.iter().copied().flatten() {
            let name = descriptor.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("backlogd_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), descriptor.kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), descriptor.kind == Kind::Info, "{name}");
        }
    }

    #[test]
    fn help_needs_no_escapes_in_text_or_table() {
        for Family { descriptor, .. } in FAMILIES.iter().copied().flatten() {
            let Descriptor { name, help, source, .. } = descriptor;
            assert!(!help.is_empty() && !source.is_empty() && !help.ends_with('.'), "{name}");
            for text in [help, source] {
                assert!(!text.contains(['\\', '"', '\n', '|']), "{name}: {text}");
            }
        }
    }
}
