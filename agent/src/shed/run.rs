//! Starts the listeners, and ends them.

use std::{io, mem, net::SocketAddr, sync::Arc, time::Duration};

use backlogd_shed::{
    AcceptError, BuildError, Drain, Handle, ShedListener, Stats, health::HealthServer,
};
use thiserror::Error;
use tokio::{
    runtime::{self, Runtime},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};

use super::{
    Front, Live, bounds, relay,
    settings::{self, Door},
};

/// What was reset has so long to be noticed.
const GRACE: Duration = Duration::from_secs(1);
/// The same trouble with a backend is logged once in so long.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why no listener was started.
#[derive(Debug, Error)]
pub enum StartError {
    /// One of them cannot be as configured.
    #[error("shedding listener {name}")]
    Listener {
        /// Its name.
        name: String,
        /// What is wrong.
        source: BuildError,
    },
    /// Health checks cannot be answered where they should be.
    #[error("shedding listener {name}: cannot answer health checks on {listen}")]
    Health {
        /// Its name.
        name: String,
        /// As configured.
        listen: SocketAddr,
        /// What was asked of the kernel, and failed.
        source: io::Error,
    },
    /// No threads.
    #[error("cannot start the threads of shedding listeners")]
    Runtime(#[source] io::Error),
}

/// The counters of a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// Its name.
    pub listener: String,
    /// What was counted.
    pub stats: Stats,
    /// Its soft limit.
    pub soft: usize,
    /// Its hard limit.
    pub hard: usize,
}

/// Listeners that serve, on threads of their own.
#[derive(Debug)]
pub struct Fronts {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    lives: Vec<Live>,
    tasks: Vec<JoinHandle<()>>,
    /// They answer until all else has ended.
    health: Vec<JoinHandle<()>>,
}

impl Fronts {
    /// Opens all listeners, and then serves on them.
    ///
    /// # Errors
    /// One of them cannot be; none is open then.
    pub fn start(fronts: &[Front]) -> Result<Self, StartError> {
        let runtime = runtime::Builder::new_multi_thread()
            .thread_name("shed")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let opened: Vec<_> = {
            let _entered = runtime.enter();
            fronts.iter().map(open).collect::<Result<_, _>>()?
        };
        let (mut lives, mut tasks, mut health) = (Vec::new(), Vec::new(), Vec::new());
        for Opened { live, doors, checks } in opened {
            let serve = |door| runtime.spawn(serve(door, live.watch()));
            tasks.extend(doors.into_iter().map(serve));
            health.extend(checks.map(|server| runtime.spawn(server.run())));
            lives.push(live);
        }
        Ok(Self { runtime: Some(runtime), lives, tasks, health })
    }

    /// What steers them, from anywhere; in the order in which they were given.
    #[must_use]
    pub fn lives(&self) -> Vec<Live> {
        self.lives.clone()
    }

    /// What reads their counters, from anywhere.
    #[must_use]
    pub fn watch(&self) -> Vec<Handle> {
        self.lives.iter().map(|live| live.handle().clone()).collect()
    }

    /// Drains all listeners: nobody who finished a handshake is lost, and what is open after its
    /// listener's deadline is reset.
    pub async fn stop(mut self) {
        let drain = |live: Live| async move {
            let front = live.front();
            let (delay, deadline) = (front.drain_delay, front.drain);
            live.handle().drain(Drain { delay, deadline, ..Drain::default() }).await
        };
        let mut drains: JoinSet<_> = mem::take(&mut self.lives).into_iter().map(drain).collect();
        while drains.join_next().await.is_some() {}
        for task in mem::take(&mut self.tasks) {
            // only what was reset is left, which ends at once
            drop(time::timeout(GRACE, task).await);
        }
        self.health.iter().for_each(JoinHandle::abort);
    }
}

/// Cuts off what is open.
impl Drop for Fronts {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // a runtime that waits for its threads may not be dropped in a task
            runtime.shutdown_background();
        }
    }
}

