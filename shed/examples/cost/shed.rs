//! CPU of the server for a connection that is shed.

use anyhow::Result;

use crate::{
    load::{self, End, REQUEST},
    peers::{LIMIT, Peers},
    process::Server,
    report::Report,
    rounds::{Rounds, spread},
};

/// Connections of one turn.
const CONNECTIONS: usize = 5_000;
/// As the issue has it.
const GOAL: f64 = 1.05;

pub(crate) async fn run(peers: &Peers, report: &mut Report) -> Result<()> {
    let [ours, raw] = [Server::own("rst", 7_001)?, Server::own("raw", 7_003)?];
    let servers = [ours, peers.haproxy_rejects(7_002)?, raw];
    compare(
        report,
        "reset",
        &servers,
        ["HAProxy reject", "accept, SO_LINGER, close"],
        End::Reset,
        b"",
    )
    .await?;
    drop(servers);
    let servers = [Server::own("fin", 7_011)?, peers.nginx_limits(7_012)?];
    compare(report, "end", &servers, ["nginx limit_conn"], End::Fin, b"").await?;
    drop(servers);
    let servers = [Server::own("503", 7_021)?, peers.haproxy_denies(7_022)?];
    compare(report, "503", &servers, ["HAProxy return"], End::Text, REQUEST).await
}

/// The first of `servers` is ours, the second a peer, the others are shown.
async fn compare<const N: usize, const M: usize>(
    report: &mut Report,
    answer: &str,
    servers: &[Server; N],
    names: [&str; M],
    expected: End,
    says: &'static [u8],
) -> Result<()> {
    let mut held = Vec::new();
    for server in servers {
        held.push(load::hold(server.address(), LIMIT + 1).await?);
    }
    let rounds = Rounds::<N>::run(async |place| {
        let server = &servers[place];
        let before = server.cpu()?;
        load::be_shed(server.address(), CONNECTIONS, says, expected).await?;
        Ok((server.cpu()? - before).as_secs_f64() * 1e6 / CONNECTIONS as f64)
    })
    .await?;
    let ratio = rounds.ratio(0, &[1]);
    let what = format!("{answer}, CPU of a shed connection, ours : {}", names[0]);
    report.row(what, Some(GOAL), ratio[0], "×", spread(ratio));
    let how = "utime + stime of the server; 64 connects outstanding";
    for (place, name) in ["ours"].into_iter().chain(names).enumerate() {
        let what = format!("{answer}, CPU of a shed connection, {name}");
        report.row(what, None, rounds.median(place), "µs", how);
    }
    Ok(())
}
