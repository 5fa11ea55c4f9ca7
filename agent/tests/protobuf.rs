//! The protobuf scrape, decoded, against the text and against a histogram made by hand.

#[path = "fixtures/snapshot.rs"]
mod fixture;
#[path = "fixtures/exposition.rs"]
mod parser;

use std::sync::Arc;

use backlogd::{
    histogram::Histogram,
    metric::HistogramForm,
    model::snapshot::Snapshot,
    publish::{
        exposition::{Format, encode},
        metrics::Scrape,
        protobuf::{self, Metric, MetricFamily, MetricType},
    },
    time::Nanos,
};
use backlogd_abi::histogram::BUCKETS;
use proptest::prelude::*;
use prost::Message as _;

fn scrape(snapshot: &Snapshot, format: Format) -> Vec<u8> {
    let scrape = Scrape::new(Arc::new(snapshot.clone()), None);
    encode(scrape, format).expect("each family gives values of its kind")
}

fn families(snapshot: &Snapshot, form: HistogramForm) -> Vec<MetricFamily> {
    let bytes = scrape(snapshot, Format::Protobuf(form));
    let mut rest = bytes.as_slice();
    let mut families = Vec::new();
    while !rest.is_empty() {
        let family = MetricFamily::decode_length_delimited(&mut rest);
        families.push(family.expect("it is a message behind its length"));
    }
    families
}

/// Name, labels sorted, and the number.
type Sample = (String, Vec<(String, String)>, f64);

fn sample(name: &str, labels: &[(&str, &str)], value: f64) -> Sample {
    let mut labels: Vec<_> = labels.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
    labels.sort();
    (name.to_owned(), labels, value)
}

/// The samples that the text of a scrape would have.
fn samples(families: &[MetricFamily]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for family in families {
        for metric in &family.metrics {
            push(&mut samples, family, metric);
        }
    }
    samples.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    samples
}

fn push(samples: &mut Vec<Sample>, family: &MetricFamily, metric: &Metric) {
    let name = &family.name;
    let labels: Vec<_> =
        metric.labels.iter().map(|pair| (pair.name.as_str(), pair.value.as_str())).collect();
    let value = match (MetricType::try_from(family.kind.expect("a type")), metric) {
        (
            Ok(MetricType::Counter),
            Metric { counter: Some(n), gauge: None, histogram: None, .. },
        )
        | (Ok(MetricType::Gauge), Metric { gauge: Some(n), counter: None, histogram: None, .. }) => {
            n.value.expect("a value")
        }
        (Ok(MetricType::Histogram), Metric { histogram: Some(histogram), .. }) => {
            let count = histogram.count.expect("a count") as f64;
            samples.push(sample(&format!("{name}_count"), &labels, count));
            let sum = histogram.sum.expect("a sum");
            samples.push(sample(&format!("{name}_sum"), &labels, sum));
            for bucket in &histogram.buckets {
                let le = le(bucket.upper_bound.expect("a bound"));
                let labels: Vec<_> = labels.iter().copied().chain([("le", le.as_str())]).collect();
                let count = bucket.cumulative_count.expect("a count") as f64;
                samples.push(sample(&format!("{name}_bucket"), &labels, count));
            }
            return;
        }
        (kind, _) => panic!("{name} is {kind:?} with {metric:?}"),
    };
    samples.push(sample(name, &labels, value));
}

/// One way to write each bound.
fn le(bound: f64) -> String {
    format!("{bound:e}")
}

fn samples_of_text(snapshot: &Snapshot) -> Vec<Sample> {
    let text = String::from_utf8(scrape(snapshot, Format::Prometheus)).expect("it is text");
    let normal = |parsed: &parser::Sample| {
        let labels = parsed.labels.iter().map(|(name, value)| match name.as_str() {
            "le" => ("le".to_owned(), le(value.parse().expect("a bound"))),
            _ => (name.clone(), value.clone()),
        });
        let labels: Vec<_> = labels.collect();
        let borrowed: Vec<_> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        sample(&parsed.name, &borrowed, parsed.value.parse().expect("a number"))
    };
    let mut samples: Vec<_> = parser::parse(&text).iter().map(normal).collect();
    samples.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    samples
}