/// The counters at this moment.
#[must_use]
pub fn counted(handles: &[Handle]) -> Vec<Counted> {
    let counted = |handle: &Handle| {
        let (soft, hard) = handle.bounds();
        Counted { listener: handle.name().to_owned(), stats: handle.stats(), soft, hard }
    };
    handles.iter().map(counted).collect()
}

/// A listener that is open, and not served so far.
struct Opened {
    live: Live,
    doors: Vec<Door>,
    checks: Option<HealthServer>,
}

fn open(front: &Front) -> Result<Opened, StartError> {
    let name = || front.name.clone();
    let builder = settings::applied(ShedListener::bind(front.listen.to_string()), front);
    let doors = Door::open(builder, front.accept)
        .map_err(|source| StartError::Listener { name: name(), source })?;
    let door = doors.first().expect("there is at least one accept loop");
    let (handle, local) = (door.handle(), door.local_addr());
    let checks = front.health.as_ref().map(|health| {
        let server = HealthServer::watch(health.listen, local, &handle, health.config.clone());
        server.map_err(|source| StartError::Health { name: name(), listen: health.listen, source })
    });
    let checks = checks.transpose()?;
    let (soft, hard) = handle.bounds();
    // they hold: the listener is open
    let bound = bounds(front.limits).map(|it| it.bound().to_string()).unwrap_or_default();
    tracing::info!(
        listener = front.name, listen = %local, backend = %front.backend, soft, hard, bound,
        backlog = door.backlog(), deadlines = front.deadlines(),
        health = checks.as_ref().map(|it| tracing::field::display(it.local_addr())),
        "sheds above the soft limit"
    );
    Ok(Opened { live: Live::new(handle, front), doors, checks })
}

/// Passes connections on until the listener is closed, and then until the last one ends.
async fn serve(mut door: Door, mut fronts: watch::Receiver<Arc<Front>>) {
    let mut front = Arc::clone(&fronts.borrow_and_update());
    let (mut trouble, mut tasks) = (Trouble::default(), JoinSet::new());
    loop {
        tokio::select! {
            accepted = door.accept() => match accepted {
                Ok(conn) => {
                    let front = Arc::clone(&front);
                    tasks.spawn(async move { relay::serve(conn, &front).await });
                }
                Err(AcceptError::Closed) => break,
                Err(err) => {
                    let error = crate::error::chain(&err);
                    tracing::error!(listener = front.name, %error, "accepts nothing more");
                    break;
                }
            },
            Some(ended) = tasks.join_next() => if let Ok(Err(err)) = ended {
                trouble.tell(&front, &err);
            },
            Ok(()) = fronts.changed() => {
                let new = Arc::clone(&fronts.borrow_and_update());
                if new.backlog != front.backlog {
                    set_backlog(&door, &new);
                }
                front = new;
            }
        }
    }
    // who connects while the last ones go on is refused
    drop(door);
    while tasks.join_next().await.is_some() {}
}

fn set_backlog(door: &Door, front: &Front) {
    match door.set_backlog(front.backlog) {
        Ok(backlog) => tracing::info!(listener = front.name, backlog, "queues by another limit"),
        Err(err) => {
            let error = crate::error::chain(&err);
            tracing::error!(listener = front.name, %error, "its backlog stays as it was");
        }
    }
}

/// What was not logged so far.
#[derive(Debug, Default)]
struct Trouble {
    logged: Option<Instant>,
    n: u64,
}

impl Trouble {
    fn tell(&mut self, front: &Front, err: &io::Error) {
        self.n += 1;
        if self.logged.is_none_or(|at| LOG_EVERY <= at.elapsed()) {
            let n_shed = self.n;
            tracing::warn!(
                listener = front.name, backend = %front.backend, error = %err, n_shed,
                "the backend cannot be reached"
            );
            *self = Self { logged: Some(Instant::now()), n: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shed::Backend;

    #[tokio::test]
    async fn they_may_be_dropped_in_a_task() {
        let listen = "127.0.0.1:0".parse().expect("an address");
        let front = Front::new(listen, Backend::Tcp("127.0.0.1:1".into()), 1);
        let fronts = Fronts::start(&[front]).expect("a free port");
        assert_eq!(counted(&fronts.watch())[0].soft, 1);
        drop(fronts);
    }
}
