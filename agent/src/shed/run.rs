//! Starts the listeners, and ends them.

use std::{future, io, mem, net::SocketAddr, sync::Arc, time::Duration};

use backlogd_shed::{
    AcceptError, BuildError, Drain, Generation, GenerationError, Handle, Handovers, ShedListener,
    Stats,
};
use thiserror::Error;
use tokio::{
    runtime::{self, Runtime},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};

use super::{
    Front, Generations, Live,
    checks::Checks,
    dial::Dialer,
    relay,
    settings::{self, Door},
    tell,
};
use crate::errno::Errno;

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
    /// It was inherited, which goes with one accept loop alone.
    #[error(
        "shedding listener {name}: got an inherited socket, which has one accept loop; expected \
         neither accept_thread nor more accept_sockets than 1"
    )]
    Accept {
        /// Its name.
        name: String,
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
    /// There are inherited sockets that none of them has.
    #[error(transparent)]
    Inherited(#[from] GenerationError),
    /// No threads.
    #[error("cannot start the threads of shedding listeners")]
    Runtime(#[source] io::Error),
}

impl StartError {
    /// Whether the configuration cannot hold in this process, or is not that of what was inherited.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Listener { source, .. } => matches!(
                source,
                BuildError::Inherited { .. } | BuildError::Adopted { .. } | BuildError::Limits(_)
            ),
            Self::Inherited(err) => matches!(
                err,
                GenerationError::Variable { .. }
                    | GenerationError::Descriptor { .. }
                    | GenerationError::Unused { .. }
            ),
            Self::Accept { .. } => true,
            Self::Health { .. } | Self::Runtime(_) => false,
        }
    }
}

/// A listener that can accept nothing more, though nobody told it to end.
#[derive(Debug, Error)]
#[error("shedding listener {listener} accepts nothing more: {errno}")]
pub struct Dead {
    /// Its name.
    pub listener: String,
    /// The name of the error.
    pub errno: Errno,
    /// What accept(2) answered.
    pub source: AcceptError,
}

impl Dead {
    fn new(front: &Front, source: AcceptError) -> Self {
        let number = match &source {
            AcceptError::Fatal(err) => err.raw_os_error(),
            _ => None,
        };
        let errno = Errno(number.unwrap_or(libc::EIO).unsigned_abs());
        Self { listener: front.name.clone(), errno, source }
    }
}

/// What reads the counters of listeners, from anywhere.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// One for each listener, in the order of the configuration.
    pub handles: Vec<Handle>,
    /// `None`: no other process follows this one.
    pub generations: Option<Generations>,
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
    /// Whether more connections are welcome.
    pub is_ready: bool,
    /// Length and limit of its accept queue; `None`: it is closed.
    pub queue: Option<(u32, u32)>,
    /// How long its drain may go on; `None`: it does not drain.
    pub drain_left: Option<Duration>,
    /// How many generations there were before this process, and how its handovers ended; `None`:
    /// no other process follows it.
    pub generation: Option<(u64, Handovers)>,
}

/// Listeners that serve, on threads of their own.
#[derive(Debug)]
pub struct Fronts {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    lives: Vec<Live>,
    tasks: Vec<JoinHandle<()>>,
    /// What answers health checks and writes the log, until all else has ended.
    aside: Vec<JoinHandle<()>>,
    deaths: mpsc::UnboundedReceiver<Dead>,
}

