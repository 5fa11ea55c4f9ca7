//! Ten incidents at a time, each of real servers and clients: what a real agent, Prometheus with the rules
//! of `dashboards/` and Alertmanager with its inhibitions tell of them is one alert each, which the agent
//! tells too, with the same labels; nothing else is told, and each is told to be over. A healthy server is
//! served beside them, and one that accepts late, [`LATE`]. Run by `cargo xtask test`, in a network
//! namespace of its own, with BACKLOGD_PROMETHEUS and BACKLOGD_ALERTMANAGER.
//!
//! So that this takes minutes each duration in the rules, windows and `for`, is divided by [`FASTER`], and
//! so are, in the agent's configuration, the times of the detections that have some in minutes, [`CONFIG`].
//! Prometheus scrapes each second, and nothing else is another.

#[path = "fixtures/files.rs"]
mod files;
#[path = "fixtures/scraper.rs"]
mod scraper;
#[path = "fixtures/services.rs"]
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    files::path,
    scraper::{AGENT, PROMETHEUS, agent, alertmanager, prometheus},
    services::{Running, get, str_of, webhook},
};

/// By how much rules are faster here.
const FASTER: u64 = 5;

/// The times of the detections likewise. CloseWaitBuildup twice so much: the agent looks at spans that are
/// one after the other, so that it may tell a whole span after Prometheus, whose span ends at each look. A
/// leak is over when it is not seen in the next table.
const CONFIG: &str = "\
[[detect]]
alert = \"ListenerStalled\"
critical_seconds = 12

[[detect]]
alert = \"CloseWaitBuildup\"
window_seconds = 60

[[detect]]
alert = \"ConnectionLeak\"
clear_for_seconds = 5
";

/// One of them, by the name of its recording.
struct Incident {
    recording: &'static str,
    /// What is told, and the highest severity.
    alert: &'static str,
    severity: &'static str,
    /// Whose it is; without a port it is about all tasks of that name.
    comm: &'static str,
    port: &'static str,
}

/// As `fixtures/incidents.py` provokes them.
#[rustfmt::skip]
const INCIDENTS: [Incident; 10] = [
    Incident { recording: "permits", alert: "BacklogdListenerStalled", severity: "critical", comm: "permits", port: "8101" },
    Incident { recording: "few_files", alert: "BacklogdAcceptErrors", severity: "critical", comm: "few-files", port: "" },
    Incident { recording: "burst", alert: "BacklogdAcceptQueueOverflow", severity: "warning", comm: "burst", port: "8103" },
    Incident { recording: "capped", alert: "BacklogdAcceptQueueOverflow", severity: "warning", comm: "capped", port: "8104" },
    Incident { recording: "close_wait", alert: "BacklogdCloseWaitBuildup", severity: "warning", comm: "never-closes", port: "8105" },
    Incident { recording: "reset_and_held", alert: "BacklogdConnectionLeak", severity: "warning", comm: "holds-reset", port: "8106" },
    Incident { recording: "ports_used_up", alert: "BacklogdConnectAddressesExhausted", severity: "critical", comm: "dialer", port: "" },
    Incident { recording: "stopped", alert: "BacklogdListenerStalled", severity: "critical", comm: "paused", port: "8108" },
    Incident { recording: "stuck_member", alert: "BacklogdListenerStalled", severity: "critical", comm: "worker", port: "8109" },
    Incident { recording: "port_not_released", alert: "BacklogdPortNotReleased", severity: "warning", comm: "restarts", port: "8110" },
];

/// Beside them, for a rule that asks a histogram, which this Prometheus has in the native form. The agent tells
/// it after three minutes, and is not waited for.
const LATE: Incident = Incident {
    recording: "late",
    alert: "BacklogdSlowAccept",
    severity: "warning",
    comm: "late",
    port: "8111",
};

fn incidents() -> impl Iterator<Item = &'static Incident> {
    INCIDENTS.iter().chain([&LATE])
}

/// Those that are over by themselves; the others when they are to end, and not before.
const OVER_BY_ITSELF: [&str; 3] = ["burst", "capped", "ports_used_up"];

