//! The accept loop: accept first, decide at once, stop only at the hard limit.
//!
//! Blocking before accept(2) would leave connections in the kernel's queue, where their clients
//! believe themselves served. So the loop takes whatever is there, some at a time, and closes what
//! is too much on the raw descriptor, before the runtime knows it.

use std::{
    error::Error,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{SockAddr, Socket};
use tokio::{io::unix::AsyncFd, net::TcpStream, task, time};

use crate::{
    accept::{self, Backoff, Class, Spare},
    adaptive::{Codel, Controller},
    close::{self, OnShed},
    conn::ShedStream,
    decide::Refusal,
    handle::Handle,
    handshake::{Handshakes, Named, Pending},
    peer_map::Place,
    permit::Permit,
    places::Places,
    reason::{Cause, Reason, Stage},
    shared::Shared,
    stats::Pause,
    sys,
};

/// So many connections are shed, or begin a handshake, in a row before other tasks have their turn.
const BATCH: usize = 8;

/// A listening socket that sheds what is above its limits.
///
/// Made by [`Builder::build`](crate::Builder::build). [`accept`](Self::accept) yields connections that were admitted; those that
/// are shed meanwhile are not seen.
#[derive(Debug)]
pub struct ShedListener {
    socket: AsyncFd<Socket>,
    local: SocketAddr,
    door: Door,
    handshakes: Handshakes,
}

/// Takes connections from the queue, and decides about them.
#[derive(Debug)]
struct Door {
    shared: Arc<Shared>,
    backoff: Backoff,
    spare: Spare,
    queue_max_wait: Duration,
    /// It stood still, and the queue was not empty since: who waits there may have given up.
    is_recovering: bool,
    /// The hard limit was reached, and there was no room since.
    is_paused: bool,
    codel: Option<Codel>,
    turn: u64,
}

/// A connection that was admitted.
struct Arrival {
    socket: Socket,
    peer: SocketAddr,
    permit: Permit,
    /// How long it was queued, where that was asked.
    waited: Option<Duration>,
    has_header: bool,
}

/// What a connection has that no limit refused.
struct Entry {
    is_exempt: bool,
    has_header: bool,
    waited: Option<Duration>,
    place: Option<Place>,
}

/// What became of a few attempts to accept.
enum Batch {
    Admitted(Arrival),
    /// The queue is empty.
    Empty,
    /// The queue may have more, but others have their turn.
    Yield,
    /// No descriptors or no memory.
    Backoff,
    Fatal(io::Error),
}

/// Why nothing more is accepted.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcceptError {
    /// It was [closed](Handle::close), by this program.
    Closed,
    /// accept(2) fails for ever.
    Fatal(io::Error),
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the listener is closed",
            Self::Fatal(_) => "accept failed, and would fail again",
        })
    }
}

impl Error for AcceptError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Closed => None,
            Self::Fatal(err) => Some(err),
        }
    }
}

impl ShedListener {
    pub(crate) fn new(
        socket: AsyncFd<Socket>,
        local: SocketAddr,
        shared: Arc<Shared>,
        spare: Spare,
        queue_max_wait: Duration,
    ) -> Self {
        let backoff = Backoff::default();
        let (is_recovering, is_paused) = (false, false);
        let codel = shared.adaptive.as_ref().and_then(Controller::codel);
        let door = Door {
            shared,
            backoff,
            spare,
            queue_max_wait,
            is_recovering,
            is_paused,
            codel,
            turn: 0,
        };
        Self { socket, local, door, handshakes: Handshakes::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.door.shared
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What watches and steers it from elsewhere.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.door.shared))
    }

    /// Length and limit of the accept queue, as the kernel has them; at most limit + 1 wait there.
    ///
    /// # Errors
    /// TCP_INFO fails.
    pub fn accept_queue(&self) -> io::Result<(u32, u32)> {
        sys::queue(self.socket.get_ref())
    }

    /// Asks the kernel for another limit of the accept queue, by listen(2) on the live socket, and
    /// gives what it granted: at most net.core.somaxconn. What is queued above stays queued.
    ///
    /// # Errors
    /// listen(2) or TCP_INFO fails.
    pub fn set_backlog(&self, backlog: i32) -> io::Result<u32> {
        self.socket.get_ref().listen(backlog)?;
        Ok(self.accept_queue()?.1)
    }

    /// The next connection that is admitted. It may be cancelled: nothing is lost.
    ///
    /// # Errors
    /// The listener was closed, or can accept nothing more.
    pub async fn accept(&mut self) -> Result<ShedStream, AcceptError> {
        let Self { socket, door, handshakes, .. } = self;
        loop {
            let arrival = tokio::select! {
                biased;
                Some(named) = handshakes.next(), if !handshakes.is_empty() => {
                    match named.admit() {
                        Some(conn) => return Ok(conn),
                        None => continue,
                    }
                }
                arrival = door.next(socket) => arrival,
            };
            match arrival {
                Ok(arrival) => {
                    let (has_header, waited) = (arrival.has_header, arrival.waited);
                    match serve(arrival) {
                        Ok(conn) if has_header => {
                            handshakes.begin(Pending::new(conn, waited, door.turn, &door.shared));
                            // tasks that read headers have to run, too
                            if door.turn.is_multiple_of(BATCH as u64) {
                                task::yield_now().await;
                            }
                        }
                        Ok(conn) => return Ok(conn),
                        Err(err) => door.shared.counters.accept_failed(errno(&err)),
                    }
                }
                // who was accepted before still has its turn
                Err(err) => match handshakes.next().await.map(Named::admit) {
                    Some(Some(conn)) => return Ok(conn),
                    Some(None) => {}
                    None => return Err(err),
                },
            }
        }
    }
}

