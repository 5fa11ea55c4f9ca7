//! A server of one line that is restarted without a gap: `kill -USR2 PID` starts the program again,
//! the one that is at its path by then, with the same listening socket and the same limits, and
//! this one drains. `kill PID` drains and ends. Under systemd, a socket unit's socket is taken by
//! its name, `web`.
//!
//! `cargo run --example restart`

use std::{
    env,
    error::Error,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{self, PathBuf},
    process::{self, Command},
};

use backlogd_shed::{AcceptError, Drain, Generation, ShedListener};
use tokio::{
    io::AsyncWriteExt as _,
    signal::unix::{SignalKind, signal},
};

/// The path by which this program was started, for whatever is there later: what `current_exe`
/// gives follows the file, also when another one has its place.
fn program() -> io::Result<PathBuf> {
    match env::args_os().next() {
        Some(name) if name.as_bytes().contains(&b'/') => path::absolute(name),
        // found by PATH
        _ => env::current_exe(),
    }
}

#[expect(clippy::print_stderr, reason = "an example has no other log")]
fn say(err: &dyn Error) {
    match err.source() {
        Some(source) => eprintln!("restart: {err}: {source}"),
        None => eprintln!("restart: {err}"),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let program = program()?;
    let mut generation = Generation::take()?;
    let mut listener =
        ShedListener::bind("127.0.0.1:8080").name("web").soft(1_000).build_in(&mut generation)?;
    let handle = listener.handle();
    let mut restart = signal(SignalKind::user_defined2())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let number = generation.number();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok(mut conn) => {
                    let line = format!("hello from generation {number}\n");
                    tokio::spawn(async move { conn.write_all(line.as_bytes()).await });
                }
                Err(AcceptError::Closed) => return,
                Err(err) => {
                    say(&err);
                    process::exit(1);
                }
            }
        }
    });
    generation.ready()?;

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = restart.recv() => {}
        }
        let next = tokio::select! {
            // the next one is killed, if it is not ready
            _ = terminate.recv() => break,
            next = generation.hand_over(Command::new(&program)) => next,
        };
        match next {
            Ok(_) => break,
            // whatever goes wrong with the next one, this one goes on
            Err(err) => say(&err),
        }
    }
    handle.drain(Drain::default()).await;
    Ok(())
}
