//! What the detections cost, in time and memory, and how fast a recording is judged.
//!
//! Real listeners give the first snapshots; what follows are these snapshots with later times and counters
//! that move, so that hours pass in seconds.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use backlogd::{
    detect::Detector,
    model::{
        Model, Settings,
        snapshot::{Listener, Snapshot},
    },
    recording::{Recording, Writer},
    sources::{Options, Sources},
    time::{Nanos, UnixTime},
};
use serde_json::{Value, json};

use crate::{
    child, hold,
    load::thread_cpu,
    report::{Goal, Report, median, quantile},
};

const SECOND: u64 = 1_000_000_000;
/// Longer than any window: all rings are full.
const WARM_UP: u64 = 3 * 3_600;
const LOOKS: u64 = 600;

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new("detect");
    for (listeners, processes) in [(20, 20), (1_000, 50)] {
        let owners = hold::listen(listeners, processes)?;
        let value: Value = serde_json::from_str(&child::output(&["judge"])?)?;
        drop(owners);
        let number = |key: &str| value[key].as_f64().with_context(|| format!("no {key}"));
        let many = listeners == 1_000;
        let goal = |goal| if many { goal } else { Goal::None };
        let what = |what| format!("{what}, {listeners} listeners of {processes} processes");
        let how = format!("thread CPU, median of {LOOKS}; p99 {:.0} µs", number("p99_micros")?);
        let at_most = goal(Goal::AtMost(1_000.0));
        report.row(what("all detections, one look"), at_most, number("micros")?, "µs", how);
        let how = "growth of resident memory over three hours of looks";
        let at_most = goal(Goal::AtMost(5.0));
        report.row(what("what they remember"), at_most, number("mib")?, "MiB", how);
        let how = "seconds of recording read and judged in a second of CPU; a third of the listeners moves each second";
        let at_least = if many { Goal::None } else { Goal::AtLeast(1_000.0) };
        report.row(what("replay"), at_least, number("replay")?, "×", how);
        let how = "the same recording";
        report.row(what("recording"), Goal::None, number("bytes")?, "bytes a snapshot", how);
    }
    Ok(report)
}

/// The part of this program that judges, in a process of its own.
pub(crate) fn judge() -> Result<Value> {
    let mut sources = Sources::open(&Options::default())?;
    let mut model = Model::new(Settings::default(), sources.hooks());
    let mut snapshot = model.apply(&sources.sample());
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        snapshot = model.apply(&sources.sample());
    }
    let before = resident()?;
    let mut detector = Detector::default();
    for _ in 0..WARM_UP {
        go_on(&mut snapshot);
        let verdicts = detector.judge(&snapshot);
        ensure!(verdicts.alerts.is_empty(), "quiet listeners: {:?}", verdicts.alerts);
    }
    let grown = resident()?.saturating_sub(before);
    let mut micros = Vec::new();
    for _ in 0..LOOKS {
        go_on(&mut snapshot);
        let start = thread_cpu();
        drop(detector.judge(&snapshot));
        micros.push((thread_cpu().saturating_sub(start)).as_secs_f64() * 1e6);
    }
    let (replay, bytes) = replay(snapshot)?;
    Ok(json!({
        "micros": median(&micros),
        "p99_micros": quantile(&micros, 0.99),
        "mib": grown as f64 / f64::from(1 << 20),
        "replay": replay,
        "bytes": bytes,
    }))
}

/// A second passes: a third of the listeners accept what they get.
fn go_on(snapshot: &mut Snapshot) {
    snapshot.at = snapshot.at + Nanos(SECOND);
    snapshot.unix_time.0 += SECOND;
    snapshot.samples += 1;
    snapshot.interval = Ok(Nanos(SECOND));
    let turn = usize::try_from(snapshot.samples % 3).unwrap_or(0);
    for listener in snapshot.listeners.iter_mut().skip(turn).step_by(3) {
        serve(listener);
    }
}

fn serve(listener: &mut Listener) {
    let counters = &mut listener.counters;
    for counter in [
        &mut counters.established,
        &mut counters.accepted,
        &mut counters.closed,
        &mut counters.syns,
    ] {
        *counter = counter.map(|n| n + 10);
    }
    listener.since_accept = Ok(Nanos(0));
}

/// Seconds of recording that are read and judged in one second, and bytes a snapshot.
fn replay(mut snapshot: Snapshot) -> Result<(f64, f64)> {
    let mut writer = Writer::new(Vec::new(), "bench", UnixTime(0))?;
    for _ in 0..LOOKS {
        go_on(&mut snapshot);
        writer.push(&snapshot)?;
    }
    let bytes = writer.finish()?;
    let start = thread_cpu();
    let mut detector = Detector::default();
    let mut n = 0;
    for snapshot in Recording::open(&*bytes)?.snapshots() {
        drop(Arc::new(detector.judge(&snapshot?)));
        n += 1;
    }
    ensure!(n == LOOKS, "{n} of {LOOKS} snapshots");
    let took = thread_cpu().saturating_sub(start).as_secs_f64();
    Ok((LOOKS as f64 / took, bytes.len() as f64 / LOOKS as f64))
}

/// Bytes.
fn resident() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}
