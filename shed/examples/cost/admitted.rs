//! What the wrapper costs a connection that is admitted, beside a bare tokio listener.

use anyhow::Result;
use backlogd_shed::ShedStream;
use tokio::net::TcpStream;

use crate::{
    load,
    process::Server,
    report::{Report, median},
    rounds::{Rounds, spread},
};

const CONNECTIONS: usize = 4_000;
/// As many as are held to see what each takes.
const HELD: usize = 10_000;

/// Ours as it is, and with deadlines and a limit by peer.
const OURS: [(&str, &str); 2] = [("all", "ours"), ("watched", "ours with deadlines and per peer")];

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let servers =
        [Server::own("all", 7_031)?, Server::own("watched", 7_033)?, Server::own("bare", 7_032)?];
    let rounds = Rounds::<3>::run(async |place| {
        let server = &servers[place];
        let before = server.cpu()?;
        load::be_served(server.address(), CONNECTIONS).await?;
        Ok((server.cpu()? - before).as_secs_f64() * 1e6 / CONNECTIONS as f64)
    })
    .await?;
    for (place, goal) in [(0, Some(1.02)), (1, None)] {
        let ratio = rounds.ratio(place, &[2]);
        let what =
            format!("CPU of an admitted connection, {} : bare tokio listener", OURS[place].1);
        report.row(what, goal, ratio[0], "×", spread(ratio));
    }
    let how = "accept, a task, one request and its answer, close";
    for (place, name) in [OURS[0].1, OURS[1].1, "bare tokio listener"].into_iter().enumerate() {
        let what = format!("CPU of an admitted connection, {name}");
        report.row(what, None, rounds.median(place), "µs", how);
    }
    drop(servers);
    for (kind, name) in OURS {
        memory(report, kind, name).await?;
    }
    Ok(())
}

async fn memory(report: &mut Report, kind: &str, name: &str) -> Result<()> {
    let mut differences = Vec::new();
    for _ in 0..3 {
        differences.push(held(kind, 7_041).await? - held("bare", 7_042).await?);
    }
    let size = size_of::<ShedStream>() - size_of::<TcpStream>();
    let how = format!(
        "VmRSS of {HELD} held ones less that of a bare listener, median of 3; the stream is {size} \
         bytes larger than its TcpStream"
    );
    let what = format!("memory of an admitted connection beside its stream, {name}");
    report.row(what, Some(1_024.0), median(&differences), "bytes", how);
    Ok(())
}

/// Bytes by which a server grows with each connection that is served and stays.
async fn held(kind: &str, port: u16) -> Result<f64> {
    let server = Server::own(kind, port)?;
    let before = server.memory()?;
    let mut clients = load::hold(server.address(), HELD).await?;
    for client in &mut clients {
        load::request(client).await?;
    }
    Ok((server.memory()? - before) / HELD as f64)
}
