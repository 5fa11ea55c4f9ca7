//! Thousands of clients against a limit of a thousand: how soon those above it know.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
};

use anyhow::{Result, bail, ensure};
use tokio::task::{JoinSet, LocalSet};

use crate::{
    load::{self, End, Visit},
    process::{self, Clients, Server},
    report::{Report, quantile},
    server::MANY,
};

const PROCESSES: usize = 4;
/// Of each process.
const CLIENTS: usize = 2_500;
/// Of each process: of more, each would measure how long the others take.
const AT_ONCE: usize = 8;
const TURNS: usize = 5;

pub(crate) fn run(report: &mut Report) -> Result<()> {
    process::before_others()?;
    let mut known = Vec::new();
    for _ in 0..TURNS {
        known.append(&mut turn()?);
    }
    let n_refused = known.len() / TURNS;
    for (part, called, goal) in [(0.5, "median", 1.0), (0.99, "p99", 50.0)] {
        let what = format!("a refused client of a crowd knows after it began to connect, {called}");
        let how = format!(
            "{} clients of {PROCESSES} processes, {} at once; {MANY} served, {n_refused} reset, in \
             each of {TURNS} turns",
            PROCESSES * CLIENTS,
            PROCESSES * AT_ONCE,
        );
        report.row(what, Some(goal), quantile(&known, part) * 1e3, "ms", how);
    }
    Ok(())
}

/// How long after it began to connect each client knew that it was refused, in seconds.
fn turn() -> Result<Vec<f64>> {
    let server = Server::own("many", 7_061)?;
    let start = || Clients::start(&["crowd", &server.address().to_string()]);
    let mut all = (0..PROCESSES).map(|_| start()).collect::<Result<Vec<_>>>()?;
    let (mut n_served, mut known) = (0, Vec::new());
    for clients in &mut all {
        let (served, mut refused): (usize, Vec<f64>) = serde_json::from_str(&clients.line()?)?;
        n_served += served;
        known.append(&mut refused);
    }
    let n = PROCESSES * CLIENTS;
    ensure!(n_served == MANY && known.len() == n - MANY, "{n_served} were served of {n}");
    Ok(known)
}

/// [`CLIENTS`], of whom those who are served stay until standard input ends.
pub(crate) fn be(address: SocketAddr) -> Result<()> {
    let (mut held, mut known) = (Vec::new(), Vec::new());
    crate::runtime()?.block_on(LocalSet::new().run_until(async {
        let (mut clients, mut n_left) = (JoinSet::new(), CLIENTS);
        loop {
            while n_left != 0 && clients.len() < AT_ONCE {
                n_left -= 1;
                clients.spawn_local(load::visit(address, load::REQUEST));
            }
            let Some(visited) = clients.join_next().await else { return anyhow::Ok(()) };
            match visited?? {
                Visit { end: End::Served, client, .. } => held.push(client),
                Visit { end: End::Reset, after, .. } => known.push(after.as_secs_f64()),
                Visit { end, .. } => bail!("{address}: {end:?}"),
            }
        }
    }))?;
    println!("{}", serde_json::to_string(&(held.len(), known))?);
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
