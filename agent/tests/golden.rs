//! The published forms as committed: the whole scrape, the JSON, their schemas, docs/METRICS.md,
//! docs/DETECTIONS.md.
//!
//! `BACKLOGD_BLESS=1 cargo test -p backlogd --test golden` rewrites the documents;
//! `INSTA_UPDATE=always` the snapshots.

#[path = "fixtures/snapshot.rs"]
mod fixture;
#[path = "fixtures/exposition.rs"]
mod parser;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use backlogd::{
    cli::doctor::report::Report,
    detect,
    metric::Kind,
    model::snapshot::Snapshot,
    publish::{
        api::{self, Alerts, Check, Event, Explanation, Listeners, SnapshotDocument, Timeline},
        exposition::{Format, encode},
        metrics::{self, FAMILIES, Scrape},
        outlet::Delivery,
        self_process::Usage,
    },
    shed::Counted,
};
use backlogd_shed::{Answer, Cause, Deadline, Handovers, Histogram, Pause, Reason, Stage, Stats};
use proptest::prelude::*;

fn usage() -> Usage {
    Usage {
        cpu: Duration::from_millis(1_250),
        resident_bytes: 9 << 20,
        virtual_bytes: 40 << 20,
        open_fds: 24,
        max_fds: u64::MAX,
        start_seconds: Some(1_700_000_000.25),
        threads: 3,
    }
}

/// A listener that sheds, with numbers that add up.
fn sheds() -> Counted {
    let mut stats = Stats::default();
    (stats.accepted, stats.admitted, stats.open) = (1_000, 900, 40);
    stats.shed = vec![
        ((Reason::Soft, Stage::Accept), 90),
        ((Reason::PerIp, Stage::Accept), 10),
        ((Reason::BackendDown, Stage::Handshake), 3),
        ((Reason::Rate, Stage::Accept), 0),
    ];
    stats.answers = vec![(Answer::Rst, 13), (Answer::Bytes, 85), (Answer::FallbackRst, 5)];
    stats.time_wait_closes = 85;
    stats.closed = vec![(Cause::Peer, 850), (Cause::Deadline, 7), (Cause::Shed, 3)];
    (stats.exempt_open, stats.lingering, stats.handshaking) = (2, 1, 4);
    (stats.peers_tracked, stats.peers_evicted) = (30, 6);
    (stats.bytes_in, stats.bytes_out) = (12_345, 678_900);
    stats.deadline_timeouts = vec![(Deadline::Idle, 7)];
    stats.accept_errors = BTreeMap::from([(24, 2)]);
    stats.paused =
        vec![(Pause::Hard, Duration::ZERO), (Pause::Backoff, Duration::from_millis(1_500))];
    (stats.peers_full, stats.oversized_requests) = (9, 1);
    let batches = [(1, 700), (2, 100), (4, 25), (8, 0)];
    stats.accept_batch_size = Histogram { buckets: batches.into(), above: 0, sum: 1_000 };
    stats.accept_loop_lag = durations(-20, 25, &[(5, 3), (24, 1)]);
    stats.queue_wait = durations(-10, 17, &[(0, 60), (4, 2)]);
    stats.decision = durations(-20, 17, &[(1, 9), (2, 5), (17, 1)]);
    stats.connection_duration = durations(-10, 23, &[(0, 500), (1, 300), (10, 59), (23, 1)]);
    (stats.is_paused, stats.adaptive_limit) = (Some(Pause::Backoff), Some(80));
    let mut handovers = Handovers::default();
    (handovers.child_failed, handovers.timeout) = (2, 1);
    Counted {
        listener: "web".into(),
        stats,
        soft: 100,
        hard: 125,
        is_ready: false,
        queue: Some((5, 4_096)),
        drain_left: Some(Duration::from_millis(12_500)),
        generation: Some((3, handovers)),
    }
}

