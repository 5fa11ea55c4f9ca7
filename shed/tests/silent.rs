//! Ten thousand peers that connect and say nothing: what they cost, and when they are ended.

#![expect(clippy::print_stderr, reason = "numbers that only a bench could judge are for a person")]

#[path = "overload/space.rs"]
mod space;
mod stats;

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use backlogd_shed::{Cause, Deadline, Deadlines, ShedListener};
use stats::Times;
use tokio::{io::AsyncReadExt as _, task, time};

use crate::space::in_own_space;

const ADDRESS: &str = "BACKLOGD_SHED_SILENT";
const CLIENTS: usize = 10_000;

/// Not a test: a process that is silent clients, if it is told to. Says how many were reset.
#[test]
fn silent_clients() {
    let Ok(address) = env::var(ADDRESS) else { return };
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| TcpStream::connect(&address).expect("queued")).collect();
    let is_reset = |mut client: TcpStream| {
        let got = client.read(&mut [0]).map_err(|err| err.kind());
        got == Err(io::ErrorKind::ConnectionReset)
    };
    let n_reset = clients.into_iter().map(is_reset).filter(|&it| it).count();
    writeln!(io::stdout(), "\n@{n_reset}").expect("somebody reads");
}

#[tokio::test]
#[ignore = "slow: 10,000 clients that are silent for 15 s"]
async fn ten_thousand_silent_peers_cost_little_and_are_ended_in_time() {
    if in_own_space("ten_thousand_silent_peers_cost_little_and_are_ended_in_time") {
        return;
    }
    const FIRST_BYTE: Duration = Duration::from_secs(15);
    let seconds = |n| Some(Duration::from_secs(n));
    let deadlines = Deadlines {
        first_byte: Some(FIRST_BYTE),
        header: seconds(20),
        idle: seconds(60),
        write_stall: seconds(30),
        lifetime: seconds(3_600),
        ..Deadlines::default()
    };
    let times = Times::of(Cause::Deadline);
    let mut listener = ShedListener::bind("127.0.0.1:0")
        .soft(CLIENTS)
        .deadlines(deadlines)
        .decide(times.clone())
        .build()
        .expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            tokio::spawn(async move { conn.read_u8().await });
        }
    });
    let clients = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "silent_clients", "--nocapture"])
        .env(ADDRESS, address.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("clients");
    stats::within(FIRST_BYTE, &handle, |stats| stats.open == CLIENTS as u64).await;
    let (cpu, begun) = (space::cpu(), Instant::now());
    time::sleep(Duration::from_secs(3)).await;
    let used = (space::cpu() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert_eq!(handle.stats().open, CLIENTS as u64, "it was looked at in time");
    assert!(used < 0.02, "{used:.4} of a core");
    let stats = stats::within(FIRST_BYTE * 2, &handle, |stats| stats.open == 0).await;
    assert_eq!(stats.timeouts_of(Deadline::FirstByte), CLIENTS as u64);
    stats::check_identities(&stats);
    let said = task::spawn_blocking(move || clients.wait_with_output().expect("clients").stdout);
    let said = String::from_utf8_lossy(&said.await.expect("they end")).into_owned();
    assert!(said.contains(&format!("@{CLIENTS}")), "{said}");
    let times = times.sorted();
    let (first, most, last) = (times[0], times[CLIENTS * 99 / 100], times[CLIENTS - 1]);
    eprintln!("{used:.4} of a core; ended after {first:?} to {most:?} (p99) and {last:?}");
    // all of them at once take a while: to the tick, tests/deadline.rs has some hundred
    let latest = FIRST_BYTE + Duration::from_secs(1);
    assert!(FIRST_BYTE <= first && most < latest, "{first:?} to {most:?}");
}
