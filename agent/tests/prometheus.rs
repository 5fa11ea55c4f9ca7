//! A real Prometheus scrapes a real agent under load: every query of every panel, variable, annotation and
//! rule is asked, with classic and with native histograms, and an alert goes through Alertmanager and back.
//! Run by `cargo xtask test`, in a network namespace of its own, with BACKLOGD_PROMETHEUS and
//! BACKLOGD_ALERTMANAGER.

#[path = "fixtures/choices.rs"]
mod choices;
#[path = "fixtures/files.rs"]
mod files;
#[path = "fixtures/scraper.rs"]
mod scraper;
#[path = "fixtures/services.rs"]
mod services;

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Write as _,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    choices::chosen,
    files::{path, text},
    scraper::{PROMETHEUS, agent, alertmanager, prometheus},
    services::{Running, get, str_of, webhook},
};

/// Where the load has a server that accepts nothing until it is told to.
const STUCK: &str = "8081";
/// Where the agent sheds; the load has clients for it.
const SHEDS: &str = "127.0.0.1:8086";

/// From the start of the load to the questions: so long that what is written at one look in ten seconds is
/// there several times.
const WARM: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

/// Queries that rightly give nothing here, by the panel's file, title and the query's legend, and why.
const EMPTY: [(&str, &str, &str, &str); 15] = [
    ("fleet", "Agents", "do not", "those that do not answer are shown only where there are any"),
    ("fleet", "Expected listeners that are missing", "missing", "none is missing"),
    ("fleet", "Soonest exhaustion", "time left", "a trend needs minutes"),
    ("fleet", "Growing open connections", "growth", "a trend needs minutes"),
    ("fleet", "TCP memory", "{{level}}", "only the first network namespace has net.ipv4.tcp_mem"),
    (
        "listener",
        "Cookies and aborted connections",
        "cookies",
        "without fentry and kprobe no hook tells cookies",
    ),
    ("agent", "CPU of its programs", "{{program}}", "the kernel's BPF statistics are off"),
    ("agent", "Time of one run", "{{program}}", "the kernel's BPF statistics are off"),
    (
        "agent",
        "Lost events",
        "skipped: {{event}}",
        "programs that are skipped are shown only where there are any",
    ),
    ("agent", "Put right", "second copy", "without fentry and kprobe nothing is counted twice"),
    (
        "agent",
        "Failures of accept",
        "{{errno}} ({{class}})",
        "the agent's own listener has descriptors enough",
    ),
    (
        "agent",
        "Who accepts",
        "paused, {{cause}}: {{listener}} on {{instance}}",
        "all of them accept",
    ),
    ("agent", "Who accepts", "drains, seconds: {{listener}} on {{instance}}", "none drains"),
    ("agent", "Generations", "{{instance}}", "of `backlogd shed` alone"),
    ("agent", "Generations", "{{result}}: {{instance}}", "of `backlogd shed` alone"),
];

/// Recording rules likewise.
const EMPTY_RULES: [(&str, &str); 2] = [
    (
        "instance:backlogd_tcp_memory_ratio:ratio",
        "only the first network namespace has net.ipv4.tcp_mem",
    ),
    ("instance:backlogd_host_open_fds:rise75s", "the test is over before two of its windows"),
];

/// Metrics that this kernel may not give, and the events they count: without a hook of that event a query
/// of them may be empty.
const BY_HOOK: [(&str, &str); 2] =
    [("backlogd_listener_syns_total", "syn"), ("backlogd_listener_syncookies_total", "syn_cookie")];

/// An `[[expect]]` that is there, a webhook that takes all, and a listener that sheds.
fn config(webhook: &str) -> String {
    format!(
        "[[expect]]\nport = 8080\n\n[[webhook]]\nurl = \"http://{webhook}/\"\nresend_seconds = 10\n\n\
         [[shed]]\nlisten = \"{SHEDS}\"\nbackend = \"127.0.0.1:8080\"\nsoft = 1\nper_ip = 100\n"
    )
}

/// In groups with an interval of their own, too, there is an answer at once.
fn at_once(rules: &str) -> String {
    let each_second =
        |line| if str::starts_with(line, "  interval: ") { "  interval: 1s" } else { line };
    rules.lines().map(each_second).collect::<Vec<_>>().join("\n")
}

