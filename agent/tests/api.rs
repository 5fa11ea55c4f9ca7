//! The routes over a real socket on loopback, as curl and Prometheus use them.

#[path = "fixtures/snapshot.rs"]
mod fixture;

use std::{io::Read as _, sync::Arc};

use backlogd::{
    detect::Judged,
    metric::HistogramForm,
    model::snapshot::{Rates, Snapshot},
    publish::{
        api::{Alerts, Check, Explanation, Listeners, SnapshotDocument, Source},
        http::{App, router},
        outlet::Deliveries,
        protobuf::MetricFamily,
    },
    shed::Watch,
    sys::clock,
    time::{Monotonic, Nanos},
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// An answer: status, header lines in lower case, body.
struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    #[track_caller]
    fn has(&self, header: &str) -> &Self {
        assert!(self.headers.iter().any(|line| line == header), "{header}: {:?}", self.headers);
        self
    }

    fn gunzip(&self) -> String {
        let mut text = String::new();
        let mut decoder = flate2::read::GzDecoder::new(self.body.as_slice());
        decoder.read_to_string(&mut text).expect("the body is gzip of text");
        text
    }
}

/// Serves `snapshots` while `client` is polled.
fn serve<F: Future>(
    snapshots: watch::Receiver<Option<Judged>>,
    client: impl FnOnce(std::net::SocketAddr) -> F,
) -> F::Output {
    limited(2000, snapshots, client)
}

/// The same with a limit to the number of series.
fn limited<F: Future>(
    series_limit: u32,
    snapshots: watch::Receiver<Option<Judged>>,
    client: impl FnOnce(std::net::SocketAddr) -> F,
) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let server = async {
            axum::serve(
                listener,
                router(App {
                    shed: Watch::default(),
                    snapshots,
                    now: clock::monotonic,
                    histograms: HistogramForm::Both,
                    series_limit,
                    deliveries: Deliveries::default(),
                }),
            )
            .await
        };
        tokio::select! {
            output = client(address) => output,
            _ = server => unreachable!("the server never returns"),
        }
    })
}

