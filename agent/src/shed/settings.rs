//! What a [`Front`] asks of the library.

use std::{net::SocketAddr, thread};

use backlogd_shed::{
    AcceptError, Accepted, Bounds, BuildError, Builder, Generation, Handle, LimitError,
    ShedListener, ShedStream, health::HealthConfig,
};
use rustix::process::{Resource, getrlimit};

use super::Front;

/// Who accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// So many tasks beside those of the connections, each with a socket of its own: 1 to 1,024.
    Sockets(usize),
    /// As many of them as there are cores.
    Cores,
    /// A thread of its own, which costs a hop for each connection. Nothing that is done for
    /// connections here blocks the threads that serve, so that tasks accept as soon.
    Thread,
}

impl Accept {
    /// Whether the next generation of this program can have the socket.
    pub(crate) fn may_be_handed_over(self) -> bool {
        self == Self::Sockets(1)
    }
}

/// Where health checks are answered, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The address of `/healthz` and `/readyz`.
    pub listen: SocketAddr,
    /// When they fail.
    pub config: HealthConfig,
}

/// So many connections wait for the threads that serve, where another one accepts.
const HANDED_OVER: usize = 1_024;

/// What `fronts` can hold in this process, once it has all the descriptors it may.
///
/// # Errors
/// The place of one that cannot be: there are too few descriptors.
pub fn bounds(fronts: &[Front]) -> Result<Vec<Bounds>, (usize, LimitError)> {
    let most = getrlimit(Resource::Nofile).maximum;
    let most = most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    Bounds::together(&fronts.iter().map(|front| front.limits).collect::<Vec<_>>(), most)
}

/// `builder` with what `front` says, but for where it listens and who accepts.
pub(super) fn applied(mut builder: Builder, front: &Front) -> Builder {
    builder = builder
        .name(&front.name)
        .limits(front.limits)
        .on_shed(front.on_shed.clone())
        .linger(front.linger)
        .queue_max_wait(front.queue_max_wait)
        .exempt(front.exempt.iter().copied())
        .deadlines(front.deadlines);
    for (reason, answer) in &front.on_shed_for {
        builder = builder.on_shed_for(*reason, answer.clone());
    }
    if let Some(backlog) = front.backlog {
        builder = builder.backlog(backlog);
    }
    if let Some(rate) = front.rate {
        builder = builder.rate(rate);
    }
    if let Some(per_ip) = front.per_ip {
        builder = builder.per_ip(per_ip);
    }
    if let Some(settings) = &front.proxy_protocol {
        builder = builder.proxy_protocol(settings.clone());
    }
    if let Some(adaptive) = front.adaptive {
        builder = builder.adaptive(adaptive);
    }
    if let Some(after) = front.give_up_after {
        builder = builder.give_up_after(after);
    }
    builder
}

/// One accept loop.
#[derive(Debug)]
pub(super) enum Door {
    Task(Box<ShedListener>),
    Thread(Accepted),
}

impl Door {
    /// All accept loops that `accept` asks for; a single one has what `generation` inherited.
    pub(super) fn open(
        builder: Builder,
        accept: Accept,
        generation: &mut Generation,
    ) -> Result<Vec<Self>, BuildError> {
        let members = match accept {
            Accept::Thread => return Ok(vec![Self::Thread(builder.build_threaded(HANDED_OVER)?)]),
            Accept::Sockets(1) => {
                return Ok(vec![Self::Task(Box::new(builder.build_in(generation)?))]);
            }
            Accept::Sockets(n) => n,
            Accept::Cores => thread::available_parallelism().map_or(1, Into::into),
        };
        let (_group, listeners) = builder.build_group(members)?;
        Ok(listeners.into_iter().map(|it| Self::Task(Box::new(it))).collect())
    }

    pub(super) async fn accept(&mut self) -> Result<ShedStream, AcceptError> {
        match self {
            Self::Task(listener) => listener.accept().await,
            Self::Thread(accepted) => accepted.accept().await,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        match self {
            Self::Task(listener) => listener.handle(),
            Self::Thread(accepted) => accepted.handle(),
        }
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Task(listener) => listener.local_addr(),
            Self::Thread(accepted) => accepted.local_addr(),
        }
    }
}
