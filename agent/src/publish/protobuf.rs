//! A scrape as protobuf: messages `io.prometheus.client.MetricFamily`, each behind its length.
//!
//! In: a [`Scrape`]. Out: bytes. The one form that carries native histograms. Names and types are
//! those of Prometheus text 0.0.4; a value is a double, so a count beyond 2^53 is rounded. The
//! messages are those of io/prometheus/client/metrics.proto (github.com/prometheus/client_model)
//! without the fields that are never written here.

use std::fmt;

use prost::{Enumeration, Message};

use super::{
    histogram::{Classic, Native},
    metrics::{FAMILIES, Family, Scrape, Value},
};
use crate::metric::{HistogramForm, Kind};

/// A family.
#[derive(Clone, PartialEq, Message)]
pub struct MetricFamily {
    /// As in text, a counter's `_total` included.
    #[prost(string, tag = "1")]
    pub name: String,
    /// For people.
    #[prost(string, tag = "2")]
    pub help: String,
    /// Which field of [`Metric`] has the value.
    #[prost(enumeration = "MetricType", optional, tag = "3")]
    pub kind: Option<i32>,
    /// Its series.
    #[prost(message, repeated, tag = "4")]
    pub metrics: Vec<Metric>,
}

/// The number of [`MetricFamily::metrics`].
const METRICS: u32 = 4;

/// What a family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum MetricType {
    /// [`Metric::counter`].
    Counter = 0,
    /// [`Metric::gauge`].
    Gauge = 1,
    /// [`Metric::histogram`].
    Histogram = 4,
}

/// A series.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// In the order of the descriptor.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<LabelPair>,
    /// Of a gauge or an info.
    #[prost(message, optional, tag = "2")]
    pub gauge: Option<Number>,
    /// Of a counter.
    #[prost(message, optional, tag = "3")]
    pub counter: Option<Number>,
    /// Of a histogram.
    #[prost(message, optional, tag = "7")]
    pub histogram: Option<Histogram>,
}

/// A label.
#[derive(Clone, PartialEq, Message)]
pub struct LabelPair {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `Gauge` and `Counter`, which are alike.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Number {
    /// The value.
    #[prost(double, optional, tag = "1")]
    pub value: Option<f64>,
}

/// A histogram, classic, native or both.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// How many.
    #[prost(uint64, optional, tag = "1")]
    pub count: Option<u64>,
    /// Their sum.
    #[prost(double, optional, tag = "2")]
    pub sum: Option<f64>,
    /// Classic buckets.
    #[prost(message, repeated, tag = "3")]
    pub buckets: Vec<Bucket>,
    /// Of a native one: 2^schema buckets to each power of two.
    #[prost(sint32, optional, tag = "5")]
    pub schema: Option<i32>,
    /// Of a native one: the zero bucket's width.
    #[prost(double, optional, tag = "6")]
    pub zero_threshold: Option<f64>,
    /// Of a native one: how many are in the zero bucket.
    #[prost(uint64, optional, tag = "7")]
    pub zero_count: Option<u64>,
    /// Of a native one: which buckets follow.
    #[prost(message, repeated, tag = "12")]
    pub spans: Vec<BucketSpan>,
    /// Of a native one: each bucket's count, less that of the one before.
    #[prost(sint64, repeated, tag = "13")]
    pub deltas: Vec<i64>,
}

/// A classic bucket.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Bucket {
    /// How many are at most [`Self::upper_bound`].
    #[prost(uint64, optional, tag = "1")]
    pub cumulative_count: Option<u64>,
    /// Its bound; the last is infinite.
    #[prost(double, optional, tag = "2")]
    pub upper_bound: Option<f64>,
}

/// Native buckets in a row.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BucketSpan {
    /// How far after the previous span; of the first, the number of its first bucket.
    #[prost(sint32, optional, tag = "1")]
    pub offset: Option<i32>,
    /// How many buckets.
    #[prost(uint32, optional, tag = "2")]
    pub length: Option<u32>,
}

/// The whole exposition.
///
/// # Errors
/// When a family gives a value that its kind cannot have: a bug, and never one of the data.
pub fn encode(scrape: &Scrape, form: HistogramForm) -> Result<Vec<u8>, fmt::Error> {
    let mut bytes = Vec::new();
    let mut series = Series { metric: Metric::default(), bytes: Vec::new(), form };
    for family in FAMILIES.iter().copied().flatten() {
        series.bytes.clear();
        let kind = family.descriptor.kind;
        (family.emit)(scrape, &mut |labels, value| series.push(labels, kind, value))?;
        if !series.bytes.is_empty() {
            put(&mut bytes, family, &series.bytes)?;
        }
    }
    Ok(bytes)
}

