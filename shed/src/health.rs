//! Health checks that the limits do not reach: a listener of their own, with descriptors of its
//! own.
//!
//! A balancer whose check is shed takes the server away, its load moves on, and the next server
//! falls. So `/healthz` and `/readyz` are answered here, in HTTP/1, with 200 or 503:
//! - `/healthz`: whether the accept loop accepts. The server asks itself, by a connection through
//!   its own socket that takes no place in the limits; no answer for 5 s is a no, unless the loop
//!   stands still at the hard limit, or for want of descriptors, or there is no descriptor, memory
//!   or port to ask with, or it drains or was [closed](crate::Handle::close), or another
//!   [generation](crate::Generation) has the socket, too, which would be the one to answer.
//! - `/readyz`: that, and that it neither [drains](crate::Handle::drain), from the announcement on,
//!   nor is closed, nor [said to](Health::drain) end, nor without descriptors for more than a
//!   second, nor overloaded, where [`HealthConfig::fail_at`] says so. It comes back only after
//!   [`HealthConfig::recover_after`] below 90 % of the soft limit.
//!
//! There is no task but the one that the owner spawns, or awaits.
//!
//! ```
//! use backlogd_shed::{ShedListener, health::{HealthConfig, HealthServer}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = ShedListener::bind("127.0.0.1:0").soft(100).build()?;
//! let server = HealthServer::bind("127.0.0.1:0".parse()?, &listener, HealthConfig::default())?;
//! let health = server.health();
//! tokio::spawn(server.run());
//! assert_eq!(health.readiness(), Ok(()));
//! health.drain();
//! assert!(health.readiness().is_err());
//! # Ok(())
//! # }
//! ```

use std::{
    collections::VecDeque,
    future, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    runtime,
    task::{self, AbortHandle, JoinSet},
    time::{self, Instant},
};

use crate::{
    accept::{self, Spare, is_without_descriptors},
    build_error::BuildError,
    drain::Stage,
    handle::Handle,
    listener::ShedListener,
    shared::Shared,
    stats::Pause,
    sys,
};

mod http;
mod policy;
mod probe;

pub use policy::{FailAt, HealthConfig, Unready};
use policy::{Lack, Readiness, Seen};
pub(crate) use probe::Probe;

/// As many checks are answered at once; for one more, the oldest is ended.
const AT_ONCE: usize = 8;
/// Descriptors that are kept for checks when there are none.
const RESERVE: usize = 4;
/// A check has so long, from accept to the end.
const CHECK: Duration = Duration::from_secs(2);
/// How often the load is looked at; checks look, too.
const TICK: Duration = Duration::from_millis(250);

/// Answers health checks. See the [module](self).
#[derive(Debug)]
pub struct HealthServer {
    socket: AsyncFd<Socket>,
    local: SocketAddr,
    /// The listener's own, for the probe.
    target: SocketAddr,
    reserve: Vec<Spare>,
    health: Health,
}

/// How a listener is, for any task; its clones are of the same one.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    config: HealthConfig,
    since: Instant,
    is_draining: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    readiness: Readiness,
    lack: Lack,
    /// Probes that were accepted or not sent, and when that last showed that the accept loop runs,
    /// or it was known why not.
    probed: u64,
    fresh: Instant,
}

/// Both answers.
#[derive(Clone, Copy, Debug)]
struct Answers {
    is_alive: bool,
    readiness: Result<(), Unready>,
}

impl HealthServer {
    /// Opens a socket at `address` to answer for `listener`. To be called within a runtime.
    ///
    /// # Errors
    /// The configuration cannot hold, there is no runtime, somebody else has the address, or the
    /// kernel refuses the socket. Within is a [`BuildError`], which names who has the address.
    ///
    /// # Panics
    /// The runtime has no IO ([`enable_io`](tokio::runtime::Builder::enable_io)).
    pub fn bind(
        address: SocketAddr,
        listener: &ShedListener,
        config: HealthConfig,
    ) -> io::Result<Self> {
        Self::watch(address, listener.local_addr(), &listener.handle(), config)
    }