/// Servers and clients; `exhausted` has few descriptors, and so a process of its own.
struct Load {
    _all: [Running; 2],
    stdin: ChildStdin,
    _exhausted: ChildStdin,
}

impl Load {
    fn start() -> Self {
        let start = |arguments: &[&str]| {
            let script = path("agent/tests/fixtures/load.py");
            let mut command = Command::new("python3");
            let mut it = Running::start(command.arg(script).args(arguments).stdin(Stdio::piped()));
            let stdin = it.0.stdin.take().expect("it is piped");
            (it, stdin)
        };
        let (exhausted, _exhausted) = start(&["exhausted"]);
        let (all, stdin) = start(&[]);
        Self { _all: [exhausted, all], stdin, _exhausted }
    }

    fn free_the_stuck_server(&mut self) {
        self.stdin.write_all(b"\n").expect("it reads");
    }
}

/// The answer of Prometheus' API to a question.
fn ask(api: &str, parameters: &[(&str, &str)]) -> Result<Vec<Value>, String> {
    let encoded: Vec<_> =
        parameters.iter().map(|(name, value)| format!("{name}={}", Encoded(value))).collect();
    let answer = get(PROMETHEUS, &format!("/api/v1/{api}?{}", encoded.join("&")))
        .map_err(|err| err.to_string())?;
    match answer["status"].as_str() {
        Some("success") => {
            let data = &answer["data"];
            let result = data["result"].as_array().or(data.as_array());
            Ok(result.cloned().unwrap_or_default())
        }
        _ => Err(str_of(&answer["error"]).to_owned()),
    }
}

/// Text as part of a URL.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                write!(f, "{}", char::from(byte))
            }
            _ => write!(f, "%{byte:02X}"),
        })
    }
}

/// Whether there is a number in an answer; histograms are numbers.
fn has_value(series: &[Value]) -> bool {
    series.iter().any(|it| {
        let points = it["values"].as_array().cloned().unwrap_or_else(|| vec![it["value"].clone()]);
        let is_number = |point: &Value| point[1].as_str().is_some_and(|text| text != "NaN");
        points.iter().any(is_number) || !it["histogram"].is_null() || !it["histograms"].is_null()
    })
}

/// Whether a series is not of an agent: Prometheus scrapes itself, too.
fn is_foreign(series: &Value) -> bool {
    series["metric"]["job"].as_str().is_some_and(|job| job != "backlogd")
}

/// Any of those that a choice lists.
fn listed(choice: &Value) -> String {
    let (expr, label) = label_values(choice);
    let values = ask(&format!("label/{label}/values"), &[("match[]", expr)]).expect("values");
    format!("({})", values.iter().map(str_of).collect::<Vec<_>>().join("|"))
}

/// The series that a choice asks for, and the label.
fn label_values(choice: &Value) -> (&str, &str) {
    let inner = str_of(&choice["query"]["query"]).strip_prefix("label_values(");
    let parts = inner.and_then(|it| it.strip_suffix(')')).and_then(|it| it.rsplit_once(", "));
    parts.expect("label_values")
}

/// Whether a query is of an event for which this kernel has no hook.
fn lacks_a_hook(expr: &str) -> bool {
    BY_HOOK.iter().filter(|(metric, _)| expr.contains(metric)).any(|(_, event)| {
        let hooks = format!("backlogd_hook_info{{event=\"{event}\",tier!=\"none\"}}");
        range(&hooks).expect("Prometheus answers").is_empty()
    })
}