impl Drop for ShedListener {
    fn drop(&mut self) {
        self.door.shared.close();
    }
}

/// Gives an admitted socket to the runtime.
fn serve(arrival: Arrival) -> io::Result<ShedStream> {
    let Arrival { socket, peer, mut permit, .. } = arrival;
    match TcpStream::from_std(socket.into()) {
        Ok(stream) => Ok(ShedStream::new(stream, peer, permit)),
        Err(err) => {
            permit.ends_by(Cause::Error);
            Err(err)
        }
    }
}

fn errno(err: &io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EIO)
}

impl Door {
    /// The next connection that is admitted. It may be cancelled: nothing is lost.
    async fn next(&mut self, listener: &AsyncFd<Socket>) -> Result<Arrival, AcceptError> {
        loop {
            self.wait_for_room().await?;
            let mut ready = tokio::select! {
                biased;
                ready = listener.readable() => ready.map_err(|err| self.fatal(err))?,
                () = self.shared.closing() => return Err(AcceptError::Closed),
            };
            match self.batch(ready.get_inner()) {
                Batch::Admitted(arrival) => return Ok(arrival),
                Batch::Empty => ready.clear_ready(),
                Batch::Yield => task::yield_now().await,
                Batch::Backoff => self.back_off().await,
                Batch::Fatal(err) => return Err(self.fatal(err)),
            }
        }
    }

    /// Waits while the hard limit is reached, and until there is some room again.
    async fn wait_for_room(&mut self) -> Result<(), AcceptError> {
        let Self { shared, is_recovering, is_paused, .. } = self;
        if shared.is_closed() {
            return Err(AcceptError::Closed);
        }
        if let Some(err) = shared.failure() {
            return Err(AcceptError::Fatal(err));
        }
        if *is_paused || shared.gate.is_full() {
            let _paused = shared.counters.pause(Pause::Hard);
            (*is_recovering, *is_paused) = (true, true);
            let is_over = || shared.gate.has_room() || shared.is_closed();
            while !is_over() {
                shared.gate.changed(is_over).await;
            }
            *is_paused = false;
        }
        if shared.is_closed() { Err(AcceptError::Closed) } else { Ok(()) }
    }

    /// Takes connections until one is admitted, the queue is empty, or others have their turn.
    fn batch(&mut self, listener: &Socket) -> Batch {
        for _ in 0..BATCH {
            match accept::accept(listener) {
                Ok((socket, peer)) => {
                    self.backoff.reset();
                    if let Some(admitted) = self.admit(socket, &peer) {
                        return admitted;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.is_recovering = false;
                    self.codel.iter_mut().for_each(Codel::emptied);
                    return Batch::Empty;
                }
                Err(err) => match self.failed(listener, err) {
                    None => {}
                    Some(batch) => return batch,
                },
            }
            if self.shared.gate.is_full() {
                break;
            }
        }
        Batch::Yield
    }

    /// Decides about a connection; `None`: it was shed.
    fn admit(&mut self, socket: Socket, peer: &SockAddr) -> Option<Batch> {
        // accept(2) gives the address of IPv4 and IPv6 sockets in every state
        let peer = peer.as_socket().unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into());
        if self.shared.probe.is_from(peer) {
            close::reset(socket);
            return None;
        }
        self.shared.counters.accepted();
        self.turn += 1;
        match self.decide(&socket, peer) {
            Ok(entry) => {
                let Entry { is_exempt, has_header, waited, place } = entry;
                let mut permit = Permit::new(Arc::clone(&self.shared), is_exempt);
                permit.hold(place);
                Some(Batch::Admitted(Arrival { socket, peer, permit, waited, has_header }))
            }
            Err((reason, answer)) => {
                self.shared.counters.shed(reason, Stage::Accept);
                let answer = answer.as_ref().unwrap_or_else(|| self.shared.answers.of(reason));
                close::shed(socket, answer, self.turn, &self.shared);
                None
            }
        }
    }