    /// The same for a listener that accepts at `local` by a thread of its own, or by several
    /// sockets.
    ///
    /// # Errors
    /// As of [`bind`](Self::bind).
    ///
    /// # Panics
    /// As `bind`.
    pub fn watch(
        address: SocketAddr,
        local: SocketAddr,
        listener: &Handle,
        config: HealthConfig,
    ) -> io::Result<Self> {
        config.check().map_err(|err| wrong(BuildError::OutOfRange(err)))?;
        if runtime::Handle::try_current().is_err() {
            return Err(wrong(BuildError::NoRuntime));
        }
        let socket = open(address)?;
        let answers_at = socket.local_addr()?.as_socket().unwrap_or(address);
        let now = Instant::now();
        let inner = Inner {
            shared: Arc::clone(listener.shared()),
            state: Mutex::new(State {
                readiness: Readiness::new(&config),
                lack: Lack::default(),
                probed: 0,
                fresh: now,
            }),
            config,
            since: now,
            is_draining: AtomicBool::new(false),
        };
        let reserve = (0..RESERVE).map(|_| Spare::new()).collect::<io::Result<_>>()?;
        let target = probe::target(local);
        let health = Health { inner: Arc::new(inner) };
        Ok(Self { socket: sys::watch(socket)?, local: answers_at, target, reserve, health })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How the listener is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Answers checks, and probes, until it is dropped.
    pub async fn run(mut self) {
        let inner = Arc::clone(&self.health.inner);
        let mut probing = std::pin::pin!(async {
            match inner.config.probe {
                Some(every) => probe::run(&inner.shared, self.target, every).await,
                None => future::pending().await,
            }
        });
        let mut ticks = time::interval(TICK);
        let mut checks = Checks::default();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    inner.answers();
                    self.reserve.iter_mut().for_each(Spare::refill);
                }
                () = &mut probing => {}
                () = checks.next_ended() => self.reserve.iter_mut().for_each(Spare::refill),
                accepted = accept(&self.socket, &mut self.reserve) => {
                    match accepted.and_then(|socket| TcpStream::from_std(socket.into())) {
                        Ok(stream) => checks.answer(stream, &inner).await,
                        // that of the oldest is left, if it can be had
                        Err(err) if is_without_descriptors(&err) && checks.end_oldest().await => {}
                        // an error of the connection, or nothing is left: not in a tight loop
                        Err(_) => time::sleep(Duration::from_millis(10)).await,
                    }
                    self.reserve.iter_mut().for_each(Spare::refill);
                }
            }
        }
    }
}

/// The checks that are answered at the moment.
#[derive(Debug, Default)]
struct Checks {
    tasks: JoinSet<()>,
    /// The oldest is the first; some may have ended.
    by_age: VecDeque<AbortHandle>,
}

impl Checks {
    /// Answers who is at the other end of `stream`. Where there is no place, the oldest check is
    /// ended for it: who connects and says nothing would hold off all others.
    async fn answer(&mut self, stream: TcpStream, inner: &Arc<Inner>) {
        while AT_ONCE <= self.tasks.len() && self.end_oldest().await {}
        let inner = Arc::clone(inner);
        self.by_age.push_back(self.tasks.spawn(async move {
            // a check that is late or goes away needs no answer
            drop(time::timeout(CHECK, check(&stream, &inner)).await);
        }));
        // a request that is there is answered before another check can take its place
        task::yield_now().await;
    }

    /// Ends the oldest, and waits until it has; whether there was one.
    async fn end_oldest(&mut self) -> bool {
        let Some(oldest) = self.by_age.pop_front() else { return false };
        oldest.abort();
        while !oldest.is_finished() && self.tasks.join_next().await.is_some() {}
        self.forget_ended();
        true
    }

    /// Ends when one ends.
    async fn next_ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            future::pending::<()>().await;
        }
        self.forget_ended();
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.by_age.retain(|it| !it.is_finished());
    }
}

/// The socket for checks.
fn open(address: SocketAddr) -> io::Result<Socket> {
    let failed = |call| move |source| wrong(BuildError::at(address, call, source));
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))
        .map_err(failed("socket"))?;
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    socket.bind(&address.into()).map_err(failed("bind"))?;
    socket.listen(128).map_err(failed("listen"))?;
    Ok(socket)
}

/// As an error of the kind that it has, or that of a wrong argument.
fn wrong(err: BuildError) -> io::Error {
    let kind = match &err {
        BuildError::InUse { source, .. } | BuildError::Call { source, .. } => source.kind(),
        _ => io::ErrorKind::InvalidInput,
    };
    io::Error::new(kind, err)
}

/// The next check; where there is no descriptor for it, in the place of one that was kept.
async fn accept(listener: &AsyncFd<Socket>, reserve: &mut [Spare]) -> io::Result<Socket> {
    loop {
        let mut ready = listener.readable().await?;
        let accepted = match accept::accept(ready.get_inner()) {
            Err(err) if is_without_descriptors(&err) => {
                match reserve.iter_mut().find(|spare| spare.is_there()) {
                    Some(spare) => spare.accept(ready.get_inner()),
                    None => Err(err),
                }
            }
            accepted => accepted,
        };
        match accepted {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                reserve.iter_mut().for_each(Spare::refill);
            }
            accepted => return accepted.map(|(socket, _)| socket),
        }
    }
}

