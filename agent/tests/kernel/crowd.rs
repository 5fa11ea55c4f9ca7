//! A host with 10,000 processes that hold no socket: the one that does is found in time.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    binary::Daemon,
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    offenders::NeverAccepts,
    owners::IN_TIME,
    tier::scaled,
};

/// Forks as often as it is told; each child waits for the end of the same pipe, and nothing is
/// started by it.
const SCRIPT: &str = "
exec 3<&0
while [ $n -gt 0 ]; do
    (read _ <&3) >/dev/null 2>&1 &
    n=$((n - 1))
done
echo ready
read _
wait";

/// What one of them takes, in KiB, and somewhat more.
const MEMORY: u64 = 400;

/// Processes without sockets. They end with it, or when the test is killed: the pipe ends then.
struct Crowd(Child);

impl Crowd {
    /// As many, or fewer where they would take more than half of the memory there is.
    fn gather(n: u64) -> Self {
        let n = n.min(available_memory() / 2 / MEMORY);
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .env("n", n.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        let crowd = Self(child);
        assert_eq!(crowd.children(), n);
        crowd
    }

    /// How many there are.
    fn children(&self) -> u64 {
        let pid = self.0.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(path).expect("alive").split_whitespace().count() as u64
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // it waits for its children
        let _ = self.0.wait();
    }
}

/// In KiB.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("a line");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// What the daemon says of a listener on `port`.
fn listener(daemon: &Daemon, port: u16) -> Option<Value> {
    let answer = daemon.get("/api/v1/snapshot");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let snapshot: Value = serde_json::from_str(body).expect("JSON");
    let listeners = snapshot["listeners"].as_array().expect("a list");
    listeners.iter().find(|it| it["port"] == port).cloned()
}

fn owners(listener: &Value) -> Vec<u32> {
    let owners = listener["owners"].as_array().expect("a list");
    owners
        .iter()
        .map(|owner| owner["pid"].as_u64().expect("a pid").try_into().expect("u32"))
        .collect()
}

/// The sum of a family's series whose line begins so.
fn sum(metrics: &str, series: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().expect("a number")).sum()
}

/// Samples and CPU seconds so far.
fn samples_and_cpu(daemon: &Daemon) -> (f64, f64) {
    let metrics = daemon.get("/metrics");
    let samples = sum(&metrics, "backlogd_sample_duration_seconds_count{source=\"total\"}");
    (samples, sum(&metrics, "process_cpu_seconds_total "))
}

#[test]
#[ignore = "kernel: needs root"]
fn among_ten_thousand_processes_an_owner_is_known_in_time_and_no_sample_is_late() {
    in_own_netns(|| {
        let crowd = Crowd::gather(scaled(10_000));
        let daemon = Daemon::sampling("1", &[]);
        wait_for("the first sample", || daemon.get("/api/v1/snapshot").contains(" 200 OK"));
        let (start, before) = (Instant::now(), samples_and_cpu(&daemon));
        let mut servers = Vec::new();
        let mut waited = Vec::new();
        // right after the passes for the one before, and between
        for pause in [0, 0, 0, 500, 1_000, 1_500, 2_500, 4_000] {
            thread::sleep(Duration::from_millis(pause)); // another moment between two passes
            let server = NeverAccepts::listen("127.0.0.1:0", 50);
            let port = server.addr.port();
            let clients = Clients::connect(20, server.addr);
            let begun = Instant::now();
            while listener(&daemon, port).is_none_or(|it| owners(&it) != [std::process::id()]) {
                assert!(begun.elapsed() < IN_TIME, "{:?}", listener(&daemon, port));
                thread::sleep(Duration::from_millis(20));
            }
            waited.push(begun.elapsed().as_millis());
            servers.push((server, clients));
        }
        let quiet = (Instant::now(), samples_and_cpu(&daemon));
        thread::sleep(Duration::from_secs(10)); // what it costs while nothing happens
        let (samples, cpu) = samples_and_cpu(&daemon);
        let took = start.elapsed().as_secs_f64();
        let rest = (cpu - quiet.1.1) / quiet.0.elapsed().as_secs_f64();
        #[expect(clippy::print_stderr, reason = "a measurement, which no test asserts")]
        {
            eprintln!(
                "{} processes: owners after {waited:?} ms; CPU {:.2} % of a core, {:.2} % at rest",
                crowd.children(),
                100.0 * (cpu - before.1) / took,
                100.0 * rest
            );
        }
        // one that has begun, and one that has not ended
        assert!(took - 2.0 <= samples - before.0, "{} in {took} s", samples - before.0);
        for (server, _) in &servers {
            let listener = listener(&daemon, server.addr.port()).expect("it listens");
            assert_eq!(listener["length"], 20);
        }
    });
}