/// What is asked of each panel and variable of a board; all that fails.
fn check_board(name: &str, failures: &mut Vec<String>) {
    let board: Value =
        serde_json::from_str(&text(&format!("dashboards/{name}.json"))).expect("JSON");
    let list = |pointer: &str| board.pointer(pointer).and_then(Value::as_array).expect("a list");
    let chosen = |expr: &str| chosen(&board, expr, "10s", listed);
    for panel in list("/panels") {
        let title = str_of(&panel["title"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = chosen(str_of(&target["expr"]));
            let query = (name, title, str_of(&target["legendFormat"]));
            let is_optional =
                EMPTY.iter().any(|&(file, title, legend, _)| (file, title, legend) == query)
                    || lacks_a_hook(&expr);
            match range(&expr) {
                Ok(series) if series.iter().any(is_foreign) => failures
                    .push(format!("dashboards/{name}.json, {title}: of another job\n{expr}")),
                Ok(series) if has_value(&series) || is_optional => {}
                Ok(_) => failures.push(format!("dashboards/{name}.json, {title}: nothing\n{expr}")),
                Err(err) => {
                    failures.push(format!("dashboards/{name}.json, {title}: {err}\n{expr}"));
                }
            }
        }
    }
    for it in list("/annotations/list") {
        let expr = chosen(str_of(&it["expr"]));
        match range(&expr) {
            Ok(series) if has_value(&series) => {}
            other => {
                failures.push(format!("dashboards/{name}.json, annotation: {other:?}\n{expr}"));
            }
        }
    }
    for it in list("/templating/list").iter().filter(|it| it["type"] == "query") {
        let (expr, label) = label_values(it);
        let values = ask(&format!("label/{label}/values"), &[("match[]", &chosen(expr))]);
        // no pods here: a choice of these has no value but All
        let is_optional = ["namespace", "pod"].contains(&label);
        if !values.as_ref().is_ok_and(|values| is_optional || !values.is_empty()) {
            failures.push(format!("dashboards/{name}.json, variable {label}: {values:?}\n{expr}"));
        }
    }
}

/// The last twenty seconds.
fn range(expr: &str) -> Result<Vec<Value>, String> {
    let now = get(PROMETHEUS, "/api/v1/query?query=time()").map_err(|err| err.to_string())?;
    let now: f64 = str_of(&now["data"]["result"][1]).parse().map_err(|_| "no time".to_owned())?;
    let (start, end) = ((now - 20.0).to_string(), now.to_string());
    ask("query_range", &[("query", expr), ("start", &start), ("end", &end), ("step", "1")])
}

/// Every rule is evaluated without an error, and every recording rule gives something.
fn check_rules(failures: &mut Vec<String>) {
    let answer = get(PROMETHEUS, "/api/v1/rules").expect("Prometheus answers");
    let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
    let mut n = 0;
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        n += 1;
        let name = str_of(&rule["name"]);
        if rule["health"] != "ok" {
            failures.push(format!("rule {name}: {}", rule["lastError"]));
        }
        let is_optional =
            EMPTY_RULES.iter().any(|(it, _)| *it == name) || lacks_a_hook(str_of(&rule["query"]));
        if rule["type"] == "recording" && name.starts_with("instance") && !is_optional {
            match range(name) {
                Ok(series) if has_value(&series) => {}
                other => failures.push(format!("dashboards/recording.yaml, {name}: {other:?}")),
            }
        }
    }
    assert!(60 <= n, "{n} rules");
}

/// Until an alert about the stuck server is told so.
#[track_caller]
fn wait_for(told: &mpsc::Receiver<Value>, status: &str) {
    let end = Instant::now() + PATIENCE;
    let mut others = BTreeSet::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(document) = told.recv_timeout(left) else {
            panic!("BacklogdListenerStalled is not told to be {status}, but {others:?}");
        };
        for alert in document["alerts"].as_array().into_iter().flatten() {
            let labels = &alert["labels"];
            let it = [&alert["status"], &labels["alertname"], &labels["port"]].map(str_of);
            if it == [status, "BacklogdListenerStalled", STUCK] {
                return;
            }
            others.insert(it.map(str::to_owned));
        }
    }
}

#[track_caller]
fn check(native: bool) {
    let folder = TempDir::new().expect("a temporary folder");
    let (webhook_of_agent, _taken) = webhook();
    let (webhook_of_alertmanager, told) = webhook();
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 36767").expect("its own namespace");
    let _agent = agent(folder.path(), &config(&webhook_of_agent));
    let mut load = Load::start();
    let _prometheus = prometheus(folder.path(), at_once, native);
    let _alertmanager = alertmanager(folder.path(), &webhook_of_alertmanager);
    let asked_at = Instant::now() + WARM;
    wait_for(&told, "firing");
    thread::sleep(asked_at.saturating_duration_since(Instant::now()));
    let mut failures = Vec::new();
    ["fleet", "listener", "agent"].iter().for_each(|name| check_board(name, &mut failures));
    check_rules(&mut failures);
    assert!(failures.is_empty(), "native = {native}\n{}", failures.join("\n"));
    load.free_the_stuck_server();
    wait_for(&told, "resolved");
}

#[test]
#[ignore = "needs root, Prometheus and Alertmanager: cargo xtask test"]
fn every_query_gives_something_and_an_alert_goes_there_and_back() {
    check(false);
    check(true);
}
