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

pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let servers = [Server::own("all", 7_031)?, Server::own("bare", 7_032)?];
    let rounds = Rounds::<2>::run(async |place| {
        let server = &servers[place];
        let before = server.cpu()?;
        load::be_served(server.address(), CONNECTIONS).await?;
        Ok((server.cpu()? - before).as_secs_f64() * 1e6 / CONNECTIONS as f64)
    })
    .await?;
    let ratio = rounds.ratio(0, &[1]);
    let what = "CPU of an admitted connection, ours : bare tokio listener";
    report.row(what, Some(1.02), ratio[0], "×", spread(ratio));
    let how = "accept, a task, one request and its answer, close";
    for (place, name) in ["ours", "bare tokio listener"].into_iter().enumerate() {
        let what = format!("CPU of an admitted connection, {name}");
        report.row(what, None, rounds.median(place), "µs", how);
    }
    drop(servers);
    memory(report).await
}

async fn memory(report: &mut Report) -> Result<()> {
    let mut differences = Vec::new();
    for _ in 0..3 {
        differences.push(held("all", 7_041).await? - held("bare", 7_042).await?);
    }
    let size = size_of::<ShedStream>() - size_of::<TcpStream>();
    let how = format!(
        "VmRSS of {HELD} held ones less that of a bare listener, median of 3; the stream is {size} \
         bytes larger than its TcpStream"
    );
    let what = "memory of an admitted connection beside its stream";
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
