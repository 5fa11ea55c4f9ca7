//! A real Prometheus scrapes a real agent under load: every query of every panel, variable, annotation and
//! rule is asked, with classic and with native histograms, and an alert goes through Alertmanager and back.
//! Run by `cargo xtask test`, in a network namespace of its own, with BACKLOGD_PROMETHEUS and
//! BACKLOGD_ALERTMANAGER.

#[path = "fixtures/files.rs"]
mod files;

use std::{
    collections::BTreeSet,
    env, fmt, fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::files::{path, text};

const AGENT: &str = "127.0.0.1:10511";
const PROMETHEUS: &str = "127.0.0.1:9090";
const ALERTMANAGER: &str = "127.0.0.1:9093";
/// Where the load has a server that accepts nothing until it is told to.
const STUCK: &str = "8081";
/// Where the agent sheds; the load has clients for it.
const SHEDS: &str = "127.0.0.1:8086";

/// From the start of the load to the questions: so long that what is written at one look in ten seconds is
/// there several times.
const WARM: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

/// Queries that rightly give nothing here, by the panel's file and title, and why.
const EMPTY: [(&str, &str, &str); 9] = [
    ("fleet", "Expected listeners that are missing", "none is missing"),
    ("fleet", "Soonest exhaustion", "a trend needs minutes"),
    ("fleet", "TCP memory", "only the first network namespace has net.ipv4.tcp_mem"),
    (
        "listener",
        "Cookies and aborted connections",
        "without fentry and kprobe no hook tells cookies",
    ),
    ("agent", "CPU of its programs", "the kernel's BPF statistics are off"),
    ("agent", "Time of one run", "the kernel's BPF statistics are off"),
    ("agent", "Lost events", "programs that are skipped are shown only where there are any"),
    ("agent", "Put right", "without fentry and kprobe nothing is counted twice"),
    ("agent", "Failures of accept", "the agent's own listener has descriptors enough"),
];

/// Recording rules likewise.
const EMPTY_RULES: [(&str, &str); 2] = [
    (
        "instance:backlogd_tcp_memory_ratio:ratio",
        "only the first network namespace has net.ipv4.tcp_mem",
    ),
    ("instance:backlogd_host_open_fds:rise75s", "the test is over before two of its windows"),
];

/// Metrics that this kernel may not give; a query of them alone may be empty.
const BY_HOOK: [&str; 2] = ["backlogd_listener_syns_total", "backlogd_listener_syncookies_total"];

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // both fail only when it has ended
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    #[track_caller]
    fn start(command: &mut Command) -> Self {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().unwrap_or_else(|err| panic!("{command:?}: {err}")))
    }
}

fn program(variable: &str) -> std::ffi::OsString {
    env::var_os(variable).unwrap_or_else(|| panic!("{variable}: `cargo xtask test` sets it"))
}

/// The agent, with an `[[expect]]` that is there, a webhook that takes all, and a listener that sheds.
fn agent(folder: &Path, webhook: &str) -> Running {
    let config = folder.join("backlogd.toml");
    let text = format!(
        "[[expect]]\nport = 8080\n\n[[webhook]]\nurl = \"http://{webhook}/\"\nresend_seconds = 10\n\n\
         [[shed]]\nlisten = \"{SHEDS}\"\nbackend = \"127.0.0.1:8080\"\nsoft = 1\nper_ip = 100\n"
    );
    fs::write(&config, text).expect("it can be written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command.args([
        "run",
        "--listen",
        AGENT,
        "--own-netns-only",
        "--accept-tracepoints",
        "--config",
    ]);
    command.arg(config).arg("--socket").arg(folder.join("backlogd.sock"));
    Running::start(&mut command)
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