/// With `n` bounds from 2^`first` s on, of which these have counts; each a half of the bound.
fn durations(first: i32, n: u64, counted: &[(u64, u64)]) -> Histogram<Duration> {
    let bound = |place: u64| Duration::from_secs_f64(2_f64.powi(first) * (1_u64 << place) as f64);
    let count = |place| counted.iter().find(|(at, _)| *at == place).map_or(0, |(_, n)| *n);
    Histogram {
        buckets: (0..n).map(|place| (bound(place), count(place))).collect(),
        above: count(n),
        sum: counted.iter().map(|&(place, n)| bound(place).mul_f64(n as f64 / 2.0)).sum(),
    }
}

fn scrape(snapshot: Snapshot, format: Format) -> String {
    let delivery = Delivery { taken: 12, refused: 1, failed: 3, pending: 2 };
    let scrape = Scrape::new(fixture::judged(Arc::new(snapshot)), Some(usage()))
        .with_deliveries(BTreeMap::from([("alertmanager:9093".to_owned(), delivery)]))
        .with_shed(vec![sheds()]);
    let bytes = encode(scrape, format).expect("each family gives values of its kind");
    String::from_utf8(bytes).expect("it is text")
}

#[test]
fn the_openmetrics_scrape_is_as_committed() {
    let text = scrape(fixture::snapshot(), Format::OpenMetrics);
    insta::with_settings!({ filters => vec![(r#"commit="[^"]*""#, "commit=\"COMMIT\"")] }, {
        insta::assert_snapshot!("openmetrics", text);
    });
}

#[test]
fn the_prometheus_scrape_is_as_committed() {
    let text = scrape(fixture::snapshot(), Format::Prometheus);
    insta::with_settings!({ filters => vec![(r#"commit="[^"]*""#, "commit=\"COMMIT\"")] }, {
        insta::assert_snapshot!("prometheus", text);
    });
}

#[test]
fn the_snapshot_document_is_as_committed_and_reads_back() {
    let document = SnapshotDocument::new(&fixture::snapshot(), api::Source::Daemon);
    let json = serde_json::to_string_pretty(&document).expect("all keys are strings");
    let back: SnapshotDocument = serde_json::from_str(&json).expect("its own form");
    assert_eq!(document, back);
    insta::with_settings!({ filters => vec![(r#""commit": "[^"]*""#, "\"commit\": \"COMMIT\"")] }, {
        insta::assert_snapshot!("snapshot_document", json);
    });
}

#[test]
fn every_family_has_a_sample_in_the_fixture_and_only_the_labels_that_it_declares() {
    let parsed = parser::parse(&scrape(fixture::snapshot(), Format::OpenMetrics));
    for family in FAMILIES.iter().copied().flatten() {
        let descriptor = &family.descriptor;
        let suffixes = match descriptor.kind {
            Kind::Histogram => &["_bucket", "_sum", "_count"][..],
            Kind::Counter | Kind::Gauge | Kind::Info => &[""],
        };
        let names: BTreeSet<_> =
            suffixes.iter().map(|s| format!("{}{s}", descriptor.name)).collect();
        let of_family = || parsed.iter().filter(|sample| names.contains(&sample.name));
        assert!(of_family().next().is_some(), "{} has no sample", descriptor.name);
        for sample in of_family() {
            let mut declared = descriptor.labels.iter();
            let labels = sample.labels.iter().map(|(label, _)| label.as_str());
            for label in labels.filter(|&label| label != "le") {
                assert!(declared.any(|&l| l == label), "{}: {label}", descriptor.name);
            }
        }
    }
}

#[test]
fn of_a_partial_table_no_states_are_told_but_those_that_are_counted_elsewhere() {
    let mut snapshot = fixture::snapshot();
    let table = snapshot.namespaces[0].table.as_mut().expect("the fixture knows it");
    Arc::make_mut(table).table.is_partial = true;
    let parsed = parser::parse(&scrape(snapshot, Format::OpenMetrics));
    let of = |name: &str, label: &str| -> Vec<(String, String)> {
        let samples = parsed.iter().filter(|sample| sample.name == name);
        let value = |sample: &parser::Sample| {
            let (_, value) = sample.labels.iter().find(|(it, _)| it == label).expect("the label");
            (value.clone(), sample.value.clone())
        };
        samples.map(value).collect()
    };
    let told = |states: &[(&str, &str)]| -> Vec<(String, String)> {
        states.iter().map(|&(state, n)| (state.to_owned(), n.to_owned())).collect()
    };
    assert_eq!(of("backlogd_sockets", "state"), told(&[("listen", "3"), ("time_wait", "12")]));
    assert_eq!(of("backlogd_table_partial", "netns"), told(&[("4026531840", "1")]));
}

#[test]
fn a_family_without_series_has_no_lines() {
    let mut snapshot = fixture::snapshot();
    snapshot.listeners.clear();
    snapshot.udp.clear();
    let bytes = encode(Scrape::new(Arc::new(snapshot), None), Format::OpenMetrics);
    let text = String::from_utf8(bytes.expect("each family gives values of its kind"));
    let text = text.expect("it is text");
    let is_of = |name: &str| text.lines().any(|line| line.starts_with(name));
    assert!(!is_of("backlogd_listener_") && !is_of("backlogd_udp_"), "{text}");
    assert!(!text.contains("# HELP backlogd_listener_"), "{text}");
    assert!(!text.contains("process_cpu"), "{text}");
    assert!(text.ends_with("\n# EOF\n"));
}

proptest! {
    #[test]
    fn both_texts_hold_the_same_samples_and_any_name_survives(
        comm in any::<String>(),
        established in any::<u64>(),
        ratio in 0.0..1e12_f64,
    ) {
        let mut snapshot = fixture::snapshot();
        snapshot.listeners[0].comm = Some(Arc::from(comm.as_str()));
        snapshot.listeners[0].counters.established = Ok(established);
        snapshot.listeners[0].fill_ratio_max = Some(ratio);
        let openmetrics = parser::parse(&scrape(snapshot.clone(), Format::OpenMetrics));
        let prometheus = parser::parse(&scrape(snapshot, Format::Prometheus));
        prop_assert_eq!(&openmetrics, &prometheus);

        let value = |name: &str| {
            let labels = |sample: &&parser::Sample| sample.labels.contains(&("comm".into(), comm.clone()));
            let found = openmetrics.iter().filter(labels).find(|sample| sample.name == name);
            found.map(|sample| sample.value.clone()).expect("the listener has this series")
        };
        prop_assert_eq!(value("backlogd_listener_established_total"), established.to_string());
        let text = value("backlogd_listener_accept_queue_fill_ratio_max");
        prop_assert_eq!(text.parse(), Ok(ratio));
    }
}

#[test]
fn committed_documents_are_what_the_code_gives() {
    check_document("DETECTIONS.md", &detect::markdown());
    check_document("METRICS.md", &metrics::markdown());
    check_document("schema/alerts.json", &schema::<Alerts>());
    check_document("schema/check.json", &schema::<Check>());
    check_document("schema/doctor.json", &schema::<Report>());
    check_document("schema/event.json", &schema::<Event>());
    check_document("schema/explain.json", &schema::<Explanation>());
    check_document("schema/listeners.json", &schema::<Listeners>());
    check_document("schema/timeline.json", &schema::<Timeline>());
    check_document("schema/snapshot.json", &schema::<SnapshotDocument>());
}

/// Of what is written: a field that may be null is there nevertheless.
fn schema<T: schemars::JsonSchema>() -> String {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let schema = settings.into_generator().into_root_schema_for::<T>();
    serde_json::to_string_pretty(&schema).expect("all keys are strings") + "\n"
}

#[track_caller]
fn check_document(name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("BACKLOGD_BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("docs is writable");
        fs::write(&path, expected).expect("docs is writable");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == expected,
        "docs/{name} is not what the code gives; \
         run: BACKLOGD_BLESS=1 cargo test -p backlogd --test golden"
    );
}
