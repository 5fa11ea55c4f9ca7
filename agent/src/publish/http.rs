//! The routes: metrics, API, health, and an index for people. Nothing but reads.
//!
//! In: the newest snapshot, from a watch channel. Out: an axum router, for any listener. Cost: a
//! scrape of 1,000 listeners encodes for some milliseconds on the thread that serves; nothing
//! waits for that but other readers.

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use backlogd_shed::DrainStage;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    api::{Alerts, Check, Explanation, Listeners, SnapshotDocument, Source},
    exposition,
    fold::Caps,
    metrics::Scrape,
    negotiate,
    outlet::Deliveries,
    self_process::SelfProcess,
};
use crate::{
    audit::wanted::Asked,
    detect::Judged,
    id::Pid,
    metric::HistogramForm,
    shed::Watch,
    time::{Monotonic, Nanos},
};

/// What the routes show.
#[derive(Clone, Debug)]
pub struct App {
    /// The newest snapshot; `None` before the first. The sampler holds the sending end, and drops
    /// it when it ends.
    pub snapshots: watch::Receiver<Option<Judged>>,
    /// The clock of [`Snapshot::at`].
    pub now: fn() -> Monotonic,
    /// The form of histograms in protobuf.
    pub histograms: HistogramForm,
    /// How many listeners, namespaces, … have series of their own.
    pub series_limit: u32,
    /// What receivers of alerts took.
    pub deliveries: Deliveries,
    /// The shedding listeners of this process.
    pub shed: Watch,
}

/// What the handlers share.
struct Server {
    snapshots: watch::Receiver<Option<Judged>>,
    now: fn() -> Monotonic,
    histograms: HistogramForm,
    started: Monotonic,
    process: SelfProcess,
    deliveries: Deliveries,
    shed: Watch,
    /// Whoever scrapes sees the same series.
    caps: Mutex<Caps>,
}

/// A snapshot older than this and than [`TOO_OLD_INTERVALS`] means that the sampler hangs.
const TOO_OLD: Duration = Duration::from_secs(30);

/// See [`TOO_OLD`].
const TOO_OLD_INTERVALS: u64 = 10;

/// The routes of `app`.
pub fn router(app: App) -> Router {
    let App { snapshots, now, histograms, series_limit, deliveries, shed } = app;
    let (started, process) = (now(), SelfProcess::new());
    let caps = Mutex::new(Caps::new(series_limit));
    let server = Server { snapshots, now, histograms, started, process, deliveries, shed, caps };
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/api/v1/snapshot", get(snapshot))
        .route("/api/v1/listeners", get(listeners))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/check", get(check))
        .route("/api/v1/explain", get(explain))
        .fallback(async || text(StatusCode::NOT_FOUND, "not found\n"))
        .method_not_allowed_fallback(async || {
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served\n")
        })
        .with_state(Arc::new(server))
}

async fn index() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, include_str!("index.html")).into_response()
}

async fn metrics(State(server): State<Arc<Server>>, request: HeaderMap) -> Response {
    let Some(scrape) = server.scrape() else { return too_early() };
    let format = negotiate::format(&joined(&request, header::ACCEPT), server.histograms);
    match exposition::encode(scrape, format) {
        Ok(bytes) => body(&request, "Accept, Accept-Encoding", format.content_type(), bytes),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "a metric cannot be encoded\n"),
    }
}

async fn snapshot(State(server): State<Arc<Server>>, request: HeaderMap) -> Response {
    match server.newest() {
        Some(Judged { snapshot, .. }) => {
            json(&request, &SnapshotDocument::new(&snapshot, Source::Daemon))
        }
        None => too_early(),
    }
}

async fn listeners(State(server): State<Arc<Server>>, request: HeaderMap) -> Response {
    match server.newest() {
        Some(Judged { snapshot, .. }) => json(&request, &Listeners::new(&snapshot, Source::Daemon)),
        None => too_early(),
    }
}

async fn alerts(State(server): State<Arc<Server>>, request: HeaderMap) -> Response {
    match server.newest() {
        Some(judged) => json(&request, &Alerts::new(&judged, Source::Daemon)),
        None => too_early(),
    }
}

async fn check(State(server): State<Arc<Server>>, request: HeaderMap) -> Response {
    match server.newest() {
        Some(judged) => json(&request, &Check::new(&judged, Source::Daemon, None)),
        None => too_early(),
    }
}

/// `?of=PORT`, `?of=PID`, `?of=ADDR:PORT` or `?pid=PID`.
async fn explain(
    State(server): State<Arc<Server>>,
    RawQuery(query): RawQuery,
    request: HeaderMap,
) -> Response {
    let Some(asked) = query.as_deref().and_then(asked) else {
        let expected = "expected ?of=PORT, ?of=PID, ?of=ADDR:PORT or ?pid=PID\n";
        return text(StatusCode::BAD_REQUEST, expected);
    };
    match server.newest() {
        Some(judged) => json(&request, &Explanation::new(&judged, &asked, Source::Daemon)),
        None => too_early(),
    }
}

