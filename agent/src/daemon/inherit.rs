//! What the daemon listens on, for scrapes and to shed: inherited from systemd or from the
//! generation before, or opened.

use std::{io, net::TcpListener};

use backlogd_shed::Generation;

use super::{DaemonError, Purpose, failed, server};
use crate::{
    config::Config,
    shed::{Fronts, Restart, SCRAPES, StartError},
    sys::activation,
};

/// What the daemon listens on.
pub(super) struct Inherited {
    pub(super) tcp: TcpListener,
    pub(super) fronts: Option<Fronts>,
    /// What SIGUSR2 does, where it does anything.
    pub(super) restart: Option<Restart>,
}

/// To be called first: descriptor 3 is not ours to take later.
pub(super) fn take(config: &Config, purpose: Purpose) -> Result<Inherited, DaemonError> {
    if config.shed.is_empty() {
        let inherited = activation::inherited()?;
        let tcp = inherited.map_or_else(|| server::bind_tcp(config.listen), Ok)?;
        return Ok(Inherited { tcp, fronts: None, restart: None });
    }
    let mut generation = Generation::take().map_err(StartError::Inherited)?;
    let mut listeners: Vec<_> =
        config.shed.iter().map(|front| (&*front.name, front.listen)).collect();
    listeners.extend(SCRAPES.map(|name| (name, config.listen)));
    if generation.number() == 0 {
        // of a generation before, limits go by the name, too: a listener by another name is another
        generation.name_by_address(&listeners);
    }
    let tcp = SCRAPES.into_iter().find_map(|name| Some((name, generation.take_fd(name)?)));
    let tcp = match tcp {
        Some((name, socket)) => activation::listener(socket, &format!("the socket {name:?}"))?,
        None => server::bind_tcp(config.listen)?,
    };
    let fronts = Some(Fronts::start(&config.shed, &mut generation)?);
    let restart = match purpose {
        Purpose::Watch => None,
        Purpose::Shed => Some(restart(generation, &tcp).map_err(failed("handovers"))?),
    };
    Ok(Inherited { tcp, fronts, restart })
}

fn restart(mut generation: Generation, tcp: &TcpListener) -> io::Result<Restart> {
    generation.pass_fd(SCRAPES[0], tcp.try_clone()?.into());
    Restart::new(generation)
}
