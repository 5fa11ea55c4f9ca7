//! What one sample costs, beside few and many established connections, and what the peers cost
//! there.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use backlogd::{
    input::Source,
    model::{Model, Settings},
    sources::{Options, Sources},
};
use serde_json::{Value, json};

use crate::{
    child::{self, Coding, Running},
    hold,
    load::thread_cpu,
    report::{Goal, Report, median, quantile},
};

/// Established sockets; a connection over loopback is two of them.
const ESTABLISHED: [usize; 3] = [0, 10_000, 100_000];
const LISTENERS: [usize; 2] = [20, 1_000];
const SAMPLES: usize = 60;
const INTERVAL: Duration = Duration::from_millis(100);
/// Owners are looked for twice, the second time 2 s and a rest later.
const WARM_UP: Duration = Duration::from_secs(6);
const EXPORTER: &str = "127.0.0.1:9100";

pub(crate) fn run(agent: &Path, exporter: &Path) -> Result<Report> {
    let mut report = Report::new("sample");
    let mut costs = BTreeMap::new();
    let mut held = Vec::new();
    let mut peers = Vec::new();
    for (group, established) in (0..).zip(ESTABLISHED) {
        let so_far = if group == 0 { 0 } else { ESTABLISHED[usize::from(group) - 1] };
        held.extend(hold::hold(group, (established - so_far) / 2)?);
        for listeners in LISTENERS {
            let cost = Cost::measure(listeners, 1)?;
            cost.show(&mut report, established, listeners, "one process");
            costs.insert((listeners, established), cost);
        }
        if established == 0 || established == 100_000 {
            peers.push((established, Peers::measure(exporter)?));
        }
    }
    for (listeners, processes) in [(20, 20), (1_000, 50)] {
        let cost = Cost::measure(listeners, processes)?;
        cost.show(&mut report, 100_000, listeners, &format!("{processes} processes"));
    }
    independence(&mut report, &costs);
    for (established, peers) in &peers {
        peers.show(&mut report, *established);
    }
    if let Some((_, peers)) = peers.last() {
        peers.compare(&mut report, &costs);
    }
    drop(held);
    memory(&mut report, agent)?;
    Ok(report)
}

/// Microseconds of one sample and the model's step after it: median and 99th percentile.
#[derive(Clone, Debug)]
struct Cost {
    /// Samples that follow each other without pause, as the peers run.
    wall: [f64; 2],
    cpu: [f64; 2],
    /// One sample each [`INTERVAL`]: caches are cold.
    paused_wall: [f64; 2],
    paused_cpu: [f64; 2],
    /// Where the time of the latter goes.
    parts: String,
}

impl Cost {
    /// With the listeners in `n_processes` of their own, and the sampler in another.
    fn measure(n_listeners: usize, n_processes: usize) -> Result<Self> {
        let owners = hold::listen(n_listeners, n_processes)?;
        let text = child::output(&["measure"])?;
        drop(owners);
        let value: Value = serde_json::from_str(&text)?;
        let pair = |key: &str| {
            let number = |at: usize| value[key][at].as_f64().with_context(|| format!("no {key}"));
            Ok::<_, anyhow::Error>([number(0)?, number(1)?])
        };
        let parts = value["parts"].as_str().context("no parts")?.to_owned();
        Ok(Self {
            wall: pair("wall")?,
            cpu: pair("cpu")?,
            paused_wall: pair("paused_wall")?,
            paused_cpu: pair("paused_cpu")?,
            parts,
        })
    }

    fn show(&self, report: &mut Report, established: usize, listeners: usize, owners: &str) {
        let what = |clock| {
            format!("{clock}, {listeners} listeners of {owners}, {established} established sockets")
        };
        let goal = if listeners == 1_000 && owners == "one process" {
            Goal::AtMost(1_000.0)
        } else {
            Goal::None
        };
        let how = format!("median; p99 {:.0} µs; back to back", self.wall[1]);
        report.row(what("wall time"), goal, self.wall[0], "µs", how);
        let how = format!("median; p99 {:.0} µs; back to back", self.cpu[1]);
        report.row(what("thread CPU"), Goal::None, self.cpu[0], "µs", how);
        let how = format!(
            "median; p99 {:.0} µs; CPU {:.0} µs; {}",
            self.paused_wall[1], self.paused_cpu[0], self.parts
        );
        let paused = what("wall time, one each 100 ms");
        report.row(paused, Goal::None, self.paused_wall[0], "µs", how);
    }
}

