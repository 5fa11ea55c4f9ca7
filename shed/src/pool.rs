//! A pool of connections to backends.
//!
//! One connection to a backend for each request costs a handshake, and a port for a minute. So
//! those whose user says that they are [reusable](Pooled::reuse) wait here for the next one. What
//! is not said to be reusable is closed, which is the safe side. Whoever finds all connections in
//! use waits in line, as long as its own deadline allows.
//!
//! There is no task: expired connections are closed by whoever comes next, or by
//! [`Pool::sweep`], for an owner who wants them closed in time.
//!
//! ```
//! use backlogd_shed::pool::{Backend, Pool, PoolConfig};
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let backend = Backend::Tcp(server.local_addr()?);
//! # tokio::spawn(async move {
//! #     let (mut conn, _) = server.accept().await.unwrap();
//! #     while let Ok(byte) = conn.read_u8().await { conn.write_u8(byte).await.unwrap(); }
//! # });
//! let pool = Pool::new(PoolConfig::default())?;
//! for _ in 0..2 {
//!     let mut conn = pool.get(&backend, None).await?;
//!     conn.write_u8(b'?').await?;
//!     assert_eq!(conn.read_u8().await?, b'?');
//!     conn.reuse(); // the answer is read to its end
//! }
//! assert_eq!((pool.stats().dials, pool.stats().hits), (1, 1));
//! # Ok(())
//! # }
//! ```

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{self, Duration},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

mod config;
mod error;
mod guard;
mod stats;
mod stream;
#[cfg(test)]
mod tests;

pub use config::{ConfigError, PoolConfig};
pub use error::GetError;
pub use guard::Pooled;
pub use stats::{Evicted, PoolStats};
pub use stream::{Backend, BackendStream};

/// Connections to backends, for any task; its clones are the same pool.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: PoolConfig,
    /// One for each connection that may be in use. Its waiters are served in order.
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    hits: AtomicU64,
    dials: AtomicU64,
    timeouts: AtomicU64,
    waiters: AtomicU64,
}

