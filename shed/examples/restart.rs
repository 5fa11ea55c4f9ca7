//! A server of one line that is restarted without a gap: `kill -USR2 PID` starts the program again,
//! as it is on disk by then, with the same listening socket and the same limits, and this one
//! drains. `kill PID` drains and ends. Under systemd, a socket unit's socket is taken by its name,
//! `web`.
//!
//! `cargo run --example restart`

use std::{env, error::Error, process::Command};

use backlogd_shed::{Drain, Generation, ShedListener};
use tokio::{
    io::AsyncWriteExt as _,
    signal::unix::{SignalKind, signal},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut generation = Generation::take()?;
    let mut listener =
        ShedListener::bind("127.0.0.1:8080").name("web").soft(1_000).build_in(&mut generation)?;
    let handle = listener.handle();
    let mut restart = signal(SignalKind::user_defined2())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let number = generation.number();
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            let line = format!("hello from generation {number}\n");
            tokio::spawn(async move { conn.write_all(line.as_bytes()).await });
        }
    });
    generation.ready()?;

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = restart.recv() => {}
        }
        // whatever goes wrong with the next one, this one goes on
        if generation.hand_over(Command::new(env::current_exe()?)).await.is_ok() {
            break;
        }
    }
    handle.drain(Drain::default()).await;
    Ok(())
}