impl Fronts {
    /// Opens all listeners, those that `generation` inherited by their name, and then serves on
    /// them.
    ///
    /// # Errors
    /// One of them cannot be, or more was inherited; none is open then.
    pub fn start(fronts: &[Front], generation: &mut Generation) -> Result<Self, StartError> {
        let runtime = runtime::Builder::new_multi_thread()
            .thread_name("shed")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let names: Vec<_> = fronts.iter().map(|front| &*front.name).collect();
        generation.check_names(&names)?;
        let opened: Vec<_> = {
            let _entered = runtime.enter();
            fronts.iter().map(|front| open(front, generation)).collect::<Result<_, _>>()?
        };
        generation.check_used()?;
        // one message for each accept loop at most
        let (dies, deaths) = mpsc::unbounded_channel();
        let (mut lives, mut tasks, mut aside) = (Vec::new(), Vec::new(), Vec::new());
        for Opened { live, doors, checks } in opened {
            let dialer = Arc::new(Dialer::default());
            let serve = |door| {
                let (fronts, dialer) = (live.watch(), Arc::clone(&dialer));
                runtime.spawn(serve(door, fronts, dialer, dies.clone()))
            };
            tasks.extend(doors.into_iter().map(serve));
            aside.push(runtime.spawn(tell::run(live.handle().clone())));
            aside.extend(checks.map(|checks| runtime.spawn(checks.answer())));
            lives.push(live);
        }
        Ok(Self { runtime: Some(runtime), lives, tasks, aside, deaths })
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

    /// Ends when one of them can accept nothing more for an error of its own.
    pub async fn dead(&mut self) -> Dead {
        match self.deaths.recv().await {
            Some(dead) => dead,
            None => future::pending().await,
        }
    }

    /// As [`stop`](Self::stop), for the next generation, which accepts already: nobody has to learn
    /// of it before. Health checks are that one's as soon as it sees that their address is free.
    pub async fn leave(self) {
        self.aside.iter().for_each(JoinHandle::abort);
        self.drain(|_| Duration::ZERO).await;
    }

    /// Drains all listeners: nobody who finished a handshake is lost, and what is open after its
    /// listener's deadline is reset.
    pub async fn stop(self) {
        self.drain(|front| front.drain_delay).await;
    }

    async fn drain(mut self, delay: fn(&Front) -> Duration) {
        let drain = |live: Live| async move {
            let front = live.front();
            let (delay, deadline) = (delay(&front), front.drain);
            tell::drained(live.handle(), Drain { delay, deadline, ..Drain::default() }).await;
        };
        let mut drains: JoinSet<_> = mem::take(&mut self.lives).into_iter().map(drain).collect();
        while drains.join_next().await.is_some() {}
        // only what was reset is left, which ends at once, unless it awaits its backend
        let tasks = mem::take(&mut self.tasks);
        let rest = async {
            for task in tasks {
                drop(task.await);
            }
        };
        drop(time::timeout(GRACE, rest).await);
        self.aside.iter().for_each(JoinHandle::abort);
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

impl Watch {
    /// The counters at this moment.
    #[must_use]
    pub fn counted(&self) -> Vec<Counted> {
        let at = std::time::Instant::now();
        let generation = self.generations.as_ref().map(|it| (it.number, *it.handovers.borrow()));
        let counted = |handle: &Handle| {
            let (soft, hard) = handle.bounds();
            let left = |ends: std::time::Instant| ends.saturating_duration_since(at);
            Counted {
                listener: handle.name().to_owned(),
                stats: handle.stats(),
                soft,
                hard,
                is_ready: handle.is_ready(),
                queue: handle.accept_queue().ok(),
                drain_left: handle.drain_ends().map(left),
                generation,
            }
        };
        self.handles.iter().map(counted).collect()
    }
}

/// A listener that is open, and not served so far.
struct Opened {
    live: Live,
    doors: Vec<Door>,
    checks: Option<Checks>,
}

fn open(front: &Front, generation: &mut Generation) -> Result<Opened, StartError> {
    let name = || front.name.clone();
    if !front.accept.may_be_handed_over() && generation.inherits(&front.name) {
        return Err(StartError::Accept { name: name() });
    }
    let builder = settings::applied(ShedListener::bind(front.listen.to_string()), front);
    let doors = Door::open(builder, front.accept, generation)
        .map_err(|source| StartError::Listener { name: name(), source })?;
    let door = doors.first().expect("there is at least one accept loop");
    let (handle, local) = (door.handle(), door.local_addr());
    let checks = front.health.as_ref().map(|health| {
        Checks::open(health, local, &handle, generation.number() == 0)
            .map_err(|source| StartError::Health { name: name(), listen: health.listen, source })
    });
    let checks = checks.transpose()?;
    let (soft, hard) = handle.bounds();
    for warning in handle.warnings() {
        tracing::warn!(listener = front.name, "{warning}");
    }
    let bound = handle.bound().to_string();
    let backlog = handle.accept_queue().ok().map(|(_, limit)| limit);
    tracing::info!(
        listener = front.name, listen = %local, backend = %front.backend, soft, hard, bound,
        backlog, deadlines = front.deadlines(),
        health = checks.as_ref().map(|it| tracing::field::display(it.address())),
        "sheds above the soft limit"
    );
    Ok(Opened { live: Live::new(handle, front), doors, checks })
}

/// Passes connections on until the listener is closed, and then until the last one ends.
async fn serve(
    mut door: Door,
    fronts: watch::Receiver<Arc<Front>>,
    dialer: Arc<Dialer>,
    dies: mpsc::UnboundedSender<Dead>,
) {
    // as it is for each connection: who comes after a change gets what changed
    let front = || Arc::clone(&fronts.borrow());
    let (mut trouble, mut tasks) = (Trouble::default(), JoinSet::new());
    loop {
        tokio::select! {
            accepted = door.accept() => match accepted {
                Ok(conn) => {
                    let (front, dialer) = (front(), Arc::clone(&dialer));
                    tasks.spawn(async move { relay::serve(conn, &front, &dialer).await });
                }
                Err(AcceptError::Closed) => break,
                Err(err) => {
                    let dead = Dead::new(&front(), err);
                    let Dead { listener, errno, source } = &dead;
                    let error = crate::error::chain(source);
                    tracing::error!(listener, %errno, %error, "accepts nothing more");
                    // nobody hears it where the others go on
                    drop(dies.send(dead));
                    break;
                }
            },
            Some(ended) = tasks.join_next() => if let Ok(Err(err)) = ended {
                let front = front();
                tracing::debug!(listener = front.name, error = %err, "shed: no backend");
                trouble.tell(&front, &err);
            },
        }
    }
    // who connects while the last ones go on is refused
    drop(door);
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
        let mut generation = Generation::take().expect("the first");
        let fronts = Fronts::start(&[front], &mut generation).expect("a free port");
        let watch = Watch { handles: fronts.watch(), generations: None };
        assert_eq!(watch.counted()[0].soft, 1);
        drop(fronts);
    }
}
