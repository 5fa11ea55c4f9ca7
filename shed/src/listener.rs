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

#[cfg(feature = "axum")]
use socket2::{Domain, Type};
use socket2::{SockAddr, Socket};
use tokio::{io::unix::AsyncFd, sync::mpsc, task, time};

use crate::{
    accept::{self, Backoff, Class, Spare},
    admitted::Admitted,
    close::{self, OnShed},
    conn::ShedStream,
    decide::{Candidate, Load, Refusal, Verdict},
    handle::Handle,
    permit::Permit,
    reason::{Reason, Stage},
    shared::Shared,
    stats::Pause,
    sys,
};

/// So many connections are shed in a row before other tasks have their turn.
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
    turn: u64,
    /// Where those who are admitted wait for another runtime, if they do: full, it takes no more.
    handoff: Option<mpsc::Sender<Admitted>>,
}

/// What became of a few attempts to accept.
enum Batch {
    Admitted(Admitted),
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
        let (is_recovering, turn, handoff) = (false, 0, None);
        let door = Door { shared, backoff, spare, queue_max_wait, is_recovering, turn, handoff };
        Self { socket, local, door }
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
        loop {
            if let Ok(conn) = self.admit().await?.serve(&self.door.shared) {
                return Ok(conn);
            }
        }
    }

    /// The next connection that is admitted, for whichever runtime. It may be cancelled, too.
    pub(crate) async fn admit(&mut self) -> Result<Admitted, AcceptError> {
        let door = &mut self.door;
        loop {
            door.wait_for_room().await?;
            let mut ready = tokio::select! {
                biased;
                ready = self.socket.readable() => ready.map_err(|err| door.fatal(err))?,
                () = door.shared.closing() => return Err(AcceptError::Closed),
            };
            match door.batch(ready.get_inner()) {
                Batch::Admitted(admitted) => return Ok(admitted),
                Batch::Empty => ready.clear_ready(),
                Batch::Yield => task::yield_now().await,
                Batch::Backoff => door.back_off().await,
                Batch::Fatal(err) => return Err(door.fatal(err)),
            }
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.door.shared)
    }

    /// Sheds while `handoff`, to which nobody else sends, has no room.
    pub(crate) fn hands_to(&mut self, handoff: mpsc::Sender<Admitted>) {
        self.door.handoff = Some(handoff);
    }

    /// Closes its socket, so that clients are refused and do not queue where nobody accepts. Where
    /// there is no descriptor for another one in its place, it stays.
    #[cfg(feature = "axum")]
    pub(crate) fn stop_listening(&mut self) {
        let other = Socket::new(Domain::IPV4, Type::STREAM, None);
        if let Ok(socket) = other.and_then(sys::watch) {
            self.socket = socket;
        }
    }
}

impl Drop for ShedListener {
    fn drop(&mut self) {
        self.door.shared.close();
    }
}

fn errno(err: &io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EIO)
}

impl Door {
    /// Waits while the hard limit is reached, and until there is some room again.
    async fn wait_for_room(&mut self) -> Result<(), AcceptError> {
        let Self { shared, is_recovering, .. } = self;
        if shared.is_closed() {
            return Err(AcceptError::Closed);
        }
        if let Some(err) = shared.failure() {
            return Err(AcceptError::Fatal(err));
        }
        if shared.gate.is_full() {
            let _paused = shared.counters.pause(Pause::Hard);
            *is_recovering = true;
            let is_over = || shared.gate.has_room() || shared.is_closed();
            while !is_over() {
                shared.gate.changed(is_over).await;
            }
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
        self.shared.counters.accepted();
        self.turn += 1;
        // accept(2) gives the address of IPv4 and IPv6 sockets in every state
        let peer = peer.as_socket().unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into());
        match self.decide(&socket, peer) {
            Ok(()) => {
                let permit = Permit::new(Arc::clone(&self.shared), false);
                Some(Batch::Admitted(Admitted::new(socket, peer, permit)))
            }
            Err((reason, answer)) => {
                self.shared.counters.shed(reason, Stage::Accept);
                let answer = answer.as_ref().unwrap_or_else(|| self.shared.answers.of(reason));
                close::shed(socket, answer, self.turn, &self.shared);
                None
            }
        }
    }

    /// Takes the places of a connection that no limit refuses.
    fn decide(&self, socket: &Socket, peer: SocketAddr) -> Result<(), Refusal> {
        let gate = &self.shared.gate;
        let waited = if self.is_recovering { sys::waited(socket).ok() } else { None };
        if waited.is_some_and(|it| it.is_gone || self.queue_max_wait < it.age) {
            return Err((Reason::Stale, None));
        }
        if self.handoff.as_ref().is_some_and(|handoff| handoff.capacity() == 0) {
            return Err((Reason::Handoff, None));
        }
        if !gate.take_hard() {
            return Err((Reason::Hard, None));
        }
        if !gate.take_soft() {
            gate.give_back_hard();
            return Err((Reason::Soft, None));
        }
        self.ask_user(peer, waited.map(|it| it.age)).inspect_err(|_| {
            gate.give_back_soft();
            gate.give_back_hard();
        })
    }

    fn ask_user(&self, peer: SocketAddr, waited: Option<Duration>) -> Result<(), Refusal> {
        let Some(decide) = &self.shared.decide else { return Ok(()) };
        let gate = &self.shared.gate;
        let open = gate.soft_taken().saturating_sub(1);
        let load = Load { open, soft: gate.soft_limit(), hard: gate.hard_limit() };
        match decide.decide(&Candidate { listener: &self.shared.name, peer, waited }, &load) {
            Verdict::Admit => Ok(()),
            Verdict::Shed(answer) => Err((Reason::Policy, answer)),
        }
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
        let delay = self.backoff.next();
        let _paused = self.shared.counters.pause(Pause::Backoff);
        let given_back = self.shared.gate.changed(|| self.shared.is_closed());
        // which of the two came first does not matter
        drop(time::timeout(delay, given_back).await);
        self.spare.refill();
        self.is_recovering = true;
    }

    fn fatal(&self, err: io::Error) -> AcceptError {
        self.shared.fail(&err);
        AcceptError::Fatal(err)
    }
}