/// The one pair of a query.
fn asked(query: &str) -> Option<Asked> {
    let (name, value) = query.split_once('=')?;
    // what clients escape of an address
    let escaped =
        [("%3A", ":"), ("%3a", ":"), ("%5B", "["), ("%5b", "["), ("%5D", "]"), ("%5d", "]")];
    let value = escaped.iter().fold(value.to_owned(), |text, (from, to)| text.replace(from, to));
    match name {
        "of" => value.parse().ok(),
        "pid" => Some(Asked::Process(Pid(value.parse().ok()?))),
        _ => None,
    }
}

async fn healthz(State(server): State<Arc<Server>>) -> Response {
    match server.trouble((server.now)()) {
        None => text(StatusCode::OK, "ok\n"),
        Some(trouble) => text(StatusCode::SERVICE_UNAVAILABLE, trouble),
    }
}

async fn readyz(State(server): State<Arc<Server>>) -> Response {
    let Some(Judged { snapshot, .. }) = server.newest() else { return too_early() };
    if let Some(handle) = server.shed.handles.iter().find(|handle| !handle.is_ready()) {
        let name = handle.name();
        let is_dead = handle.stage() == DrainStage::Serving;
        let why = if is_dead { "accepts nothing more" } else { "is about to end" };
        let why = format!("the shedding listener {name} {why}\n");
        return text(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let lines = snapshot.hooks.iter().map(|hook| {
        let program = if hook.program.is_empty() { "-" } else { hook.program };
        let reasons = hook.reasons();
        let served = format!("{} {} {program}", hook.event, hook.tier.name());
        if reasons.is_empty() { format!("{served}\n") } else { format!("{served} ({reasons})\n") }
    });
    let degraded =
        snapshot.degraded.iter().map(|(source, why)| format!("degraded {source}: {why}\n"));
    text(StatusCode::OK, lines.chain(degraded).collect::<String>())
}

impl Server {
    fn newest(&self) -> Option<Judged> {
        self.snapshots.borrow().clone()
    }

    /// The newest snapshot as series; they are not encoded yet, so that nobody waits for that.
    fn scrape(&self) -> Option<Scrape> {
        // what is kept is whole between two scrapes, also if one of them panicked
        let mut caps = self.caps.lock().unwrap_or_else(PoisonError::into_inner);
        let scrape = Scrape::capped(self.newest()?, self.process.read(), &mut caps);
        Some(scrape.with_deliveries(self.deliveries.all()).with_shed(self.shed.counted()))
    }

    /// Why the sampler is taken to be dead.
    fn trouble(&self, now: Monotonic) -> Option<String> {
        if self.snapshots.has_changed().is_err() {
            return Some("the sampler has ended\n".to_owned());
        }
        let newest = self.newest();
        let last = newest.as_ref().map_or(self.started, |newest| newest.snapshot.at);
        let interval = newest.and_then(|newest| newest.snapshot.interval.ok()).unwrap_or_default();
        let allowed = Nanos::from(TOO_OLD).max(Nanos(interval.0.saturating_mul(TOO_OLD_INTERVALS)));
        let age = now - last;
        (allowed < age).then(|| {
            let (age, allowed) = (age.as_seconds(), allowed.as_seconds());
            format!("no sample for {age:.0} s, expected one within {allowed:.0} s\n")
        })
    }
}

fn too_early() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "no sample has been taken yet\n")
}

fn text(status: StatusCode, text: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text.into()).into_response()
}

fn json(request: &HeaderMap, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(bytes) => body(request, "Accept-Encoding", "application/json", bytes),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the document cannot be encoded\n"),
    }
}

/// The answer 200 with `bytes`, compressed if the client accepts that.
fn body(
    request: &HeaderMap,
    vary: &'static str,
    content_type: &'static str,
    bytes: Vec<u8>,
) -> Response {
    let compressed = negotiate::gzip(&joined(request, header::ACCEPT_ENCODING))
        .then(|| gzip(&bytes).ok())
        .flatten();
    let headers = [(header::CONTENT_TYPE, content_type), (header::VARY, vary)];
    match compressed {
        Some(bytes) => {
            let encoding = [(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
            (headers, encoding, bytes).into_response()
        }
        None => (headers, bytes).into_response(),
    }
}

/// Level 1: a scrape shrinks to a sixth, in half of the time that level 3 takes for a ninth.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// All values of a header as one list; those that are not text are left out.
fn joined(request: &HeaderMap, name: HeaderName) -> String {
    let values = request.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}