/// Reads one request and answers it.
async fn check(stream: &TcpStream, inner: &Inner) -> io::Result<()> {
    let (mut request, mut n) = ([0; http::MOST], 0);
    while n < request.len() && !http::is_whole(&request[..n]) {
        stream.readable().await?;
        match stream.try_read(&mut request[n..]) {
            Ok(0) => break,
            Ok(read) => n += read,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
    let answer = http::answer(&request[..n], inner.answers());
    stream.writable().await?;
    // it is shorter than any send buffer
    stream.try_write(answer.as_bytes())?;
    SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

impl Health {
    /// Fails readiness from now on, for a server that ends in another way than by a
    /// [drain](crate::Handle::drain) of the listener, which fails it by itself.
    pub fn drain(&self) {
        self.inner.is_draining.store(true, Ordering::Relaxed);
    }

    /// Takes [`drain`](Self::drain) back.
    pub fn cancel_drain(&self) {
        self.inner.is_draining.store(false, Ordering::Relaxed);
    }

    /// Whether it should be given connections.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), Unready> {
        self.inner.answers().readiness
    }

    /// Whether its accept loop runs, or stands still for a reason that is known.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.answers().is_alive
    }
}

impl Inner {
    fn answers(&self) -> Answers {
        let (shared, now) = (&self.shared, Instant::now());
        let paused = shared.counters.is_paused();
        // one that failed is to be seen
        let ends = self.is_draining.load(Ordering::Relaxed)
            || shared.life.stage() != Stage::Serving
            || (shared.is_closed() && shared.failure().is_none());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let probed = shared.probe.accepted() + shared.probe.unsent();
        // who stands still for a reason that is known cannot answer, and need not
        let is_excused = paused.is_some()
            || ends
            || shared.gate.words().others_listen()
            || self.config.probe.is_none();
        if is_excused || state.probed != probed {
            (state.probed, state.fresh) = (probed, now);
        }
        let silent = now.saturating_duration_since(state.fresh);
        let age = now.saturating_duration_since(self.since);
        let (shed, accepted) = shared.counters.by_descriptor();
        let refused = shed + shared.probe.refused();
        let lacking = state.lack.next(refused, accepted + shared.probe.accepted(), age);
        let seen = Seen {
            open: shared.gate.soft_taken(),
            soft: shared.gate.soft_in_force(),
            taken: shared.gate.hard_taken(),
            hard: shared.gate.hard_limit(),
            is_draining: ends || shared.is_closed(),
            is_backing_off: paused == Some(Pause::Backoff),
            lacking,
            silent,
        };
        let readiness = state.readiness.next(&seen, age);
        Answers { is_alive: silent <= policy::SILENCE, readiness }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener};

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        close::OnShed,
        descriptors::Claim,
        limits::Limits,
        page::{Held, Page},
        policy::Settings,
        shared::Answers,
        words::Words,
    };

    /// A listener of a generation, and what another one enters by.
    fn listener() -> (Arc<Shared>, File, usize) {
        let (page, memory) = Page::create().expect("a page");
        let (entry, page) = (page.entry("web").expect("a place"), Arc::new(page));
        let (claim, words) = (Claim::alone(Limits::soft(4)), Words::Page { page, entry });
        let answers = Answers::new(OnShed::Rst);
        let policy = Settings::default().check().expect("it holds");
        let shared =
            Shared::new("web".into(), claim, words, answers, policy, None, mpsc::channel(1).0);
        (Arc::new(shared), memory, entry)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_none_while_another_generation_has_the_socket() {
        let (shared, memory, entry) = listener();
        let (config, since) = (HealthConfig::default(), Instant::now());
        let readiness = Readiness::new(&config);
        let state = Mutex::new(State { readiness, lack: Lack::default(), probed: 0, fresh: since });
        let inner = Inner { shared, config, since, is_draining: AtomicBool::new(false), state };
        let after = async |secs| {
            time::advance(Duration::from_secs(secs)).await;
            inner.answers().is_alive
        };
        let other = Arc::new(Page::open(&memory).expect("a lane"));
        let held = Held::new(Arc::clone(&other), entry);
        assert!(after(60).await);
        // it drains: it has its lane, and accepts nobody
        drop(held);
        assert!(after(5).await);
        assert!(!after(1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_probed_unless_another_generation_has_the_socket() {
        let (shared, memory, entry) = listener();
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        socket.set_nonblocking(true).expect("a socket");
        let target = socket.local_addr().expect("bound");
        let is_probed = async || {
            let probing = probe::run(&shared, target, Duration::from_secs(1));
            time::timeout(Duration::from_secs(60), probing).await.expect_err("it goes on");
            socket.accept().is_ok()
        };
        let other = Arc::new(Page::open(&memory).expect("a lane"));
        let held = Held::new(Arc::clone(&other), entry);
        assert!(!is_probed().await);
        drop(held);
        assert!(is_probed().await);
    }
}
