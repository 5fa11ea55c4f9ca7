//! Recordings through Prometheus: each incident raises the rules that say what the agent says of it, with
//! the same labels, and nothing else; healthy servers raise none. By `promtool test rules`, so run by
//! `cargo xtask test`.
//!
//! Each snapshot is rendered as a scrape of `/metrics` would be, as often as it was recorded. Incidents of
//! less than a minute end when the agent has told all of them; what is stretched: for rules that need
//! minutes that second is repeated, [`Stretch`]. Those of minutes, [`SLOW`], are played as they are: each
//! rule is raised about when the agent tells it.

#[path = "fixtures/exposition.rs"]
mod exposition;
#[path = "fixtures/files.rs"]
mod files;
#[path = "fixtures/incidents.rs"]
mod list;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use backlogd::{
    detect::{Detector, Judged, alert::Alert, phase::Change, tuning::Tuning},
    model::snapshot::Snapshot,
    publish::{
        exposition::{Format, encode},
        metrics::Scrape,
    },
    recording::Recording,
    time::Monotonic,
};
use serde_json::{Value, json};

use crate::exposition::Sample;

const ALERTS: &str = "dashboards/alerts.yaml";
/// Those of the scrape.
const TARGET: [(&str, &str); 2] = [("instance", "host:10511"), ("job", "backlogd")];
/// When the agent started, by the clock of promtool, which begins at 0: long ago, where a recording is short.
const LONG_AGO: f64 = -7200.0;
/// Over how many of the last scrapes counters are looked at that go on.
const LAST: usize = 5;

/// How an incident goes on after the second in which the agent has told all of it.
struct Stretch {
    incident: &'static str,
    /// For so many seconds.
    seconds: usize,
    /// Whether counters grow as in the last seconds; else nothing happens any more.
    goes_on: bool,
    /// The rule that fires beside; the agent inhibits it, as Alertmanager does.
    also: &'static str,
}

const STRETCHED: [Stretch; 5] = [
    // five minutes that the recording's `[[detect]]` makes five seconds
    Stretch { incident: "close_wait", seconds: 300, goes_on: false, also: "" },
    // half a minute that it makes five seconds
    Stretch { incident: "flood_with_cookies", seconds: 40, goes_on: true, also: "" },
    Stretch {
        incident: "flood_without_cookies",
        seconds: 40,
        goes_on: true,
        also: "BacklogdSynQueueOverflow",
    },
    // two reads of the table
    Stretch { incident: "ports_used_up", seconds: 10, goes_on: false, also: "" },
    Stretch { incident: "few_files", seconds: 0, goes_on: false, also: "BacklogdListenerStalled" },
];

/// Incidents that are recorded for minutes.
const SLOW: [&str; 5] =
    ["vanished_peers", "reset_and_lost", "files_not_closed", "ports_kept", "host_files"];
/// How many seconds before and after the agent tells it Prometheus may raise a rule: growth is seen at full
/// 75 s, and a listener's floors at full minutes.
const EARLIER: usize = 60;
const LATER: usize = 160;

fn snapshots(path: &Path) -> impl Iterator<Item = Snapshot> + use<> {
    let file = File::open(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let recording = Recording::open(BufReader::new(file)).expect("a recording");
    recording.snapshots().map(|snapshot| snapshot.expect("a whole recording"))
}

/// All recordings of a folder, by name.
fn recordings(folder: &str) -> BTreeMap<String, PathBuf> {
    let files = fs::read_dir(files::path(folder)).expect("a folder");
    let files = files.map(|file| file.expect("a file").path());
    files
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, path)
        })
        .collect()
}

/// Names and values.
type Labels = Vec<(String, String)>;

/// What Prometheus has of a recording: the value of each series at each scrape.
struct Scrapes {
    interval: usize,
    started: f64,
    n: usize,
    series: BTreeMap<(String, Labels), Vec<Option<f64>>>,
    /// Of those metrics alone.
    wanted: BTreeSet<String>,
}

impl Scrapes {
    fn new(interval: usize, started: f64) -> Self {
        let text = files::text(ALERTS);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let wanted = words.map(str::to_owned).collect();
        Self { interval, started, n: 0, series: BTreeMap::new(), wanted }
    }

