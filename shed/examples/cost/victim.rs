//! What those who are admitted notice of five times as many who want to be.

use std::{mem, time::Duration};

use anyhow::{Result, ensure};
use tokio::{net::TcpStream, time};

use crate::{
    attack::{self, Attack},
    load,
    peers::{LIMIT, Peers},
    process::{self, Server},
    report::{Report, quantile},
    rounds::{Rounds, spread},
};

/// Requests of each admitted connection.
const PER_SECOND: u32 = 50;
const LENGTH: Duration = Duration::from_millis(500);
/// Requests of each admitted connection, one after the other, once an overload is over.
const IN_TURN: usize = 50;

pub(crate) async fn run(peers: &Peers, report: &mut Report) -> Result<()> {
    process::before_others()?;
    amid(peers, report).await?;
    after(report).await
}

async fn amid(peers: &Peers, report: &mut Report) -> Result<()> {
    let mut victims = [
        Victims::of(Server::own("rst", 7_051)?).await?,
        Victims::of(peers.haproxy_rejects(7_052)?).await?,
        Victims::of(peers.nginx_limits(7_053)?).await?,
    ];
    let mut calm = Vec::new();
    for victims in &mut victims {
        calm.push(victims.p99().await?);
    }
    let mut known = [(); 3].map(|()| Vec::new());
    let rounds = Rounds::<3>::run(async |place| {
        let attack = Attack::start(victims[place].server.address())?;
        let p99 = victims[place].p99().await?;
        let mut seconds = attack.end()?;
        let least = 0.95 * f64::from(attack::PER_SECOND) * LENGTH.as_secs_f64();
        ensure!(least <= seconds.len() as f64, "only {} came", seconds.len());
        known[place].append(&mut seconds);
        Ok(p99)
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
    for (seconds, name) in known.iter().zip(names) {
        for (part, called) in [(0.5, "median"), (0.99, "p99")] {
            let what =
                format!("a refused client knows after it began to connect, {called}, {name}");
            let how = format!("of {}, {} a second", seconds.len(), attack::PER_SECOND);
            report.row(what, None, quantile(seconds, part) * 1e3, "ms", how);
        }
    }
    Ok(())
}

/// Whether anything is left of an overload once it is over.
async fn after(report: &mut Report) -> Result<()> {
    let mut victims = Victims::of(Server::own("rst", 7_054)?).await?;
    let rounds = Rounds::<2>::run(async |place| {
        if place == 0 {
            let attack = Attack::start(victims.server.address())?;
            time::sleep(LENGTH / 2).await;
            attack.end()?;
        }
        let mut latencies = Vec::with_capacity(IN_TURN * LIMIT);
        for _ in 0..IN_TURN {
            for client in &mut victims.held {
                latencies.push(load::latency(client).await?);
            }
        }
        Ok(quantile(&latencies, 0.99) * 1e6)
    })
    .await?;
    let ratio = rounds.ratio(0, &[1]);
    let what = "p99 of admitted requests, right after an overload : without one";
    report.row(what, Some(1.1), ratio[0], "×", spread(ratio));
    for (place, name) in ["right after an overload", "without one"].into_iter().enumerate() {
        let how = format!("of {} in each turn, one after the other", IN_TURN * LIMIT);
        let what = format!("p99 of admitted requests, {name}");
        report.row(what, None, rounds.median(place), "µs", how);
    }
    Ok(())
}

/// Those who are admitted, as many as may be.
struct Victims {
    server: Server,
    held: Vec<TcpStream>,
}

impl Victims {
    async fn of(server: Server) -> Result<Self> {
        let held = load::hold(server.address(), LIMIT).await?;
        Ok(Self { server, held })
    }

    /// Of their requests, in µs.
    async fn p99(&mut self) -> Result<f64> {
        let held = mem::take(&mut self.held);
        let (held, latencies) = load::ask(held, PER_SECOND, LENGTH).await?;
        self.held = held;
        Ok(quantile(&latencies, 0.99) * 1e6)
    }
}