/// One request on a connection of its own; `head` is method and path, `headers` whole lines.
async fn request(address: std::net::SocketAddr, head: &str, headers: &[&str]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    let mut text = format!("{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    headers.iter().for_each(|line| text.extend([line, "\r\n"]));
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await.expect("the server reads");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("the server answers");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the head ends");
    let mut lines = std::str::from_utf8(&bytes[..end]).expect("the head is text").lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    Answer {
        status: status.parse().expect("the status is a number"),
        headers: lines.map(str::to_lowercase).collect(),
        body: bytes[end + 4..].to_vec(),
    }
}

/// A snapshot, and what the detections say of it alone.
fn judged(snapshot: Snapshot) -> Judged {
    fixture::judged(Arc::new(snapshot))
}

/// The fixture, taken now.
fn fresh() -> Snapshot {
    Snapshot { at: clock::monotonic(), ..fixture::snapshot() }
}

const OPENMETRICS: &str =
    "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROTOBUF: &str = "content-type: application/vnd.google.protobuf; \
     proto=io.prometheus.client.metricfamily; encoding=delimited";
const PROMETHEUS: &str = "content-type: text/plain; version=0.0.4; charset=utf-8";

#[test]
fn metrics_come_in_the_form_and_encoding_that_is_asked_for() {
    let (_sampler, snapshots) = watch::channel(Some(judged(fresh())));
    serve(snapshots, async |address| {
        let answer = request(address, "GET /metrics", &[]).await;
        assert_eq!(answer.status, 200);
        answer.has(OPENMETRICS).has("vary: accept, accept-encoding");
        assert!(answer.text().ends_with("# EOF\n"));
        assert!(answer.text().contains("process_resident_memory_bytes "));

        let headers = ["Accept: text/plain", "Accept-Encoding: gzip, deflate"];
        let answer = request(address, "GET /metrics", &headers).await;
        answer.has(PROMETHEUS).has("content-encoding: gzip").has("vary: accept, accept-encoding");
        let text = answer.gunzip();
        assert!(text.contains("# TYPE backlogd_listener_accepted_total counter"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");

        let refused = ["Accept: text/html", "Accept-Encoding: gzip;q=0"];
        let answer = request(address, "GET /metrics", &refused).await;
        assert!(answer.has(PROMETHEUS).text().starts_with("# HELP "));

        let native = "Accept: application/vnd.google.protobuf;\
            proto=io.prometheus.client.MetricFamily;encoding=delimited, */*;q=0.1";
        let answer = request(address, "GET /metrics", &[native]).await;
        answer.has(PROTOBUF).has("vary: accept, accept-encoding");
        let family = MetricFamily::decode_length_delimited(answer.body.as_slice());
        let name = family.expect("it begins with a family").name;
        assert_eq!(name, "backlogd_listener_accept_queue_length");

        let answer = request(address, "HEAD /metrics", &[]).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
    });
}

#[test]
fn the_series_limit_holds_for_all_who_scrape_and_not_for_the_api() {
    let (sampler, snapshots) = watch::channel(Some(judged(fresh())));
    limited(1, snapshots, async |address| {
        let names = |text: &str| {
            let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
            let lines =
                lines.filter(|(name, _)| name.starts_with("backlogd_listener_accept_queue"));
            lines.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        let first = names(request(address, "GET /metrics", &[]).await.text());
        assert!(first.iter().any(|name| name.ends_with("_length{addr=\"other\"}")), "{first:?}");
        assert_eq!(first.iter().filter(|name| name.contains("_length{")).count(), 2, "{first:?}");
        let mut calm = fresh();
        let busy = &mut calm.listeners[0];
        (busy.fill_ratio_max, busy.length_max) = (Some(0.0), Ok(0));
        busy.rates = Rates { established: Ok(0.0), accepted: Ok(0.0), drops: Ok(0.0) };
        calm.listeners[1].rates.accepted = Ok(5.0);
        sampler.send_replace(Some(judged(calm)));
        assert_eq!(names(request(address, "GET /metrics", &[]).await.text()), first);
        let answer = request(address, "GET /api/v1/listeners", &[]).await;
        let listeners: Listeners = serde_json::from_slice(&answer.body).expect("it is the type");
        assert_eq!(listeners.listeners.len(), 3);
    });
}

#[test]
fn the_api_gives_what_the_types_say() {
    let judged = judged(fresh());
    let snapshot = &judged.snapshot;
    let (_sampler, snapshots) = watch::channel(Some(judged.clone()));
    serve(snapshots, async |address| {
        let answer = request(address, "GET /api/v1/listeners", &[]).await;
        answer.has("content-type: application/json");
        let listeners: Listeners = serde_json::from_slice(&answer.body).expect("it is the type");
        assert_eq!(listeners, Listeners::new(snapshot, Source::Daemon));

        let answer = request(address, "GET /api/v1/snapshot", &["Accept-Encoding: gzip"]).await;
        let document = answer.has("content-encoding: gzip").gunzip();
        let document: SnapshotDocument = serde_json::from_str(&document).expect("it is the type");
        assert_eq!(document, SnapshotDocument::new(snapshot, Source::Daemon));

        let answer = request(address, "GET /api/v1/alerts", &[]).await;
        let alerts: Alerts = serde_json::from_slice(&answer.body).expect("it is the type");
        assert_eq!(alerts, Alerts::new(&judged, Source::Daemon));
        assert_eq!(alerts.alerts[0].alert, "ListenerStalled");

        let answer = request(address, "GET /api/v1/check", &[]).await;
        let check: Check = serde_json::from_slice(&answer.body).expect("it is the type");
        assert_eq!(check, Check::new(&judged, Source::Daemon, None));

        let answer = request(address, "GET /api/v1/explain?of=%5B::1%5D%3A5432", &[]).await;
        let stories: Explanation = serde_json::from_slice(&answer.body).expect("it is the type");
        let asked = "[::1]:5432".parse().expect("an address and a port");
        assert_eq!(stories, Explanation::new(&judged, &asked, Source::Daemon));
        let answer = request(address, "GET /api/v1/explain?pid=101", &[]).await;
        let stories: Explanation = serde_json::from_slice(&answer.body).expect("it is the type");
        assert_eq!(1, stories.listeners.len(), "{stories:?}");
        for wrong in ["", "?of=", "?of=nginx", "?port=80", "?pid=x"] {
            let answer = request(address, &format!("GET /api/v1/explain{wrong}"), &[]).await;
            assert_eq!(400, answer.status, "{wrong}");
        }
    });
}

#[test]
fn before_the_first_sample_only_the_index_and_healthz_are_fine() {
    let (_sampler, snapshots) = watch::channel(None);
    serve(snapshots, async |address| {
        for path in [
            "/metrics",
            "/readyz",
            "/api/v1/snapshot",
            "/api/v1/listeners",
            "/api/v1/alerts",
            "/api/v1/check",
            "/api/v1/explain?of=80",
        ] {
            let answer = request(address, &format!("GET {path}"), &[]).await;
            assert_eq!((answer.status, answer.text()), (503, "no sample has been taken yet\n"));
        }
        let answer = request(address, "GET /", &[]).await;
        assert_eq!(answer.status, 200);
        assert!(answer.has("content-type: text/html; charset=utf-8").text().contains("/readyz"));
        assert_eq!(request(address, "GET /healthz", &[]).await.text(), "ok\n");
    });
}

#[test]
fn readyz_says_how_each_event_is_obtained() {
    let (_sampler, snapshots) = watch::channel(Some(judged(fresh())));
    serve(snapshots, async |address| {
        let answer = request(address, "GET /readyz", &[]).await;
        let expected = "established tracepoint inet_sock_set_state\n\
            accept sampled established - length (no fentry on this kernel)\n\
            drop none - (needs a kprobe)\n";
        assert_eq!((answer.status, answer.text()), (200, expected));
    });
}

#[test]
fn healthz_notices_a_sampler_that_hangs_or_ends() {
    let (sampler, snapshots) = watch::channel(None);
    let aged = |seconds: u64, interval: u64| Snapshot {
        at: Monotonic(clock::monotonic().0.saturating_sub(seconds * 1_000_000_000)),
        interval: Ok(Nanos(interval * 1_000_000_000)),
        ..fresh()
    };
    serve(snapshots, async |address| {
        for (age, interval, expected) in [(0, 1, 200), (25, 1, 200), (40, 1, 503), (40, 5, 200)] {
            sampler.send_replace(Some(judged(aged(age, interval))));
            let answer = request(address, "GET /healthz", &[]).await;
            assert_eq!(answer.status, expected, "{age} s at {interval} s: {}", answer.text());
        }
        drop(sampler);
        let answer = request(address, "GET /healthz", &[]).await;
        assert_eq!((answer.status, answer.text()), (503, "the sampler has ended\n"));
    });
}

#[test]
fn unknown_paths_and_writes_are_refused() {
    let (_sampler, snapshots) = watch::channel(Some(judged(fresh())));
    serve(snapshots, async |address| {
        let answer = request(address, "GET /api/v2", &[]).await;
        assert_eq!((answer.status, answer.text()), (404, "not found\n"));
        for path in ["/", "/metrics", "/healthz", "/readyz", "/api/v1/snapshot"] {
            let answer = request(address, &format!("POST {path}"), &["Content-Length: 0"]).await;
            assert_eq!(answer.status, 405, "{path}");
            answer.has("allow: get,head");
        }
    });
}