    /// Takes the places of a connection that no limit refuses. What its peer may have, and what the
    /// user says, waits for its header where it has one.
    fn decide(&mut self, socket: &Socket, peer: SocketAddr) -> Result<Entry, Refusal> {
        let asks = self.is_recovering || self.codel.is_some();
        let waited = if asks { sys::waited(socket).ok() } else { None };
        let is_stale = |it: sys::Waited| it.is_gone || self.queue_max_wait < it.age;
        if self.is_recovering && waited.is_some_and(is_stale) {
            return Err((Reason::Stale, None));
        }
        let waited = waited.map(|it| it.age);
        let policy = &self.shared.policy;
        let (is_exempt, has_header) = (policy.is_exempt(peer.ip()), policy.has_header(peer.ip()));
        if !is_exempt {
            self.adapt(waited)?;
        }
        let places = self.take(peer, is_exempt, has_header).map_err(|reason| (reason, None))?;
        if !has_header {
            self.shared.ask_user(peer, is_exempt, waited)?;
        }
        Ok(Entry { is_exempt, has_header, waited, place: places.keep() })
    }

    /// Has the adaptive limit look at the time, and at the wait.
    fn adapt(&mut self, waited: Option<Duration>) -> Result<(), Refusal> {
        let Some(adaptive) = &self.shared.adaptive else { return Ok(()) };
        adaptive.tick(&self.shared.gate);
        if let (Some(codel), Some(age)) = (&mut self.codel, waited)
            && codel.sheds(age, adaptive.now())
        {
            return Err((Reason::Codel, None));
        }
        Ok(())
    }

    fn take(
        &self,
        peer: SocketAddr,
        is_exempt: bool,
        has_header: bool,
    ) -> Result<Places<'_>, Reason> {
        let mut places = Places::hard(&self.shared)?;
        if !is_exempt {
            places.soft()?;
            places.rate()?;
            if !has_header {
                places.peer(peer.ip())?;
            }
        }
        Ok(places)
    }

    /// What to do after a failure; `None`: try again.
    fn failed(&mut self, listener: &Socket, err: io::Error) -> Option<Batch> {
        let errno = errno(&err);
        self.shared.counters.accept_failed(errno);
        match Class::of(errno) {
            Class::Retry => self.backoff.is_stuck().then_some(Batch::Backoff),
            Class::Backoff if [libc::EMFILE, libc::ENFILE].contains(&errno) => {
                self.shed_head(listener)
            }
            Class::Backoff => Some(Batch::Backoff),
            Class::Fatal => Some(Batch::Fatal(err)),
        }
    }

    /// Sheds who is first in the queue, in the place of the spare descriptor.
    fn shed_head(&mut self, listener: &Socket) -> Option<Batch> {
        if !self.spare.is_there() {
            return Some(Batch::Backoff);
        }
        let taken = self.spare.accept(listener);
        let batch = match taken {
            Ok((socket, _)) => {
                self.shared.counters.accepted();
                self.shared.counters.shed(Reason::Emfile, Stage::Accept);
                // what lingers would keep the descriptor
                close::shed(socket, &OnShed::Rst, 0, &self.shared);
                self.backoff.reset();
                None
            }
            // a descriptor is taken before the queue is looked at: the queue was empty all the time
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Some(Batch::Empty),
            Err(_) => Some(Batch::Backoff),
        };
        self.spare.refill();
        batch
    }

    /// Waits for descriptors or memory, at most until a connection gives some back.
    async fn back_off(&mut self) {
        self.is_recovering = true;
        let delay = self.backoff.next();
        let _paused = self.shared.counters.pause(Pause::Backoff);
        let given_back = self.shared.gate.changed(|| self.shared.is_closed());
        // which of the two came first does not matter
        drop(time::timeout(delay, given_back).await);
        self.spare.refill();
    }

    fn fatal(&self, err: io::Error) -> AcceptError {
        self.shared.fail(&err);
        AcceptError::Fatal(err)
    }
}
