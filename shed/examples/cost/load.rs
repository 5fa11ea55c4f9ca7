//! What clients do, in one thread.

use std::{cell::Cell, fmt::Debug, io, net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
    time::{self, Instant, MissedTickBehavior},
};

/// Connects that are outstanding at once.
const OUTSTANDING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No end: a text that begins with a status line of 200.
    Served,
    Reset,
    Fin,
    /// A text that begins with a status line of 503.
    Text,
}

/// Opens connections that stay.
pub(crate) async fn hold(address: SocketAddr, n: usize) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(n);
    for _ in 0..n {
        held.push(TcpStream::connect(address).await.context("cannot hold a connection")?);
    }
    Ok(held)
}

/// `n` connections, [`OUTSTANDING`] at once, each of which has to end as `expected`. With
/// `says`, that is sent first.
pub(crate) async fn be_shed(
    address: SocketAddr,
    n: usize,
    says: &'static [u8],
    expected: End,
) -> Result<()> {
    each(n, move || async move {
        let end = visit(address, says).await?.end;
        ensure!(end == expected, "{address}: {end:?}, expected {expected:?}");
        Ok(())
    })
    .await
}

/// `n` connections, each of which sends a request, reads the answer and closes.
pub(crate) async fn be_served(address: SocketAddr, n: usize) -> Result<()> {
    each(n, move || async move {
        let mut client = TcpStream::connect(address).await?;
        request(&mut client).await
    })
    .await
}

/// One request over `client`.
pub(crate) async fn request(client: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 512];
    client.write_all(REQUEST).await?;
    let read = time::timeout(PATIENCE, client.read(&mut answer)).await;
    let n = read.with_context(|| hangs(client.peer_addr()))??;
    ensure!(
        answer[..n].starts_with(b"HTTP/1.1 200"),
        "not served: {:?}",
        String::from_utf8_lossy(&answer[..n])
    );
    Ok(())
}

fn hangs(server: impl Debug) -> String {
    format!("a client of {server:?} hangs")
}

async fn each<F: Future<Output = Result<()>> + 'static>(
    n: usize,
    act: impl Fn() -> F + Clone + 'static,
) -> Result<()> {
    let left = Rc::new(Cell::new(n));
    let tasks = LocalSet::new();
    let clients: Vec<_> = (0..OUTSTANDING)
        .map(|_| {
            let (left, act) = (Rc::clone(&left), act.clone());
            tasks.spawn_local(async move {
                while left.get() != 0 {
                    left.set(left.get() - 1);
                    act().await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    tasks
        .run_until(async {
            for client in clients {
                client.await??;
            }
            Ok(())
        })
        .await
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) end: End,
    /// Since it began to connect, which is a little before it was established: an end may be there
    /// before this process knows that it was.
    pub(crate) after: Duration,
    /// None that was reset before this process knew that it was established.
    pub(crate) client: Option<TcpStream>,
}

/// Connects, sends `says`, and waits for what comes.
pub(crate) async fn visit(address: SocketAddr, says: &[u8]) -> Result<Visit> {
    let is_reset = |err: &io::Error| {
        matches!(err.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    };
    let start = Instant::now();
    let mut client = match TcpStream::connect(address).await {
        Ok(client) => client,
        // the reset was quicker than we
        Err(err) if is_reset(&err) => {
            return Ok(Visit { end: End::Reset, after: start.elapsed(), client: None });
        }
        Err(err) => return Err(err.into()),
    };
    let mut bytes = [0; 512];
    let seen = async {
        client.write_all(says).await?;
        client.read(&mut bytes).await
    };
    let seen = time::timeout(PATIENCE, seen).await;
    let end = match seen.with_context(|| hangs(address))? {
        Ok(0) => End::Fin,
        Ok(n) if bytes[..n].starts_with(b"HTTP/1.1 503") => End::Text,
        Ok(n) if bytes[..n].starts_with(b"HTTP/1.1 200") => End::Served,
        Ok(n) => bail!("{address}: {:?}", String::from_utf8_lossy(&bytes[..n])),
        Err(err) if is_reset(&err) => End::Reset,
        Err(err) => return Err(err.into()),
    };
    Ok(Visit { end, after: start.elapsed(), client: Some(client) })
}

/// How long one request over `client` takes, in seconds.
pub(crate) async fn latency(client: &mut TcpStream) -> Result<f64> {
    let start = Instant::now();
    request(client).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// Latencies of requests over connections that are open, each `per_second`, for `length`.
pub(crate) async fn ask(
    clients: Vec<TcpStream>,
    per_second: u32,
    length: Duration,
) -> Result<(Vec<TcpStream>, Vec<f64>)> {
    let end = Instant::now() + length;
    let (n, tasks) = (u32::try_from(clients.len())?, LocalSet::new());
    let period = Duration::from_secs(1) / per_second;
    let asking: Vec<_> = (0..)
        .zip(clients)
        .map(|(place, mut client)| {
            // spread over the period
            let mut ticks = time::interval_at(Instant::now() + period * place / n, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            tasks.spawn_local(async move {
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    ticks.tick().await;
                    latencies.push(latency(&mut client).await?);
                }
                anyhow::Ok((client, latencies))
            })
        })
        .collect();
    tasks
        .run_until(async {
            let (mut clients, mut all) = (Vec::new(), Vec::new());
            for client in asking {
                let (client, latencies) = client.await??;
                clients.push(client);
                all.extend(latencies);
            }
            Ok((clients, all))
        })
        .await
}