    fn scrape(&mut self, judged: Judged) {
        let text = encode(Scrape::new(judged, None), Format::Prometheus).expect("a scrape");
        let text = String::from_utf8(text).expect("text");
        for Sample { name, mut labels, value } in exposition::parse(&text) {
            if !self.wanted.contains(&name) {
                continue;
            }
            labels.extend(TARGET.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let values = self.series.entry((name, labels)).or_default();
            values.resize(self.n, None);
            values.push(Some(value.parse().expect("a number")));
        }
        self.n += 1;
    }

    /// The last scrape, again and again.
    fn go_on(&mut self, stretch: &Stretch) {
        for ((name, _), values) in &mut self.series {
            values.resize(self.n, None);
            let Some(&Some(last)) = values.last() else { continue };
            let is_counter =
                ["_total", "_bucket", "_sum", "_count"].iter().any(|it| name.ends_with(it));
            let before = values.len().checked_sub(LAST + 1).and_then(|at| values[at]);
            let step = match before {
                Some(before) if is_counter && stretch.goes_on => (last - before) / LAST as f64,
                _ => 0.0,
            };
            values.extend((1..=stretch.seconds).map(|i| Some(last + step * i as f64)));
        }
        self.n += stretch.seconds;
    }

    fn seconds(&self) -> usize {
        (self.n - 1) * self.interval
    }

    /// A file for promtool that asks for samples at the last scrape.
    fn test(&self, query: &str, expected: &[Value]) -> Value {
        self.tests(&[self.question(query, self.seconds(), expected)])
    }

    /// What is asked `seconds` after the first scrape, at the last one at the latest.
    fn question(&self, query: &str, seconds: usize, expected: &[Value]) -> Value {
        let seconds = seconds.min(self.seconds());
        json!({"expr": query, "eval_time": format!("{seconds}s"), "exp_samples": expected})
    }

    /// A file for promtool that asks for all of these.
    fn tests(&self, questions: &[Value]) -> Value {
        let mut input: Vec<Value> = self
            .series
            .iter()
            .map(|((name, labels), values)| {
                let series = series(name, labels.iter().map(|(name, value)| (&**name, &**value)));
                json!({"series": series, "values": notation(values, self.n)})
            })
            .collect();
        for (name, value) in [("up", 1.0), ("process_start_time_seconds", self.started)] {
            let values = notation(&vec![Some(value); self.n], self.n);
            input.push(json!({"series": series(name, TARGET.into_iter()), "values": values}));
        }
        let interval = format!("{}s", self.interval);
        json!({
            "rule_files": [files::path(ALERTS)],
            "evaluation_interval": interval,
            "tests": [{
                "interval": interval,
                "input_series": input,
                "promql_expr_test": questions,
            }],
        })
    }
}

/// `name{label="value", …}`
fn series<'a>(name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", labels.join(", "))
}

/// Values as promtool reads them. A series that a scrape does not have is over.
fn notation(values: &[Option<f64>], n: usize) -> String {
    let mut words = Vec::new();
    let mut before = None;
    for value in values.iter().copied().chain(std::iter::repeat(None)).take(n) {
        words.push(match (before, value) {
            (_, Some(value)) => value.to_string(),
            (Some(_), None) => "stale".to_owned(),
            (None, None) => "_".to_owned(),
        });
        before = value;
    }
    words.join(" ")
}

/// The name of a rule, and the labels with which it fires.
fn expected(alert: &Alert) -> (String, String) {
    let name = format!("Backlogd{}", alert.about.name);
    let mut labels: BTreeMap<&str, String> = alert.subject.labels.pairs().into_iter().collect();
    labels.extend(TARGET.map(|(name, value)| (name, value.to_owned())));
    labels.insert("alertname", name.clone());
    labels.insert("alertstate", "firing".to_owned());
    labels.insert("severity", alert.severity.name().to_owned());
    let labels = series("ALERTS", labels.iter().map(|(name, value)| (*name, value.as_str())));
    (name, labels)
}

/// Runs promtool over a test; what it says when it fails.
fn promtool(name: &str, test: &Value) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec(test).expect("JSON")).expect("a file is written");
    let program = env::var_os("BACKLOGD_PROMTOOL").unwrap_or_else(|| OsString::from("promtool"));
    let output = Command::new(program).args(["test", "rules"]).arg(&path).output();
    let output = output.expect("promtool runs");
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// All snapshots of an incident, judged as it is to be.
fn judged(name: &str, path: &Path) -> Vec<Judged> {
    let tuning: Arc<Tuning> = list::tuning(name);
    let mut detector = Detector::new(tuning);
    let judge = |snapshot| {
        let verdicts = Arc::new(detector.judge(&snapshot));
        Judged { snapshot: Arc::new(snapshot), verdicts }
    };
    snapshots(path).map(judge).collect()
}

fn is_raised((change, _): &(Change, Arc<Alert>)) -> bool {
    matches!(change, Change::Raised | Change::Severity)
}

