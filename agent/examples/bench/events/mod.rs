//! What the programs cost a connection: time by the kernel's own statistics, memory by its slabs,
//! connections per second; beside the peers; and what many connections cost the agent.

mod flood;
mod guest;
mod life;
mod memory;
mod meter;
mod peers;
mod programs;
mod rate;

use std::path::Path;

use anyhow::Result;

use self::life::Plan;
pub(crate) use self::{flood::client, guest::run as in_guest};
use crate::{load, report::Report};

/// On this machine.
const PLAN: Plan = Plan { batches: 8, connections: 4_500 };

/// `scripts` holds the peer's script.
pub(crate) fn run(agent: &Path, scripts: &Path) -> Result<Report> {
    load::without_time_wait()?;
    let mut report = Report::new("events");
    let ours = programs::rows(&mut report, PLAN)?;
    peers::rows(&mut report, &ours, scripts, PLAN)?;
    memory::rows(&mut report)?;
    rate::rows(&mut report, agent)?;
    flood::rows(&mut report, agent)?;
    Ok(report)
}
