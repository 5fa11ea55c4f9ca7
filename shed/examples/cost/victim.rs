//! What those who are admitted notice of five times as many who want to be.

use std::{
    cell::RefCell,
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    load,
    peers::{LIMIT, Peers},
    process::Server,
    report::{Report, quantile},
    rounds::{Rounds, spread},
};

/// Requests of each admitted connection.
const PER_SECOND: u32 = 50;
const LENGTH: Duration = Duration::from_millis(1_000);
/// New connections per second: 4 × [`LIMIT`] clients, each of which comes back ten times.
const ATTACK: u32 = 4_000;

pub(crate) async fn run(peers: &Peers, report: &mut Report) -> Result<()> {
    before_others()?;
    let servers =
        [Server::own("rst", 7_051)?, peers.haproxy_rejects(7_052)?, peers.nginx_limits(7_053)?];
    let mut calm = Vec::new();
    let mut clients = Vec::new();
    for server in &servers {
        let held = load::hold(server.address(), LIMIT).await?;
        let (held, latencies) = load::ask(held, PER_SECOND, LENGTH).await?;
        clients.push(held);
        calm.push(quantile(&latencies, 0.99) * 1e6);
    }
    let mut known = [(); 3].map(|()| Vec::new());
    let rounds = Rounds::<3>::run(async |place| {
        let (address, seconds) = (servers[place].address(), RefCell::default());
        let held = std::mem::take(&mut clients[place]);
        let (held, latencies) = tokio::select! {
            asked = load::ask(held, PER_SECOND, LENGTH) => asked?,
            attacked = load::attack(address, ATTACK, &seconds) => return attacked.map(|()| 0.0),
        };
        clients[place] = held;
        let mut seconds = seconds.into_inner();
        ensure!(500 < seconds.len(), "{address} shed {}", seconds.len());
        known[place].append(&mut seconds);
        Ok(quantile(&latencies, 0.99) * 1e6)
    })
    .await?;
    let ratio = rounds.ratio(0, &[1, 2]);
    let what = "p99 of admitted requests at 5 × overload, ours : best peer";
    report.row(what, Some(1.0), ratio[0], "×", spread(ratio));
    let names = ["ours, reset", "HAProxy reject", "nginx limit_conn, through its proxy"];
    for (place, name) in names.into_iter().enumerate() {
        let how = format!("{:.0} µs without overload", calm[place]);
        let what = format!("p99 of admitted requests at 5 × overload, {name}");
        report.row(what, None, rounds.median(place), "µs", how);
    }
    for (seconds, name, goals) in [
        (&known[0], names[0], [Some(1.0), Some(50.0)]),
        (&known[1], names[1], [None; 2]),
        (&known[2], names[2], [None; 2]),
    ] {
        for (part, called, goal) in [(0.5, "median", goals[0]), (0.99, "p99", goals[1])] {
            let what = format!("a shed client knows after it is established, {called}, {name}");
            let how = format!("of {}, {ATTACK} a second", seconds.len());
            report.row(what, goal, quantile(seconds, part) * 1e3, "ms", how);
        }
    }
    Ok(())
}

/// From here on, this process and the servers that it starts run before others: latencies are of
/// interest, not what else the machine does.
fn before_others() -> Result<()> {
    let id = process::id().to_string();
    let moved = Command::new("chrt").args(["--rr", "--pid", "5", &id]).output();
    ensure!(moved.context("cannot start chrt")?.status.success(), "no real-time scheduling");
    Ok(())
}
