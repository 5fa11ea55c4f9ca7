//! The same on a kernel that has fentry and kprobes: our programs tier by tier, and all the peers.
//!
//! A virtual machine may emulate its processor: ratios count there, nanoseconds do not.

use std::path::Path;

use anyhow::Result;
use backlogd::{
    input::Tier,
    sources::{Options, Sources},
};

use super::{
    life::{Life, Plan},
    meter::Meter,
    peers,
};
use crate::{
    load::{self, Loop},
    report::{Goal, Report},
};

/// Many small batches: the host takes its processor away now and then.
const PLAN: Plan = Plan { batches: 21, connections: 100 };

/// Whether it is the default setting, or with the tracepoints of system calls.
const TIERS: [(&str, Tier, bool); 4] = [
    ("fentry", Tier::Fentry, false),
    ("kprobe", Tier::Kprobe, false),
    ("tracepoint", Tier::Tracepoint, false),
    ("tracepoint with --accept-tracepoints", Tier::Tracepoint, true),
];

/// `scripts` holds the peer's script.
pub(crate) fn run(scripts: &Path) -> Result<Report> {
    load::without_time_wait()?;
    let mut report = Report::new("events");
    let mut lives = Vec::new();
    for (name, tier, accept_tracepoints) in TIERS {
        let options = Options { tier, accept_tracepoints, ..Options::default() };
        let life = ours(&options)?;
        let how = format!("{:.1} runs; {}", life.runs(), life.describe());
        report.row(format!("ours, tier {name}"), Goal::None, life.nanos(), "ns", how);
        lives.push((name, accept_tracepoints, life));
    }
    let empty = lives.first().map_or(f64::NAN, |(_, _, life)| life.empty);
    let how = "what is subtracted from each run: the statistics themselves";
    report.row("the empty program", Goal::None, empty, "ns", how);
    let peers = peers::measure(&mut report, scripts, PLAN)?;
    for (name, accept_tracepoints, life) in lives {
        let ratio = life.nanos() / peers.tools;
        // switched on by hand it is another bargain
        let goal = if accept_tracepoints { Goal::None } else { Goal::AtMost(0.5) };
        let what = format!("ours, tier {name} : the peers' total");
        report.row(what, goal, ratio, "×", peers.names.clone());
        let what = format!("ours, tier {name} : connections.bt");
        report.row(what, Goal::None, life.nanos() / peers.script, "×", "bpftrace");
    }
    Ok(report)
}

fn ours(options: &Options) -> Result<Life> {
    let server = Loop::new()?;
    let _sources = Sources::open(options)?;
    Life::measure(&Meter::of(std::process::id())?, &server, PLAN)
}