/// Recordings whose incident is not among these, and why; promtool plays them.
const LEFT_OUT: [(&str, &str); 8] = [
    ("flood_with_cookies", "without fentry and kprobe no hook tells SYNs and cookies"),
    ("flood_without_cookies", "the same"),
    ("connection_per_request", "is said better by ConnectAddressesExhausted, for ports_used_up"),
    ("vanished_peers", "takes 23 minutes"),
    ("reset_and_lost", "takes 8 minutes"),
    ("files_not_closed", "takes 10 minutes"),
    ("ports_kept", "takes 10 minutes"),
    ("host_files", "is the whole machine's"),
];

/// Listeners of `fixtures/incidents.py`.
const LISTENERS: &str = "count(backlogd_listener_sockets{port=~\"81..\"})";
const N_LISTENERS: &str = "12";

/// Until Prometheus knows them, until all is told, until all is over.
const PATIENCE: Duration = Duration::from_secs(150);
/// The agent sees each second, or each table, what Prometheus sees a scrape later or earlier.
const AGREEMENT: Duration = Duration::from_secs(15);

/// Durations of rules, divided.
fn faster(rules: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let mut text = String::new();
    let mut rest = rules;
    while let Some(at) = rest.find(is_word) {
        let (before, word) = rest.split_at(at);
        let (word, after) = word.split_at(word.find(|c| !is_word(c)).unwrap_or(word.len()));
        text.push_str(before);
        match milliseconds(word) {
            Some(n) => text.push_str(&format!("{}ms", n / FASTER)),
            None => text.push_str(word),
        }
        rest = after;
    }
    text + rest
}

