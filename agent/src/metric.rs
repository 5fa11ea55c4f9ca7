//! What a metric is: the one description that the exporter and `docs/METRICS.md` are made from.

/// How a metric's value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Never goes back while the agent runs.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Counts of observations by size.
    Histogram,
    /// Always 1; the labels are the value.
    Info,
}

/// One metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The name as it stands in `/metrics`, a counter's `_total` and an info's `_info` included.
    pub name: &'static str,
    /// How its value behaves.
    pub kind: Kind,
    /// Names of its labels, in order. [`LISTENER_LABELS`] for a listener's.
    pub labels: &'static [&'static str],
    /// One sentence for people, without a full stop.
    pub help: &'static str,
    /// Where the number comes from: kernel file and function, or our own computation.
    pub source: &'static str,
}

/// In which form the protobuf exposition gives a histogram. Text has the classic one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistogramForm {
    /// Native and classic.
    #[default]
    Both,
    /// With the kernel's own buckets, four to each power of two.
    Native,
    /// With the few bounds of the text forms.
    Classic,
}

impl HistogramForm {
    /// All of them, as they are written.
    pub const ALL: [(&str, Self); 3] =
        [("both", Self::Both), ("native", Self::Native), ("classic", Self::Classic)];
}

/// The labels that name a listener, in order. `comm` is left out while the owner is not known.
pub const LISTENER_LABELS: &[&str] = &["netns", "addr", "port", "comm"];
