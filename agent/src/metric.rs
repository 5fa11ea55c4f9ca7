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

/// The labels that name a listener or a UDP socket, in order. From `comm` on they are left out where
/// they are not known.
pub const LISTENER_LABELS: &[&str] =
    &["netns", "addr", "port", "comm", "namespace", "pod", "container"];

/// Of what a family has one series each, with its other labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Listeners.
    Listener,
    /// Bound UDP sockets.
    Udp,
    /// Network namespaces.
    Namespace,
    /// Local ports, by namespace.
    TimeWait,
    /// Destinations, by namespace.
    Destination,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Listener, Self::Udp, Self::Namespace, Self::TimeWait, Self::Destination];

    /// The label that is `other` on the series of those that have none of their own. It has no
    /// other label of the group.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Listener | Self::Udp => "addr",
            Self::Namespace | Self::TimeWait => "netns",
            Self::Destination => "dst",
        }
    }
}

/// How the members of a group that have no series of their own are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// What each counted while it was folded; histograms by bucket. Never goes back.
    Growth,
    /// The sum.
    Sum,
    /// The highest.
    Max,
    /// That of the member whose ratio is the highest.
    Worst,
    /// Not at all: each is a setting of its own.
    Omitted,
}

impl Fold {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Sum => "sum",
            Self::Max => "max",
            Self::Worst => "worst",
            Self::Omitted => "omitted",
        }
    }
}