/// Prometheus as `dashboards/provisioning/prometheus.yaml` has it, but with a scrape each second.
fn prometheus(folder: &Path, native: bool) -> Running {
    let config = text("dashboards/provisioning/prometheus.yaml").replace("15s", "1s");
    fs::write(folder.join("prometheus.yaml"), config).expect("it can be written");
    for rules in ["alerts.yaml", "recording.yaml"] {
        // in groups with an interval of their own, too, there is an answer at once
        let rules_text =
            text(&format!("dashboards/{rules}")).replace("interval: 1m", "interval: 1s");
        fs::write(folder.join(rules), rules_text).expect("it can be written");
    }
    let flag = |name: &str, name_of: &str| format!("--{name}={}", folder.join(name_of).display());
    let mut command = Command::new(program("BACKLOGD_PROMETHEUS"));
    command.args([flag("config.file", "prometheus.yaml"), flag("storage.tsdb.path", "tsdb")]);
    command.arg(format!("--web.listen-address={PROMETHEUS}"));
    if native {
        command.arg("--enable-feature=native-histograms");
    }
    Running::start(&mut command)
}

/// Alertmanager with the inhibitions of `dashboards/alertmanager.yaml`, and a webhook for all.
fn alertmanager(folder: &Path, webhook: &str) -> Running {
    let shipped = text("dashboards/alertmanager.yaml");
    let (_, inhibitions) = shipped.split_once("inhibit_rules:\n").expect("it has inhibitions");
    let is_theirs = |line: &&str| !line.starts_with(|c: char| c.is_ascii_alphabetic());
    let rules: String =
        inhibitions.lines().take_while(is_theirs).map(|line| format!("{line}\n")).collect();
    let config = format!(
        "route: {{receiver: us, group_by: [alertname], group_wait: 1s, group_interval: 1s}}\n\
         receivers: [{{name: us, webhook_configs: [{{url: 'http://{webhook}/'}}]}}]\n\
         inhibit_rules:\n{rules}"
    );
    fs::write(folder.join("alertmanager.yaml"), config).expect("it can be written");
    let flag = |name: &str, name_of: &str| format!("--{name}={}", folder.join(name_of).display());
    // Debian's reads templates below /usr/share, also where the package is but unpacked
    let with_share = "mount --bind \"${0%/bin/*}/share\" /usr/share && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", with_share]).arg(program("BACKLOGD_ALERTMANAGER"));
    command.args([flag("config.file", "alertmanager.yaml"), flag("storage.path", "alerts")]);
    command.args([&format!("--web.listen-address={ALERTMANAGER}"), "--cluster.listen-address="]);
    Running::start(&mut command)
}

/// Takes posts; what it was told: status, name and port of each alert.
fn webhook() -> (String, mpsc::Receiver<(String, String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound").to_string();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Ok(document) = read(&mut stream) else { continue };
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
            for alert in document["alerts"].as_array().into_iter().flatten() {
                let label = |name: &str| str_of(&alert["labels"][name]).to_owned();
                let it = (str_of(&alert["status"]).to_owned(), label("alertname"), label("port"));
                if tell.send(it).is_err() {
                    return;
                }
            }
        }
    });
    (addr, told)
}

fn read(stream: &mut TcpStream) -> io::Result<Value> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut chunk)?;
        bytes.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        let header = head.lines().find_map(|line| {
            line.to_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
        });
        if header.is_none_or(|length| length <= body.len()) {
            return Ok(serde_json::from_str(body)?);
        }
    }
}

/// The answer of Prometheus' API to a question.
fn ask(api: &str, parameters: &[(&str, &str)]) -> Result<Vec<Value>, String> {
    let encoded: Vec<_> =
        parameters.iter().map(|(name, value)| format!("{name}={}", Encoded(value))).collect();
    let answer =
        get(&format!("/api/v1/{api}?{}", encoded.join("&"))).map_err(|err| err.to_string())?;
    match answer["status"].as_str() {
        Some("success") => {
            let data = &answer["data"];
            let result = data["result"].as_array().or(data.as_array());
            Ok(result.cloned().unwrap_or_default())
        }
        _ => Err(str_of(&answer["error"]).to_owned()),
    }
}