/// Appends a family, of which `metrics` is encoded already: fields of a message can be joined.
fn put(bytes: &mut Vec<u8>, family: &Family, metrics: &[u8]) -> fmt::Result {
    let kind = match family.descriptor.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge | Kind::Info => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    let head = MetricFamily {
        name: family.descriptor.name.to_owned(),
        help: family.descriptor.help.to_owned(),
        kind: Some(kind.into()),
        metrics: Vec::new(),
    };
    prost::encode_length_delimiter(head.encoded_len() + metrics.len(), bytes)
        .map_err(|_| fmt::Error)?;
    head.encode(bytes).map_err(|_| fmt::Error)?;
    bytes.extend(metrics);
    Ok(())
}

/// The series of one family, encoded one by one, so that there is never more than one in memory
/// as a message.
struct Series {
    /// Used again for each, with the memory of its labels.
    metric: Metric,
    bytes: Vec<u8>,
    form: HistogramForm,
}

impl Series {
    fn push(&mut self, labels: &[(&str, &str)], kind: Kind, value: Value<'_>) -> fmt::Result {
        self.metric.labels.resize_with(labels.len(), LabelPair::default);
        for (pair, (name, value)) in self.metric.labels.iter_mut().zip(labels) {
            pair.name.clear();
            pair.name.push_str(name);
            pair.value.clear();
            pair.value.push_str(value);
        }
        (self.metric.gauge, self.metric.counter, self.metric.histogram) = (None, None, None);
        match kind {
            Kind::Counter => self.metric.counter = Some(number(value)?),
            Kind::Gauge | Kind::Info => self.metric.gauge = Some(number(value)?),
            Kind::Histogram => self.metric.histogram = Some(Histogram::new(value, self.form)?),
        }
        prost::encoding::message::encode(METRICS, &self.metric, &mut self.bytes);
        Ok(())
    }
}

fn number(value: Value<'_>) -> Result<Number, fmt::Error> {
    let value = match value {
        Value::Unsigned(n) => n as f64,
        Value::Signed(n) => n as f64,
        Value::Real(x) => x,
        Value::Info => 1.0,
        Value::Histogram(..) | Value::Octaves(_) | Value::Durations(_) => return Err(fmt::Error),
    };
    Ok(Number { value: Some(value) })
}

impl Histogram {
    fn new(value: Value<'_>, form: HistogramForm) -> Result<Self, fmt::Error> {
        match value {
            Value::Durations(durations) => Ok(Self::classic(&Classic::of_durations(durations))),
            Value::Histogram(histogram, powers) => {
                let native = || Native::new(histogram);
                Ok(Self::in_form(&Classic::new(histogram, powers), native, form))
            }
            Value::Octaves(octaves) => {
                let native = || Native::of_octaves(octaves);
                Ok(Self::in_form(&Classic::of_octaves(octaves), native, form))
            }
            Value::Unsigned(_) | Value::Signed(_) | Value::Real(_) | Value::Info => Err(fmt::Error),
        }
    }

    fn in_form(classic: &Classic, native: impl FnOnce() -> Native, form: HistogramForm) -> Self {
        let mut message = Self::classic(classic);
        if form == HistogramForm::Native {
            message.buckets.clear();
        }
        if form != HistogramForm::Classic {
            message.add_native(native());
        }
        message
    }

    fn classic(classic: &Classic) -> Self {
        let mut cumulative = 0;
        let bucket = |&(bound, n): &(f64, u64)| {
            cumulative += n;
            Bucket { cumulative_count: Some(cumulative), upper_bound: Some(bound) }
        };
        let buckets = classic.buckets.iter().map(bucket).collect();
        Self { count: Some(classic.count), sum: Some(classic.sum), buckets, ..Self::default() }
    }

    fn add_native(&mut self, native: Native) {
        let span = |(offset, length)| BucketSpan { offset: Some(offset), length: Some(length) };
        self.schema = Some(native.schema);
        self.zero_threshold = Some(native.zero_threshold);
        self.zero_count = Some(native.zero_count);
        self.spans = native.spans.into_iter().map(span).collect();
        self.deltas = native.deltas;
    }
}