/// The part of this program that samples, in a process of its own.
pub(crate) fn measure() -> Result<Value> {
    let mut sources = Sources::open(&Options::default())?;
    let mut model = Model::new(Settings::default(), sources.hooks());
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        model.apply(&sources.sample());
        thread::sleep(INTERVAL);
    }
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..SAMPLES {
        let (start, cpu_start) = (Instant::now(), thread_cpu());
        let sample = sources.sample();
        let applied = Instant::now();
        let snapshot = model.apply(&sample);
        let model_took = applied.elapsed();
        cpu.push(micros(thread_cpu().saturating_sub(cpu_start)));
        wall.push(micros(start.elapsed()));
        for &(source, nanos) in &sample.durations {
            let name = if source == Source::Total { "all sources" } else { source.name() };
            parts.entry(name).or_default().push(nanos.as_seconds() * 1e6);
        }
        parts.entry("model").or_default().push(micros(model_took));
        drop((snapshot, sample));
        thread::sleep(INTERVAL);
    }
    let (mut hot_wall, mut hot_cpu) = (Vec::new(), Vec::new());
    for _ in 0..10 * SAMPLES {
        let (start, cpu_start) = (Instant::now(), thread_cpu());
        let snapshot = model.apply(&sources.sample());
        hot_cpu.push(micros(thread_cpu().saturating_sub(cpu_start)));
        hot_wall.push(micros(start.elapsed()));
        drop(snapshot);
    }
    let parts = parts.iter().map(|(name, took)| format!("{name} {:.0}", median(took)));
    let both = |values: &[f64]| [median(values), quantile(values, 0.99)];
    Ok(json!({
        "wall": both(&hot_wall),
        "cpu": both(&hot_cpu),
        "paused_wall": both(&wall),
        "paused_cpu": both(&cpu),
        "parts": parts.collect::<Vec<_>>().join(", "),
    }))
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn independence(report: &mut Report, costs: &BTreeMap<(usize, usize), Cost>) {
    for listeners in LISTENERS {
        let cpu = |established| costs.get(&(listeners, established)).map_or(f64::NAN, |c| c.cpu[0]);
        for established in [10_000, 100_000] {
            report.row(
                format!("thread CPU, {listeners} listeners, {established} : 0 established sockets"),
                Goal::AtMost(1.2),
                cpu(established) / cpu(0),
                "×",
                "ratio of the medians",
            );
        }
    }
}

/// Milliseconds of CPU.
#[derive(Clone, Copy, Debug)]
struct Peers {
    exporter: f64,
    proc_net_tcp: f64,
}

impl Peers {
    fn measure(exporter: &Path) -> Result<Self> {
        Ok(Self { exporter: node_exporter(exporter, &["tcpstat"])?, proc_net_tcp: proc_net_tcp()? })
    }

    fn show(&self, report: &mut Report, established: usize) {
        let what = |peer| format!("{peer}, CPU, {established} established sockets");
        let how = "CPU clock of the process, mean of 20 scrapes";
        report.row(what("node_exporter tcpstat"), Goal::None, self.exporter, "ms", how);
        let how = "read whole, not parsed; median of 5";
        report.row(what("/proc/net/tcp"), Goal::None, self.proc_net_tcp, "ms", how);
    }

    /// How many samples the peers' cost would pay for, beside 100,000 established sockets.
    fn compare(&self, report: &mut Report, costs: &BTreeMap<(usize, usize), Cost>) {
        for (listeners, goal) in [(20, 1_000.0), (1_000, 200.0)] {
            let Some(cost) = costs.get(&(listeners, 100_000)) else { continue };
            let peers =
                [("node_exporter tcpstat", self.exporter), ("/proc/net/tcp", self.proc_net_tcp)];
            for (peer, millis) in peers {
                report.row(
                    format!("{peer} : a sample, {listeners} listeners, 100000 established sockets"),
                    Goal::AtLeast(goal),
                    millis * 1e3 / cost.cpu[0],
                    "×",
                    "ratio of CPU times, both back to back",
                );
            }
        }
    }
}

/// Milliseconds of CPU for a scrape of node_exporter with these collectors alone, `tcpstat` among them.
pub(crate) fn node_exporter(program: &Path, collectors: &[&str]) -> Result<f64> {
    const SCRAPES: u32 = 20;
    let collectors = collectors.iter().map(|collector| format!("--collector.{collector}"));
    let plain =
        ["--collector.disable-defaults", "--web.disable-exporter-metrics", "--log.level=error"];
    let words = plain
        .into_iter()
        .map(str::to_owned)
        .chain(collectors)
        .chain([format!("--web.listen-address={EXPORTER}")]);
    let addr = EXPORTER.parse()?;
    let running = Running::server(program, words, addr, "/")?;
    let scrape = || {
        let body = child::get(addr, "/metrics", Coding::Plain)?;
        let text = String::from_utf8_lossy(&body);
        let series = "node_tcp_connection_states{state=\"established\"}";
        anyhow::ensure!(text.contains(series), "node_exporter gives no {series}");
        Ok(())
    };
    scrape()?;
    let before = running.cpu()?;
    for _ in 0..SCRAPES {
        scrape()?;
    }
    Ok(running.cpu()?.saturating_sub(before).as_secs_f64() * 1e3 / f64::from(SCRAPES))
}

fn proc_net_tcp() -> Result<f64> {
    let mut millis = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..5 {
        let mut file = File::open("/proc/thread-self/net/tcp")?;
        let start = thread_cpu();
        while 0 < file.read(&mut buffer)? {}
        millis.push(thread_cpu().saturating_sub(start).as_secs_f64() * 1e3);
    }
    Ok(median(&millis))
}

/// Resident memory of `backlogd run` with 1,000 listeners.
fn memory(report: &mut Report, agent: &Path) -> Result<()> {
    let _owners = hold::listen(1_000, 1)?;
    let running = Running::agent(agent)?;
    thread::sleep(WARM_UP);
    let kib = running.status_kib("VmRSS:")?;
    let peak = running.status_kib("VmHWM:")? / 1024.0;
    let how = format!("VmRSS of `backlogd run` after {} s; VmHWM {peak:.1}", WARM_UP.as_secs());
    report.row("memory, 1000 listeners", Goal::AtMost(20.0), kib / 1024.0, "MiB", how);
    for _ in 0..10 {
        child::get(child::AGENT, "/metrics", Coding::Gzip)?;
    }
    let kib = running.status_kib("VmRSS:")?;
    let how = "the same, after ten scrapes with gzip";
    report.row("memory, 1000 listeners, scraped", Goal::AtMost(20.0), kib / 1024.0, "MiB", how);
    Ok(())
}
