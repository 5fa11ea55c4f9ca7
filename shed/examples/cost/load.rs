//! What clients do, in one thread.

use std::{
    cell::{Cell, RefCell},
    fmt::Debug,
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

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

/// What shed clients saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
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
        let (end, _) = end(address, says).await?;
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

/// How a connection ended, and how long after it was established.
async fn end(address: SocketAddr, says: &[u8]) -> Result<(End, Duration)> {
    let is_reset = |err: &io::Error| {
        matches!(err.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    };
    let mut client = match TcpStream::connect(address).await {
        Ok(client) => client,
        // the reset was quicker than we
        Err(err) if is_reset(&err) => return Ok((End::Reset, Duration::ZERO)),
        Err(err) => return Err(err.into()),
    };
    let established = Instant::now();
    match client.write_all(says).await {
        Ok(()) => {}
        Err(err) if is_reset(&err) => return Ok((End::Reset, established.elapsed())),
        Err(err) => return Err(err.into()),
    }
    let mut bytes = [0; 512];
    let read = time::timeout(PATIENCE, client.read(&mut bytes)).await;
    let end = match read.with_context(|| hangs(address))? {
        Ok(0) => End::Fin,
        Ok(n) if bytes[..n].starts_with(b"HTTP/1.1 503") => End::Text,
        Ok(n) => bail!("{address}: {:?}", String::from_utf8_lossy(&bytes[..n])),
        Err(err) if is_reset(&err) => End::Reset,
        Err(err) => return Err(err.into()),
    };
    Ok((end, established.elapsed()))
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
                    let start = Instant::now();
                    request(&mut client).await?;
                    latencies.push(start.elapsed().as_secs_f64());
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

/// Connects `per_second`, each of which is to be shed, until it is dropped; adds how long after it
/// was established each knew.
pub(crate) async fn attack(
    address: SocketAddr,
    per_second: u32,
    seconds: &RefCell<Vec<f64>>,
) -> Result<()> {
    // timers have a resolution of 1 ms
    let mut ticks = time::interval(Duration::from_millis(2));
    let tasks = LocalSet::new();
    let known = Rc::new(RefCell::new(Vec::new()));
    tasks
        .run_until(async {
            loop {
                ticks.tick().await;
                seconds.borrow_mut().append(&mut known.borrow_mut());
                for _ in 0..per_second / 500 {
                    let known = Rc::clone(&known);
                    tasks.spawn_local(async move {
                        if let Ok((End::Reset | End::Fin, after)) = end(address, &[]).await {
                            known.borrow_mut().push(after.as_secs_f64());
                        }
                    });
                }
            }
        })
        .await
}
