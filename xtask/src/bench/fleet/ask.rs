//! A Prometheus of its own over the block, and what it takes to answer.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, de::IgnoredAny};

/// No panel may take so long; a rule that does is not evaluated.
const TIMEOUT: &str = "30s";
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a query is asked that takes less than `LONG`; others are asked once.
const N_TIMES: usize = 3;
const LONG: Duration = Duration::from_secs(3);

/// Ends with this.
pub(super) struct Prometheus {
    child: Child,
    address: String,
}

/// A question as Grafana asks it, or as a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// From the first to the second time, a number each so many seconds.
    Range { expr: String, span: (i64, i64), step: u32 },
    /// At a time.
    Instant { expr: String, at: i64 },
    /// Values of a label in the series of a selector.
    Values { label: String, of: String, span: (i64, i64) },
}

/// How long the answers took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// Until all is there.
    pub(super) median: Duration,
    pub(super) max: Duration,
    /// Prometheus' own part, without writing the answer as text.
    pub(super) evaluation: Duration,
    pub(super) n: usize,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Data {
    Result { result: Vec<IgnoredAny>, stats: Stats },
    Values(Vec<IgnoredAny>),
}

#[derive(Deserialize)]
struct Stats {
    timings: Timings,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timings {
    /// In seconds.
    exec_total_time: f64,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // both fail only when it has ended
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Over the TSDB in `folder`/data, on a free port of loopback, when it is ready.
    pub(super) fn start(program: &Path, folder: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = folder.join("prometheus.yaml");
        fs::write(&config, "scrape_configs: []\n")?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--query.timeout={TIMEOUT}"))
            .env("GOMEMLIMIT", "6GiB");
        let log = fs::File::create(folder.join("log"))?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn()?;
        let mut it = Self { child, address };
        let start = Instant::now();
        while !it.get("/-/ready").is_ok_and(|answer| answer.contains("Ready")) {
            let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
            ensure!(it.child.try_wait()?.is_none(), "Prometheus has ended: {}", log());
            ensure!(start.elapsed() < PATIENCE, "Prometheus is not ready: {}", log());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(it)
    }

    /// The most memory that it had, in GiB.
    pub(super) fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: f64 = line.context("no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / f64::from(1 << 20))
    }

    /// Asks some times; an error is Prometheus'.
    pub(super) fn ask(&self, question: &Question) -> Result<Answer> {
        let (mut all, mut evaluations, mut n) = (Vec::new(), Vec::new(), 0);
        while all.len() < N_TIMES && all.first().is_none_or(|first| *first < LONG) {
            let start = Instant::now();
            let text = self.get(&question.target())?;
            all.push(start.elapsed());
            let document: Document = serde_json::from_str(&text)?;
            match document.data {
                Some(Data::Result { result, stats }) => {
                    n = result.len();
                    evaluations.push(Duration::from_secs_f64(stats.timings.exec_total_time));
                }
                Some(Data::Values(values)) => n = values.len(),
                None => bail!("{}", document.error),
            }
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times.get(times.len() / 2).copied().unwrap_or_default()
        };
        let first = median(&mut all);
        let max = all.last().copied().unwrap_or_default();
        Ok(Answer { median: first, max, evaluation: median(&mut evaluations), n })
    }

    fn get(&self, target: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {target} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        Ok(body.to_owned())
    }
}

impl Question {
    fn target(&self) -> String {
        match self {
            Self::Range { expr, span, step } => format!(
                "/api/v1/query_range?query={}&start={}&end={}&step={step}&stats=all",
                encoded(expr),
                span.0,
                span.1
            ),
            Self::Instant { expr, at } => {
                format!("/api/v1/query?query={}&time={at}&stats=all", encoded(expr))
            }
            Self::Values { label, of, span } => format!(
                "/api/v1/label/{label}/values?match[]={}&start={}&end={}",
                encoded(of),
                span.0,
                span.1
            ),
        }
    }
}

/// Text as part of a URL.
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_part_of_a_url() {
        let at = Question::Instant { expr: "sum(up{a=~\".*\"})".to_owned(), at: 60 };
        let expected = "/api/v1/query?query=sum%28up%7Ba%3D~%22.%2A%22%7D%29&time=60&stats=all";
        assert_eq!(at.target().replace("%7E", "~"), expected);
    }
}