/// What is open.
#[derive(Debug, Default)]
struct State {
    /// The one that was used last is the last; no list is empty.
    idle: HashMap<Backend, VecDeque<Idle>>,
    n_idle: usize,
    in_use: usize,
    evicted: [u64; Evicted::ALL.len()],
    connect_errors: BTreeMap<i32, u64>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Idle {
    stream: BackendStream,
    since: Instant,
}

impl Pool {
    /// An empty pool.
    ///
    /// # Errors
    /// The configuration cannot hold.
    pub fn new(config: PoolConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let inner = Inner {
            slots: Arc::new(Semaphore::new(config.max_total)),
            config,
            state: Mutex::default(),
            hits: AtomicU64::new(0),
            dials: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            waiters: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A connection to `backend`: one that is kept and still open, or a new one. While as many as
    /// may be are in use it waits, behind those who came earlier, until `deadline`; without one as
    /// long as it takes. It may be cancelled.
    ///
    /// # Errors
    /// There was none in time, or the backend cannot be reached.
    pub async fn get(
        &self,
        backend: &Backend,
        deadline: Option<time::Instant>,
    ) -> Result<Pooled, GetError> {
        let deadline = deadline.map(Instant::from_std);
        let permit = self.wait(deadline).await?;
        let (slot, mut kept) = Slot::take(&self.inner, permit, backend);
        while let Some(stream) = kept {
            if stream.is_healthy() {
                self.inner.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Pooled::new(stream, backend.clone(), slot));
            }
            let mut state = self.inner.state();
            state.evict(&stream, Evicted::Unhealthy);
            kept = state.pop(backend, self.inner.config.idle_timeout);
        }
        let stream = self.dial(backend, deadline).await?;
        Ok(Pooled::new(stream, backend.clone(), slot))
    }

    /// Waits in line for the right to use one.
    async fn wait(&self, deadline: Option<Instant>) -> Result<OwnedSemaphorePermit, GetError> {
        let slots = &self.inner.slots;
        if let Ok(permit) = Arc::clone(slots).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiter = Waiter::new(&self.inner.waiters);
        let acquire = Arc::clone(slots).acquire_owned();
        let acquired = match deadline {
            Some(deadline) => timeout_at(deadline, acquire).await,
            None => Ok(acquire.await),
        };
        // the semaphore is never closed, so the inner error does not happen
        acquired.ok().and_then(Result::ok).ok_or_else(|| {
            self.inner.timeouts.fetch_add(1, Ordering::Relaxed);
            GetError::Wait { max_total: self.inner.config.max_total }
        })
    }

    async fn dial(
        &self,
        backend: &Backend,
        deadline: Option<Instant>,
    ) -> Result<BackendStream, GetError> {
        let inner = &self.inner;
        inner.make_room();
        let begun = Instant::now();
        let own = begun + inner.config.connect_timeout;
        let end = deadline.map_or(own, |deadline| deadline.min(own));
        match timeout_at(end, BackendStream::dial(backend, inner.config.keepalive)).await {
            Ok(Ok(stream)) => {
                inner.dials.fetch_add(1, Ordering::Relaxed);
                Ok(stream)
            }
            Ok(Err(source)) => {
                let errno = source.raw_os_error().unwrap_or(libc::EIO);
                *inner.state().connect_errors.entry(errno).or_default() += 1;
                Err(GetError::Connect { backend: backend.clone(), source })
            }
            Err(_) => {
                inner.timeouts.fetch_add(1, Ordering::Relaxed);
                let after = end.saturating_duration_since(begun);
                Err(GetError::ConnectTimeout { backend: backend.clone(), after })
            }
        }
    }

    /// Closes connections that nobody used for the idle timeout, and says how long until the next
    /// one will have to be.
    #[expect(clippy::must_use_candidate, reason = "the sweep is what it is called for")]
    pub fn sweep(&self) -> Option<Duration> {
        self.inner.state().sweep(Instant::now(), self.inner.config.idle_timeout)
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let inner = &self.inner;
        let state = inner.state();
        PoolStats {
            hits: inner.hits.load(Ordering::Relaxed),
            dials: inner.dials.load(Ordering::Relaxed),
            timeouts: inner.timeouts.load(Ordering::Relaxed),
            evictions: Evicted::ALL.map(|why| (why, state.evicted[why as usize])).into(),
            connect_errors: state.connect_errors.clone(),
            idle: state.n_idle,
            in_use: state.in_use,
            waiters: inner.waiters.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the oldest idle connection if there would be too many with one more.
    fn make_room(&self) {
        let mut state = self.state();
        while self.config.max_total < state.n_idle + state.in_use {
            if !state.evict_oldest() {
                return;
            }
        }
    }
}

impl State {
    /// At most once a second: each get would look at each backend otherwise.
    fn sweep_now_and_then(&mut self, timeout: Duration) {
        let now = Instant::now();
        if self.swept.is_none_or(|swept| swept + Duration::from_secs(1) <= now) {
            self.sweep(now, timeout);
        }
    }

    /// The connection to `backend` that was used last.
    fn pop(&mut self, backend: &Backend, timeout: Duration) -> Option<BackendStream> {
        let idle = self.idle.get_mut(backend)?.pop_back()?;
        self.n_idle -= 1;
        self.forget_if_empty(backend);
        if idle.since + timeout <= Instant::now() {
            // so are those before it, which the next sweep closes
            self.evict(&idle.stream, Evicted::Idle);
            return None;
        }
        Some(idle.stream)
    }

    fn evict(&mut self, stream: &BackendStream, why: Evicted) {
        self.evicted[why as usize] += 1;
        if why != Evicted::Error {
            // its last answer was read to the end: nothing is lost, and no TIME_WAIT is left
            stream.reset_at_close();
        }
    }

    fn forget_if_empty(&mut self, backend: &Backend) {
        if self.idle.get(backend).is_some_and(VecDeque::is_empty) {
            self.idle.remove(backend);
        }
    }

    fn sweep(&mut self, now: Instant, timeout: Duration) -> Option<Duration> {
        self.swept = Some(now);
        let mut expired = Vec::new();
        let mut next: Option<Instant> = None;
        self.idle.retain(|_, list| {
            let n = list.partition_point(|idle| idle.since + timeout <= now);
            expired.extend(list.drain(..n));
            let first = list.front().map(|idle| idle.since + timeout);
            next = next.into_iter().chain(first).min();
            !list.is_empty()
        });
        self.n_idle -= expired.len();
        for idle in &expired {
            self.evict(&idle.stream, Evicted::Idle);
        }
        next.map(|next| next.saturating_duration_since(now))
    }

    fn evict_oldest(&mut self) -> bool {
        let oldest = |(_, list): &(&Backend, &VecDeque<Idle>)| list.front().map(|it| it.since);
        let Some(backend) = self.idle.iter().min_by_key(oldest).map(|(it, _)| it.clone()) else {
            return false;
        };
        if let Some(idle) = self.idle.get_mut(&backend).and_then(VecDeque::pop_front) {
            self.n_idle -= 1;
            self.evict(&idle.stream, Evicted::Overflow);
        }
        self.forget_if_empty(&backend);
        true
    }
}

/// The right to use one connection, which becomes one in use, or idle, under one lock: whoever makes
/// room between two would count it as both, and close one for it.
#[derive(Debug)]
struct Slot {
    pool: Arc<Inner>,
    /// It is counted.
    is_in_use: bool,
    // after `Drop`: who is next in line finds the count as it is without this one
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// And a connection to `backend` that is kept, if there is one.
    fn take(
        pool: &Arc<Inner>,
        permit: OwnedSemaphorePermit,
        backend: &Backend,
    ) -> (Self, Option<BackendStream>) {
        let timeout = pool.config.idle_timeout;
        let mut state = pool.state();
        state.sweep_now_and_then(timeout);
        state.in_use += 1;
        let kept = state.pop(backend, timeout);
        (Self { pool: Arc::clone(pool), is_in_use: true, _permit: permit }, kept)
    }

    /// Keeps its connection, that is in use no more.
    fn keep(&mut self, backend: Backend, stream: BackendStream) {
        let mut state = self.pool.state();
        let kept = state.idle.get(&backend).map_or(0, VecDeque::len);
        if self.pool.config.max_idle_per_host <= kept {
            return state.evict(&stream, Evicted::Overflow);
        }
        let idle = Idle { stream, since: Instant::now() };
        state.idle.entry(backend).or_default().push_back(idle);
        state.n_idle += 1;
        state.in_use -= 1;
        self.is_in_use = false;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.is_in_use {
            self.pool.state().in_use -= 1;
        }
    }
}

/// Counts as waiting until it is dropped.
struct Waiter<'a>(&'a AtomicU64);

impl<'a> Waiter<'a> {
    fn new(waiters: &'a AtomicU64) -> Self {
        waiters.fetch_add(1, Ordering::Relaxed);
        Self(waiters)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