fn milliseconds(word: &str) -> Option<u64> {
    let unit = [("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    unit.into_iter().find_map(|(unit, n)| Some(word.strip_suffix(unit)?.parse::<u64>().ok()? * n))
}

/// What tells alerts apart, severity left out.
type Key = (String, BTreeMap<String, String>);

impl Incident {
    fn is_told_by(&self, (name, labels): &Key) -> bool {
        let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
        name == self.alert && label("comm") == self.comm && label("port") == self.port
    }
}

fn strings(labels: &Value) -> BTreeMap<String, String> {
    let all = labels.as_object().into_iter().flatten();
    all.map(|(name, value)| (name.clone(), str_of(value).to_owned())).collect()
}

/// What the agent tells, each with its severity, what another alert says better left out.
fn told_by_agent() -> BTreeMap<Key, String> {
    let answer = get(AGENT, "/api/v1/alerts").expect("the agent answers");
    let all = answer["alerts"].as_array().expect("alerts").iter();
    let told = all.filter(|alert| alert["inhibited_by"].is_null());
    told.map(|alert| {
        let name = format!("Backlogd{}", str_of(&alert["alert"]));
        ((name, strings(&alert["labels"])), str_of(&alert["severity"]).to_owned())
    })
    .collect()
}

/// What Alertmanager has told of an alert.
#[derive(Default)]
struct Told {
    /// Severities with which it fired.
    severities: BTreeSet<String>,
    /// When the highest of them fired first, and when it was over.
    fired: Option<Instant>,
    resolved: Option<Instant>,
}

/// All that was told so far.
struct Watch {
    webhook: mpsc::Receiver<Value>,
    told: BTreeMap<Key, Told>,
    failures: Vec<String>,
}

impl Watch {
    /// Takes what is told until `is_over`, or for too long.
    fn until(&mut self, what: &str, is_over: impl Fn(&Told) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let is_missing = |it: &&Incident| {
                !self.told.iter().any(|(key, told)| it.is_told_by(key) && is_over(told))
            };
            let missing: Vec<_> = incidents().filter(is_missing).collect();
            if missing.is_empty() {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            let Ok(document) = self.webhook.recv_timeout(left) else {
                let by_agent = told_by_agent();
                let missing = missing.iter().map(|it| {
                    let by_agent: Vec<_> =
                        by_agent.iter().filter(|(key, _)| it.is_told_by(key)).collect();
                    format!(
                        "{}: {} of {} is not told to be {what}; the agent tells {by_agent:?}",
                        it.recording, it.alert, it.comm
                    )
                });
                self.failures.extend(missing);
                return;
            };
            for alert in document["alerts"].as_array().into_iter().flatten() {
                self.take(alert);
            }
        }
    }

    fn take(&mut self, alert: &Value) {
        let mut labels = strings(&alert["labels"]);
        let [name, severity, ..] =
            ["alertname", "severity", "instance", "job"].map(|it| labels.remove(it));
        let (name, severity) = (name.unwrap_or_default(), severity.unwrap_or_default());
        let key = (name, labels);
        let incident = incidents().find(|it| it.is_told_by(&key));
        let is_one = |it: &Incident| {
            severity == it.severity || (severity == "warning" && it.severity == "critical")
        };
        let Some(incident) = incident.filter(|it| is_one(it)) else {
            let status = str_of(&alert["status"]);
            self.failures.push(format!("of no incident: {severity} {key:?} is {status}"));
            return;
        };
        let told = self.told.entry(key.clone()).or_default();
        let is_first = told.severities.insert(severity.clone());
        let is_highest = severity == incident.severity;
        if alert["status"] == "resolved" {
            told.resolved = is_highest.then(Instant::now).or(told.resolved);
            return;
        }
        if is_highest {
            told.fired.get_or_insert_with(Instant::now);
            told.resolved = None;
        }
        if is_first && !LATE.is_told_by(&key) {
            self.check_agent(&key, is_highest.then_some(&*severity));
        }
    }

    /// The agent tells the same, of the same listener or tasks.
    fn check_agent(&mut self, key: &Key, severity: Option<&str>) {
        let agrees = |told: &BTreeMap<Key, String>| {
            told.get(key).is_some_and(|it| severity.is_none_or(|severity| severity == it))
        };
        if let Err(told) = wait_for_agent(agrees) {
            let same_name: Vec<_> = told.iter().filter(|((name, _), _)| *name == key.0).collect();
            self.failures.push(format!(
                "Prometheus tells {key:?}, {severity:?}; of that name the agent tells {same_name:?}"
            ));
        }
    }

    /// What goes on was not told to be over.
    fn check_goes_on(&mut self) {
        for it in incidents().filter(|it| !OVER_BY_ITSELF.contains(&it.recording)) {
            let is_over =
                |(key, told): (&Key, &Told)| it.is_told_by(key) && told.resolved.is_some();
            if self.told.iter().any(is_over) {
                self.failures.push(format!("{}: told to be over, and goes on", it.recording));
            }
        }
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
    }

    /// The agent tells what was told so far, and nothing else.
    fn check_agent_tells_the_same(&mut self) {
        let is_compared = |key: &&Key| !LATE.is_told_by(key);
        let all: BTreeSet<_> = self.told.keys().filter(is_compared).cloned().collect();
        let keys = |told: &BTreeMap<Key, String>| {
            told.keys().filter(is_compared).cloned().collect::<BTreeSet<_>>()
        };
        if let Err(told) = wait_for_agent(|told| keys(told) == all) {
            let alone: Vec<_> = keys(&told).symmetric_difference(&all).cloned().collect();
            self.failures.push(format!("either the agent or Prometheus alone tells {alone:?}"));
        }
    }
}

/// Asks the agent until it tells that.
fn wait_for_agent(
    is_it: impl Fn(&BTreeMap<Key, String>) -> bool,
) -> Result<(), BTreeMap<Key, String>> {
    let end = Instant::now() + AGREEMENT;
    loop {
        let told = told_by_agent();
        if is_it(&told) {
            return Ok(());
        }
        if end < Instant::now() {
            return Err(told);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Servers and clients.
struct Load {
    all: Running,
    stdin: ChildStdin,
}

impl Load {
    fn start() -> Self {
        let mut command = Command::new("python3");
        command.arg(path("agent/tests/fixtures/incidents.py")).stdin(Stdio::piped());
        let mut all = Running::start(&mut command);
        let stdin = all.0.stdin.take().expect("it is piped");
        Self { all, stdin }
    }

    /// None of it has ended of itself, which would be told as other incidents.
    #[track_caller]
    fn check(&mut self) {
        let ended = self.all.0.try_wait().expect("it is a child");
        assert!(ended.is_none(), "fixtures/incidents.py: {ended:?}");
    }

    fn go_on(&mut self) -> Instant {
        self.stdin.write_all(b"\n").expect("it reads");
        Instant::now()
    }
}

#[track_caller]
fn wait_for_listeners() {
    let end = Instant::now() + PATIENCE;
    let target = format!("/api/v1/query?query={}", LISTENERS.replace('"', "%22"));
    loop {
        let answer = get(PROMETHEUS, &target).unwrap_or_default();
        if answer["data"]["result"][0]["value"][1] == N_LISTENERS {
            return;
        }
        assert!(Instant::now() < end, "{answer}");
        thread::sleep(Duration::from_millis(200));
    }
}

#[expect(clippy::print_stderr, reason = "how soon it was is what a reader of the log looks for")]
fn print(watch: &Watch, begun: Instant, ended: Instant) {
    let seconds = |at: Option<Instant>, from: Instant| {
        at.map(|at| at.saturating_duration_since(from).as_secs())
    };
    for ((name, labels), told) in &watch.told {
        let (fired, resolved) = (seconds(told.fired, begun), seconds(told.resolved, ended));
        eprintln!(
            "{name} {:?} after {fired:?} s, over {resolved:?} s after the end",
            labels["comm"]
        );
    }
}

#[test]
#[ignore = "needs root, Prometheus and Alertmanager: cargo xtask test"]
fn ten_incidents_at_a_time_are_told_by_name_by_both_and_nothing_else_is() {
    let folder = TempDir::new().expect("a temporary folder");
    let (addr, webhook) = webhook();
    let _agent = agent(folder.path(), CONFIG);
    let mut load = Load::start();
    let _prometheus = prometheus(folder.path(), faster, true);
    let _alertmanager = alertmanager(folder.path(), &addr);
    wait_for_listeners();
    thread::sleep(Duration::from_secs(5)); // so that rates are those of several scrapes
    let mut watch = Watch { webhook, told: BTreeMap::new(), failures: Vec::new() };
    let begun = load.go_on();
    watch.until("firing", |told| told.fired.is_some());
    watch.check_agent_tells_the_same();
    watch.check_goes_on();
    watch.check();
    let ended = load.go_on();
    watch.until("resolved", |told| told.resolved.is_some());
    load.check();
    print(&watch, begun, ended);
    watch.check();
}

#[test]
fn each_recorded_incident_is_among_these_or_has_a_reason() {
    let files = fs::read_dir(path("agent/tests/incidents")).expect("a folder");
    let name = |path: std::path::PathBuf| path.file_stem().map(|it| it.display().to_string());
    let recorded: BTreeSet<_> =
        files.map(|file| name(file.expect("a file").path()).expect("a name")).collect();
    let here = INCIDENTS.iter().map(|it| it.recording);
    let all: Vec<_> = here.chain(LEFT_OUT.map(|(name, _)| name)).map(str::to_owned).collect();
    assert_eq!(all.len(), recorded.len(), "one is there twice");
    assert_eq!(recorded, all.into_iter().collect());
}

#[test]
fn faster_rules_differ_in_durations_alone() {
    for (rules, expected) in [
        ("for: 10m", "for: 120000ms"),
        ("  interval: 30s\n", "  interval: 6000ms\n"),
        ("x[2h:5m] offset 30s", "x[1440000ms:60000ms] offset 6000ms"),
        ("a:b_c:rise75s[225s:75s]) / 75 <= 900", "a:b_c:rise75s[45000ms:15000ms]) / 75 <= 900"),
        ("{le=\"0.25\"} in 5 min, 1 %\n", "{le=\"0.25\"} in 5 min, 1 %\n"),
    ] {
        assert_eq!(expected, faster(rules));
    }
}