#[test]
fn protobuf_and_text_hold_the_same_samples_and_types() {
    let snapshot = fixture::snapshot();
    let families = families(&snapshot, HistogramForm::Both);
    assert_eq!(samples(&families), samples_of_text(&snapshot));
    let text = String::from_utf8(scrape(&snapshot, Format::Prometheus)).expect("it is text");
    let heads = text.lines().filter(|line| line.starts_with("# "));
    let expected = families.iter().flat_map(|family| {
        let kind = MetricType::try_from(family.kind.expect("a type")).expect("a known one");
        let kind = format!("{kind:?}").to_lowercase();
        let MetricFamily { name, help, .. } = family;
        [format!("# HELP {name} {help}"), format!("# TYPE {name} {kind}")]
    });
    assert_eq!(heads.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

/// The waits of the first listener.
fn wait(snapshot: &Snapshot, form: HistogramForm) -> protobuf::Histogram {
    let families = families(snapshot, form);
    let name = "backlogd_listener_accept_wait_seconds";
    let family = families.into_iter().find(|family| family.name == name).expect("the family");
    family.metrics[0].histogram.clone().expect("a histogram")
}

#[test]
fn a_native_histogram_is_the_one_that_was_counted() {
    let mut buckets = [0; BUCKETS];
    // 0.95 µs and less; 2^-15 and 2^-14.5 s; 2^-0.25 to 1 s; more than 4,096 s
    for (at, n) in [(0, 3), (20, 5), (22, 1), (80, 2), (BUCKETS - 1, 4)] {
        buckets[at] = n;
    }
    let mut snapshot = fixture::snapshot();
    let counted = Histogram::new(buckets, Nanos(2_500_000_000));
    snapshot.listeners[0].accept_wait = Ok(Arc::new(counted));
    let wait = wait(&snapshot, HistogramForm::Both);
    assert_eq!((wait.count, wait.sum), (Some(15), Some(2.5)));
    assert_eq!((wait.schema, wait.zero_count), (Some(2), Some(3)));
    assert_eq!(wait.zero_threshold, Some(2_f64.powi(-20)));
    let spans: Vec<_> = wait.spans.iter().map(|span| (span.offset, span.length)).collect();
    assert_eq!(spans, [(Some(-60), Some(3)), (Some(57), Some(1)), (Some(48), Some(1))]);
    assert_eq!(wait.deltas, [5, -5, 1, 1, 2]);
    let classic: Vec<_> = wait.buckets.iter().map(|bucket| bucket.cumulative_count).collect();
    assert_eq!(classic, [3, 9, 9, 9, 9, 9, 9, 9, 11, 11, 11, 11, 15].map(Some));
}

#[test]
fn the_setting_leaves_one_form_out() {
    let snapshot = fixture::snapshot();
    let both = wait(&snapshot, HistogramForm::Both);
    let native = wait(&snapshot, HistogramForm::Native);
    assert_eq!(native, protobuf::Histogram { buckets: Vec::new(), ..both.clone() });
    let classic = wait(&snapshot, HistogramForm::Classic);
    let only = protobuf::Histogram {
        count: both.count,
        sum: both.sum,
        buckets: both.buckets,
        ..protobuf::Histogram::default()
    };
    assert_eq!(classic, only);
}

#[test]
fn durations_of_the_agent_are_classic_in_every_form() {
    let name = "backlogd_sample_duration_seconds";
    for (_, form) in HistogramForm::ALL {
        let families = families(&fixture::snapshot(), form);
        let family = families.iter().find(|family| family.name == name).expect("the family");
        let histogram = family.metrics[0].histogram.as_ref().expect("a histogram");
        assert_eq!((histogram.schema, histogram.buckets.len()), (None, 13), "{form:?}");
    }
}

/// 200 listeners with each bucket of both histograms in use.
#[test]
fn a_scrape_of_200_listeners_stays_under_2_mib() {
    let snapshot = fixture::listeners(200);
    let text = scrape(&snapshot, Format::OpenMetrics);
    assert!(text.len() < 2 << 20, "{} bytes of text", text.len());
    let protobuf = scrape(&snapshot, Format::Protobuf(HistogramForm::Both));
    assert!(protobuf.len() < text.len(), "{} bytes of protobuf", protobuf.len());
}

proptest! {
    #[test]
    fn any_histogram_and_any_name_are_alike_in_both_forms(
        comm in any::<String>(),
        filled in prop::collection::vec((0..BUCKETS, 0..1_u64 << 45), 0..60),
        sum in any::<u64>(),
    ) {
        let mut buckets = [0; BUCKETS];
        filled.iter().for_each(|&(at, n)| buckets[at] = n);
        let mut snapshot = fixture::snapshot();
        snapshot.listeners[0].comm = Some(Arc::from(comm));
        snapshot.listeners[0].accept_wait = Ok(Arc::new(Histogram::new(buckets, Nanos(sum))));
        let samples = samples(&families(&snapshot, HistogramForm::Both));
        prop_assert_eq!(samples, samples_of_text(&snapshot));
    }
}
