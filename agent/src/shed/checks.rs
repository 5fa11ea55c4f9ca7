//! Health checks of one listener, on an address of their own.

use std::{io, net::SocketAddr, time::Duration};

use backlogd_shed::{Handle, health::HealthServer};
use rustix::{
    io::Errno,
    net::{self, AddressFamily, SocketType, sockopt},
};
use tokio::time::{self, Instant};

use super::Health;

/// How often the address is asked for, while the generation before has it. From when that one leaves
/// it, checks are refused for so long.
const RETRY: Duration = Duration::from_millis(2);
/// That one has left it by then: a generation may take 30 s until it is ready, and then it leaves.
const LONGEST: Duration = Duration::from_secs(35);
/// How often it is asked for after that.
const SELDOM: Duration = Duration::from_millis(50);

/// Health checks, and who answers them.
pub(super) struct Checks {
    health: Health,
    local: SocketAddr,
    handle: Handle,
    /// `None`: the generation before has the address so far.
    server: Option<HealthServer>,
}

impl Checks {
    /// Opens the address, to tell of `handle`, which listens on `local`. To be called within a
    /// runtime.
    ///
    /// # Errors
    /// `is_first`, and the kernel refuses the address: nobody is there who would leave it.
    pub(super) fn open(
        health: &Health,
        local: SocketAddr,
        handle: &Handle,
        is_first: bool,
    ) -> io::Result<Self> {
        let mut checks =
            Self { health: health.clone(), local, handle: handle.clone(), server: None };
        match checks.take_address() {
            Err(err) if is_first => Err(err),
            Ok(()) | Err(_) => Ok(checks),
        }
    }

    fn take_address(&mut self) -> io::Result<()> {
        let Self { health, local, handle, .. } = self;
        let server = HealthServer::watch(health.listen, *local, handle, health.config.clone())?;
        self.server = Some(server);
        Ok(())
    }

    /// Where they are answered.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.as_ref().map_or(self.health.listen, HealthServer::local_addr)
    }

    /// Answers them, from when there is an address for that.
    pub(super) async fn answer(mut self) {
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            if let Some(server) = self.server.take() {
                return server.run().await;
            }
            time::sleep(if is_told { SELDOM } else { RETRY }).await;
            let is_late = !is_told && LONGEST < begun.elapsed();
            if !is_late && is_taken(self.health.listen) {
                continue;
            }
            match self.take_address() {
                Err(err) if is_late => {
                    is_told = true;
                    let (listener, listen) = (self.handle.name(), self.health.listen);
                    tracing::error!(listener, %listen, error = %err, "health checks are not answered");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Whether somebody listens there. An attempt to listen tells, too, but looks for who that is, which
/// costs too much to be done so often.
fn is_taken(address: SocketAddr) -> bool {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bound = net::socket(family, SocketType::STREAM, None).and_then(|it| {
        sockopt::set_socket_reuseaddr(&it, true)?;
        net::bind(&it, &address)
    });
    bound == Err(Errno::ADDRINUSE)
}
