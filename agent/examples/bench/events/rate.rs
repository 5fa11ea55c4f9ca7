//! Connections per second and their CPU, with the programs and without.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use backlogd::sources::{Options, Sources};

use crate::{
    child::Running,
    load::{Loop, Rate},
    report::{Goal, Report, median},
};

/// All rows.
pub(crate) fn rows(report: &mut Report, agent: &Path) -> Result<()> {
    rate(report, agent)?;
    parts(report)?;
    agent_cpu(report, agent)
}

/// Connections per second with the agent and without, slice by slice.
fn rate(report: &mut Report, agent: &Path) -> Result<()> {
    const PAIRS: usize = 11;
    const SLICE: Duration = Duration::from_millis(1_000);
    /// The agent looks for owners twice after its start; without it the same pause.
    const SETTLE: Duration = Duration::from_millis(2_500);
    let server = Loop::new()?;
    let without = || -> Result<Rate> {
        thread::sleep(SETTLE);
        server.flat_out(SLICE)
    };
    let with = || -> Result<Rate> {
        let _agent = Running::agent(agent)?;
        without()
    };
    server.flat_out(SLICE)?;
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        let (with, without) = if pair % 2 == 0 {
            let with = with()?;
            (with, without()?)
        } else {
            let without = without()?;
            (with()?, without)
        };
        pairs.push((with, without));
    }
    let of =
        |pick: &dyn Fn(&(Rate, Rate)) -> f64| median(&pairs.iter().map(pick).collect::<Vec<_>>());
    let how = format!(
        "medians: {:.0}/s with, {:.0}/s without; {PAIRS} interleaved pairs of 1 s, \
         connect, accept, close in one thread",
        of(&|(with, _)| with.per_second),
        of(&|(_, without)| without.per_second)
    );
    let ratio = of(&|(with, without)| with.per_second / without.per_second);
    report.row("connections per second, with : without", Goal::AtLeast(0.97), ratio, "×", how);
    let how = format!(
        "medians: {:.2} µs with, {:.2} µs without; the same runs",
        of(&|(with, _)| with.cpu_micros),
        of(&|(_, without)| without.cpu_micros)
    );
    let ratio = of(&|(with, without)| without.cpu_micros / with.cpu_micros);
    // the same, but for what else the machine does meanwhile
    report.row("CPU of a connection, without : with", Goal::AtLeast(0.97), ratio, "×", how);
    Ok(())
}

/// Where the CPU of a connection goes: in this process, without sampling. A listener without slot
/// has no socket storage, so that its children have none.
fn parts(report: &mut Report) -> Result<()> {
    const ROUNDS: usize = 8;
    const SLICE: Duration = Duration::from_millis(700);
    let _takes_the_slot = Loop::new()?;
    let mut micros: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for case in (0..3).map(|case| (case + round) % 3) {
            let slots = [None, Some(1), Some(4096)][case];
            let open = |slots| Sources::open(&Options { slots, ..Options::default() });
            let _sources = slots.map(open).transpose()?;
            let server = Loop::new()?;
            micros[case].push(server.flat_out(SLICE)?.cpu_micros);
        }
    }
    let [without, no_slot, followed] = micros.map(|values| median(&values));
    let how = format!("{without:.2} µs without programs; both ends, whole life of a connection");
    report.row("programs alone, CPU of a connection", Goal::None, no_slot - without, "µs", how);
    let how = "what a listener with a slot costs more than one without: the socket storage";
    report.row("storage, CPU of a connection", Goal::None, followed - no_slot, "µs", how);
    Ok(())
}

fn agent_cpu(report: &mut Report, agent: &Path) -> Result<()> {
    let server = Loop::new()?;
    let running = Running::agent(agent)?;
    thread::sleep(Duration::from_secs(3));
    let (start, before) = (Instant::now(), running.cpu()?);
    let n = server.paced(10_000, Duration::from_secs(20))?;
    let seconds = start.elapsed().as_secs_f64();
    let spent = running.cpu()?.saturating_sub(before).as_secs_f64() / seconds;
    let reached = f64::from(n) / seconds;
    let how = format!("CPU of `backlogd run` over 20 s, {reached:.0} accepts/s reached");
    report.row("agent, 10000 accepts/s", Goal::AtMost(0.5), spent * 100.0, "% of a core", how);
    Ok(())
}
