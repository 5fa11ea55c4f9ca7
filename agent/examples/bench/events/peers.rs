//! Those who look at the same connections: libbpf-tools' tcplife and tcpsynbl, bpftrace's tcpaccept,
//! and a bpftrace script that counts what our programs count. One after the other, over the same
//! traffic as ours.

use std::{
    io::{Read as _, Seek as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    life::{Life, Plan},
    meter::Meter,
};
use crate::{
    child::Running,
    load::Loop,
    report::{Goal, Report},
};

/// bpftrace compiles its script; where the processor is emulated that takes long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Debian's programs, and the script's name.
const TOOLS: [(&str, &str); 3] = [
    ("tcplife (libbpf-tools)", "/usr/sbin/tcplife"),
    ("tcpsynbl (libbpf-tools)", "/usr/sbin/tcpsynbl"),
    ("tcpaccept.bt (bpftrace)", "/usr/sbin/tcpaccept.bt"),
];
const SCRIPT: &str = "connections.bt";

/// What the peers spend on a connection.
pub(crate) struct Peers {
    /// Those of the tools that run here, together.
    pub(crate) tools: f64,
    /// Their names.
    pub(crate) names: String,
    /// Whether all run.
    pub(crate) are_all: bool,
    pub(crate) script: f64,
}

/// A row for each, and how ours compare.
pub(crate) fn rows(report: &mut Report, ours: &Life, scripts: &Path, plan: Plan) -> Result<()> {
    let peers = measure(report, scripts, plan)?;
    let Peers { tools, script, names, .. } = &peers;
    let nanos = ours.nanos();
    let how = "net of the empty program, as above; the script alone, that tells less";
    report.row(format!("ours : {SCRIPT}"), Goal::AtMost(0.5), nanos / script, "×", how);
    let total = if peers.are_all { *tools } else { tools + script };
    let how = if peers.are_all {
        names.clone()
    } else {
        format!("{names}, and the script for those that cannot run")
    };
    report.row("ours : the peers' total", Goal::AtMost(0.5), nanos / total, "×", how);
    Ok(())
}

/// A row for each peer.
pub(crate) fn measure(report: &mut Report, scripts: &Path, plan: Plan) -> Result<Peers> {
    let (mut tools, mut names) = (0.0, Vec::new());
    for (name, program) in TOOLS {
        let mut command = match program.ends_with(".bt") {
            true => bpftrace(scripts, program.as_ref()),
            false => Command::new(program),
        };
        if let Some(nanos) = row(report, name, &mut command, plan)? {
            tools += nanos;
            names.push(name);
        }
    }
    let name = format!("{SCRIPT} (bpftrace)");
    let script = row(report, &name, &mut bpftrace(scripts, SCRIPT.as_ref()), plan)?;
    Ok(Peers {
        tools,
        are_all: names.len() == TOOLS.len(),
        names: names.join(" + "),
        script: script.context("bpftrace cannot run the script")?,
    })
}

/// Runs a script: one of ours, or by its whole path.
fn bpftrace(scripts: &Path, script: &Path) -> Command {
    let mut command = Command::new("bpftrace");
    command.arg("-q").arg("-I").arg(scripts.join("include")).arg(scripts.join(script));
    command
}

/// What a connection costs with this peer, or `None` where the kernel has not what it needs.
fn row(report: &mut Report, name: &str, command: &mut Command, plan: Plan) -> Result<Option<f64>> {
    let mut said = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?);
    let mut running = Running::start(command)?;
    let server = Loop::new()?;
    if !starts_to_count(&mut running, &server)? {
        let mut text = String::new();
        said.rewind()?;
        said.read_to_string(&mut text)?;
        report.absent(name, format!("cannot run on this kernel: {}", reason(&text)));
        return Ok(None);
    }
    let life = Life::measure(&Meter::of(running.id())?, &server, plan)?;
    let how = format!("{:.0} ns with the statistics' own time; {}", life.gross(), life.describe());
    report.row(name, Goal::None, life.nanos(), "ns", how);
    Ok(Some(life.nanos()))
}

/// Waits until connections run its programs; false when it ends instead.
fn starts_to_count(running: &mut Running, server: &Loop) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if running.has_ended()? {
            return Ok(false);
        }
        let meter = Meter::of(running.id())?;
        for _ in 0..10 {
            drop(server.connect()?);
        }
        if meter.read()?.values().any(|spent| 0.0 < spent.runs) {
            // the other programs follow at once
            thread::sleep(Duration::from_secs(1));
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(300));
    }
    bail!("none of its programs runs")
}

/// The first line that names what the kernel lacks.
fn reason(text: &str) -> String {
    let line = text.lines().find(|line| line.contains("kprobe")).or(text.lines().last());
    line.unwrap_or("it says nothing").replace('|', "/")
}
