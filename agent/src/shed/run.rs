//! Starts the listeners, and ends them.

use std::{io, mem, sync::Arc, time::Duration};

use backlogd_shed::{AcceptError, BuildError, Drain, Handle, ShedListener, Stats};
use thiserror::Error;
use tokio::{
    runtime::{self, Runtime},
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};

use super::{Front, relay};

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
    handles: Vec<Handle>,
    tasks: Vec<JoinHandle<()>>,
    drains: Vec<Drain>,
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
        let listeners: Vec<_> = {
            let _entered = runtime.enter();
            fronts.iter().map(open).collect::<Result<_, _>>()?
        };
        let handles = listeners.iter().map(ShedListener::handle).collect();
        let tasks = listeners
            .into_iter()
            .zip(fronts)
            .map(|(listener, front)| runtime.spawn(serve(listener, front.clone())))
            .collect();
        let drain = |front: &Front| Drain {
            delay: front.drain_delay,
            deadline: front.drain,
            ..Drain::default()
        };
        let drains = fronts.iter().map(drain).collect();
        Ok(Self { runtime: Some(runtime), handles, tasks, drains })
    }

    /// What reads their counters, from anywhere.
    #[must_use]
    pub fn watch(&self) -> Vec<Handle> {
        self.handles.clone()
    }

    /// Drains all listeners: nobody who finished a handshake is lost, and what is open after its
    /// listener's deadline is reset.
    pub async fn stop(mut self) {
        let mut drains: JoinSet<_> = mem::take(&mut self.handles)
            .into_iter()
            .zip(mem::take(&mut self.drains))
            .map(|(handle, drain)| async move { handle.drain(drain).await })
            .collect();
        while drains.join_next().await.is_some() {}
        for task in mem::take(&mut self.tasks) {
            // only what was reset is left, which ends at once
            drop(time::timeout(GRACE, task).await);
        }
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

fn open(front: &Front) -> Result<ShedListener, StartError> {
    let mut builder = ShedListener::bind(front.listen.to_string())
        .name(&front.name)
        .limits(front.limits)
        .on_shed(front.on_shed.clone())
        .exempt(front.exempt.iter().copied())
        .deadlines(front.deadlines);
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
    let listener = builder
        .build()
        .map_err(|source| StartError::Listener { name: front.name.clone(), source })?;
    let (soft, hard) = listener.handle().bounds();
    let backlog = listener.accept_queue().map(|(_, limit)| limit).unwrap_or_default();
    tracing::info!(
        listener = front.name, listen = %listener.local_addr(), backend = %front.backend,
        soft, hard, backlog, "sheds above the soft limit"
    );
    Ok(listener)
}

/// Passes connections on until the listener is closed, and then until the last one ends.
async fn serve(mut listener: ShedListener, front: Front) {
    let (front, mut tasks) = (Arc::new(front), JoinSet::new());
    let mut trouble = Trouble::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
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
            }
        }
    }
    // who connects while the last ones go on is refused
    drop(listener);
    while tasks.join_next().await.is_some() {}
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