fn get(target: &str) -> io::Result<Value> {
    let mut stream = TcpStream::connect(PROMETHEUS)?;
    write!(stream, "GET {target} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::from_str(body)?)
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

fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether there is a number in an answer; histograms are numbers.
fn has_value(series: &[Value]) -> bool {
    series.iter().any(|it| {
        let points = it["values"].as_array().cloned().unwrap_or_else(|| vec![it["value"].clone()]);
        let is_number = |point: &Value| point[1].as_str().is_some_and(|text| text != "NaN");
        points.iter().any(is_number) || !it["histogram"].is_null() || !it["histograms"].is_null()
    })
}

/// What is asked of each panel and variable of a board; all that fails.
fn check_board(name: &str, failures: &mut Vec<String>) {
    let board: Value =
        serde_json::from_str(&text(&format!("dashboards/{name}.json"))).expect("JSON");
    let list = |pointer: &str| board.pointer(pointer).and_then(Value::as_array).expect("a list");
    let mut variables: Vec<_> =
        list("/templating/list").iter().map(|it| str_of(&it["name"])).collect();
    variables.sort_by_key(|it| std::cmp::Reverse(it.len()));
    let chosen = |expr: &str| {
        let expr = expr.replace("$__rate_interval", "10s");
        variables.iter().fold(expr, |expr, name| expr.replace(&format!("${name}"), ".*"))
    };
    for panel in list("/panels") {
        let title = str_of(&panel["title"]);
        let may_be_empty = EMPTY.iter().any(|(file, it, _)| (*file, *it) == (name, title));
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = chosen(str_of(&target["expr"]));
            let is_optional = may_be_empty || BY_HOOK.iter().any(|it| expr.contains(it));
            match range(&expr) {
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
        let query = str_of(&it["query"]["query"]);
        let inner = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')'));
        let (expr, label) = inner.and_then(|it| it.rsplit_once(", ")).expect("label_values");
        let values = ask(&format!("label/{label}/values"), &[("match[]", &chosen(expr))]);
        // no pods here: a choice of these has no value but All
        let is_optional = ["namespace", "pod"].contains(&label);
        if !values.as_ref().is_ok_and(|values| is_optional || !values.is_empty()) {
            failures.push(format!("dashboards/{name}.json, variable {label}: {values:?}\n{query}"));
        }
    }
}

/// The last twenty seconds.
fn range(expr: &str) -> Result<Vec<Value>, String> {
    let now = get("/api/v1/query?query=time()").map_err(|err| err.to_string())?;
    let now: f64 = str_of(&now["data"]["result"][1]).parse().map_err(|_| "no time".to_owned())?;
    let (start, end) = ((now - 20.0).to_string(), now.to_string());
    ask("query_range", &[("query", expr), ("start", &start), ("end", &end), ("step", "1")])
}

/// Every rule is evaluated without an error, and every recording rule gives something.
fn check_rules(failures: &mut Vec<String>) {
    let answer = get("/api/v1/rules").expect("Prometheus answers");
    let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
    let mut n = 0;
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        n += 1;
        let name = str_of(&rule["name"]);
        if rule["health"] != "ok" {
            failures.push(format!("rule {name}: {}", rule["lastError"]));
        }
        let is_optional = EMPTY_RULES.iter().any(|(it, _)| *it == name)
            || BY_HOOK.iter().any(|it| str_of(&rule["query"]).contains(it));
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
fn wait_for(told: &mpsc::Receiver<(String, String, String)>, status: &str) {
    let end = Instant::now() + PATIENCE;
    let mut others = BTreeSet::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(it) = told.recv_timeout(left) else {
            panic!("BacklogdListenerStalled is not told to be {status}, but {others:?}");
        };
        if it == (status.to_owned(), "BacklogdListenerStalled".to_owned(), STUCK.to_owned()) {
            return;
        }
        others.insert(it);
    }
}

#[track_caller]
fn check(native: bool) {
    let folder = TempDir::new().expect("a temporary folder");
    let (webhook_of_agent, _taken) = webhook();
    let (webhook_of_alertmanager, told) = webhook();
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 36767").expect("its own namespace");
    let _agent = agent(folder.path(), &webhook_of_agent);
    let mut load = Load::start();
    let _prometheus = prometheus(folder.path(), native);
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
