//! Those who come, again and again, while the server is full.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::{
    sync::oneshot,
    task::{JoinSet, LocalSet},
    time,
};

use crate::{
    load::{self, End, Visit},
    process::Clients,
};

/// New connections per second: four times as many clients as are admitted, each of which comes
/// back ten times.
pub(crate) const PER_SECOND: u32 = 4_000;

/// A process that attacks until it is told to end, or this value is dropped.
#[derive(Debug)]
pub(crate) struct Attack(Clients);

impl Attack {
    /// Returns when the first connection was refused.
    pub(crate) fn start(address: SocketAddr) -> Result<Self> {
        let mut clients = Clients::start(&["attack", &address.to_string()])?;
        let line = clients.line()?;
        ensure!(line == "refused\n", "the attack on {address} did not begin: {line:?}");
        Ok(Self(clients))
    }

    /// Ends it: how long after it began to connect each client knew, in seconds.
    pub(crate) fn end(mut self) -> Result<Vec<f64>> {
        self.0.tell();
        Ok(serde_json::from_str(&self.0.line()?)?)
    }
}

/// Connects, [`PER_SECOND`], each of which is to be refused, until standard input ends.
pub(crate) fn be(address: SocketAddr) -> Result<()> {
    let (told, mut is_told) = oneshot::channel();
    thread::spawn(move || {
        let _nothing = io::stdin().read(&mut [0]);
        // nobody waits only where the attack has failed
        let _ = told.send(());
    });
    let mut known = Vec::new();
    crate::runtime()?.block_on(LocalSet::new().run_until(async {
        // timers have a resolution of 1 ms
        let mut ticks = time::interval(Duration::from_millis(2));
        let mut clients = JoinSet::new();
        while is_told.try_recv().is_err() {
            ticks.tick().await;
            for _ in 0..PER_SECOND / 500 {
                clients.spawn_local(load::visit(address, &[]));
            }
            while let Some(ended) = clients.try_join_next() {
                let Visit { end, after, .. } = ended??;
                ensure!(matches!(end, End::Reset | End::Fin), "{address}: {end:?}");
                if known.is_empty() {
                    println!("refused");
                }
                known.push(after.as_secs_f64());
            }
        }
        anyhow::Ok(())
    }))?;
    println!("{}", serde_json::to_string(&known)?);
    Ok(())
}