/// What the agent tells of a short incident, and what Prometheus has of it then.
fn incident(name: &str, path: &Path) -> (Scrapes, BTreeSet<(String, String)>) {
    let all = judged(name, path);
    let last = all.iter().rposition(|it| it.verdicts.changes.iter().any(is_raised));
    let last = last.unwrap_or_else(|| panic!("{name}: nothing is told"));
    let told = all[last].verdicts.told().map(|alert| expected(alert)).collect();
    let mut scrapes = Scrapes::new(1, LONG_AGO);
    all.into_iter().take(last + 1).for_each(|judged| scrapes.scrape(judged));
    (scrapes, told)
}

/// A short incident as a test: at its end what the agent tells fires, and nothing else.
fn at_its_end(name: &str, path: &Path) -> Value {
    let (mut scrapes, told) = incident(name, path);
    let stretch = STRETCHED.iter().find(|it| it.incident == name);
    if let Some(stretch) = stretch {
        scrapes.go_on(stretch);
    }
    let also = stretch.map_or("", |stretch| stretch.also);
    // the less severe one goes on beside the critical one, and Alertmanager inhibits it
    let query = format!(
        "ALERTS{{alertstate=\"firing\", severity=\"critical\"}} or \
         ALERTS{{alertstate=\"firing\", alertname!=\"{also}\"}} unless ignoring (severity) \
         ALERTS{{alertstate=\"firing\", severity=\"critical\"}}"
    );
    let samples: Vec<Value> =
        told.iter().map(|(_, labels)| json!({"labels": labels, "value": 1})).collect();
    scrapes.test(&query, &samples)
}

/// A slow incident as a test: what the agent tells is raised when it tells it, not long before, and nothing
/// else ever is.
fn as_it_goes(name: &str, path: &Path) -> Value {
    let all = judged(name, path);
    let begun = all[0].snapshot.at;
    let seconds =
        |at: Monotonic| usize::try_from((at - begun).0 / 1_000_000_000).expect("a short time");
    let interval = seconds(all[1].snapshot.at);
    assert_eq!(seconds(all[all.len() - 1].snapshot.at), interval * (all.len() - 1), "{name}");
    let mut scrapes = Scrapes::new(interval, 0.0);
    let mut told = BTreeMap::new();
    for judged in all {
        for (_, alert) in judged.verdicts.changes.iter().filter(|it| is_raised(it)) {
            told.entry(expected(alert).1).or_insert_with(|| seconds(judged.snapshot.at));
        }
        scrapes.scrape(judged);
    }
    let fired = |labels: &str| json!({"labels": labels.replacen("ALERTS", "", 1), "value": 1});
    let all: Vec<Value> = told.keys().map(|labels| fired(labels)).collect();
    let ever = "max_over_time(ALERTS{alertstate=\"firing\"}[2h])";
    let mut questions = vec![scrapes.question(ever, scrapes.seconds(), &all)];
    for (labels, at) in &told {
        let ever = format!("max_over_time({labels}[2h])");
        questions.push(scrapes.question(&ever, at.saturating_sub(EARLIER), &[]));
        questions.push(scrapes.question(&ever, at + LATER, &[fired(labels)]));
    }
    scrapes.tests(&questions)
}

#[test]
#[ignore = "needs promtool: cargo xtask test"]
fn each_incident_raises_the_rules_of_what_the_agent_tells_and_no_other() {
    let mut failed = Vec::new();
    for (name, path) in recordings("agent/tests/incidents") {
        let is_slow = SLOW.contains(&&*name);
        let test = if is_slow { as_it_goes(&name, &path) } else { at_its_end(&name, &path) };
        failed.extend(promtool(&name, &test).err());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
#[ignore = "needs promtool: cargo xtask test"]
fn healthy_servers_raise_nothing() {
    let mut failed = Vec::new();
    for (name, path) in recordings("agent/tests/health") {
        let (mut scrapes, mut detector) = (Scrapes::new(15, LONG_AGO), Detector::default());
        for (i, snapshot) in snapshots(&path).enumerate() {
            let verdicts = Arc::new(detector.judge(&snapshot));
            if i % scrapes.interval == 0 {
                scrapes.scrape(Judged { snapshot: Arc::new(snapshot), verdicts });
            }
        }
        assert!(1_700 <= scrapes.seconds(), "{name} is short");
        let query = "count_over_time(ALERTS{alertstate=\"firing\"}[1h])";
        failed.extend(promtool(&name, &scrapes.test(query, &[])).err());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
