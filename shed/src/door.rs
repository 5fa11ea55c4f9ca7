//! Takes connections from an accept queue and decides about them: nothing waits here for a client.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{SockAddr, Socket};
use tokio::{sync::mpsc, time};

use crate::{
    accept::{self, AcceptError, Backoff, Class, Spare, is_without_descriptors},
    adaptive::{Codel, Controller},
    arrival::Arrival,
    close::{self, OnShed},
    decide::Refusal,
    life::Post,
    meter::{Asked, Meter},
    peer_map::Place,
    permit::Permit,
    places::Places,
    reason::{Reason, Stage},
    shared::Shared,
    stats::Pause,
    sys,
};

/// So many connections are shed, or begin a handshake, in a row before other tasks have their turn.
pub(crate) const BATCH: usize = 8;

/// Takes connections from the queue, and decides about them.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) shared: Arc<Shared>,
    backoff: Backoff,
    spare: Spare,
    queue_max_wait: Duration,
    /// It stood still, and the queue was not empty since: who waits there may have given up.
    is_recovering: bool,
    /// The hard limit was reached, and there was no room since.
    is_paused: bool,
    codel: Option<Codel>,
    turn: u64,
    /// So many are known to be in the queue, unless somebody else took them; 0: unknown.
    n_queued: usize,
    pub(crate) meter: Meter,
    pub(crate) post: Post,
    /// All that is still accepted is shed.
    pub(crate) is_draining: bool,
    give_up_after: Option<Duration>,
    /// Where those who are admitted wait for another runtime, if they do: full, it takes no more.
    handoff: Option<mpsc::Sender<Arrival>>,
}

/// What a connection has that no limit refused.
struct Entry {
    is_exempt: bool,
    has_header: bool,
    waited: Option<Duration>,
    place: Option<Place>,
}

/// What became of a few attempts to accept.
pub(crate) enum Batch {
    Admitted {
        arrival: Arrival,
        /// Nobody else was queued after it.
        is_last: bool,
    },
    /// The queue is empty.
    Empty,
    /// Who was queued was shed; others may have come since.
    Taken,
    /// The queue may have more, but others have their turn.
    Yield,
    /// No descriptors or no memory.
    Backoff,
    Fatal(io::Error),
}

pub(crate) fn errno(err: &io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EIO)
}

/// accept(2) gives the address of IPv4 and IPv6 sockets in every state.
fn address(peer: &SockAddr) -> SocketAddr {
    peer.as_socket().unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())
}

impl Door {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        spare: Spare,
        queue_max_wait: Duration,
        give_up_after: Option<Duration>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            backoff: Backoff::default(),
            spare,
            queue_max_wait,
            is_recovering: false,
            is_paused: false,
            codel: shared.adaptive.as_ref().and_then(Controller::codel),
            turn: 0,
            n_queued: 0,
            meter: shared.counters.meter(),
            post: shared.life.join(),
            is_draining: false,
            give_up_after,
            handoff: None,
        }
    }

    /// Sheds while `handoff`, to which nobody else sends, has no room.
    pub(crate) fn hands_to(&mut self, handoff: mpsc::Sender<Arrival>) {
        self.handoff = Some(handoff);
    }

    /// Waits while the hard limit is reached, and until there is some room again.
    /// `false`: it is to leave first.
    pub(crate) async fn wait_for_room(&mut self) -> Result<bool, AcceptError> {
        let Self { shared, is_recovering, is_paused, meter, post, .. } = self;
        shared.check_open()?;
        if *is_paused || shared.gate.is_full() {
            meter.ends_turn();
            let _paused = shared.counters.pause(Pause::Hard);
            (*is_recovering, *is_paused) = (true, true);
            let is_open = || shared.check_open().is_ok() && !post.is_called();
            let is_over = || shared.gate.has_room() || !is_open();
            while !is_over() {
                shared.gate.changed(is_over).await;
            }
            *is_paused = false;
            shared.check_open()?;
        }
        Ok(!post.is_called())
    }

    /// Takes connections until one is admitted, the queue is empty, or others have their turn.
    /// For when somebody is queued: an accept(2) that finds nobody costs several times as much as
    /// to ask, since it makes a file before it looks (`do_accept`, net/socket.c).
    pub(crate) fn batch(&mut self, listener: &Socket) -> Batch {
        let batch = self.attempts(listener);
        if !matches!(batch, Batch::Admitted { is_last: false, .. }) {
            self.meter.ends_turn();
        }
        batch
    }

    fn attempts(&mut self, listener: &Socket) -> Batch {
        for _ in 0..BATCH {
            match accept::accept(listener) {
                Ok((socket, peer)) => {
                    self.backoff.reset();
                    let (arrival, is_last) = (self.admit(socket, &peer), self.was_last(listener));
                    if is_last {
                        self.emptied();
                    }
                    match arrival {
                        Some(arrival) => return Batch::Admitted { arrival, is_last },
                        None if is_last => return Batch::Taken,
                        None => {}
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.n_queued = 0;
                    self.emptied();
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

    /// Whether nobody is queued after one was accepted. The queue is asked once for all who are
    /// there.
    fn was_last(&mut self, listener: &Socket) -> bool {
        self.n_queued = self.n_queued.saturating_sub(1);
        if self.n_queued == 0 {
            self.n_queued = sys::n_queued(listener);
        }
        self.n_queued == 0
    }

    /// Who comes from here on did not wait while it stood still.
    fn emptied(&mut self) {
        self.is_recovering = false;
        self.codel.iter_mut().for_each(Codel::emptied);
    }

    /// Decides about a connection; `None`: it was shed.
    fn admit(&mut self, socket: Socket, peer: &SockAddr) -> Option<Arrival> {
        let peer = address(peer);
        if self.shared.probe.is_from(peer) {
            close::reset(socket);
            return None;
        }
        let asked = Asked::of(self.turn);
        let begun = asked.decision.then(Instant::now);
        self.accepted();
        self.turn += 1;
        let admitted = self.admit_or_shed(socket, peer, asked.wait);
        if let Some(begun) = begun {
            self.meter.decided(begun.elapsed());
        }
        admitted
    }

    fn accepted(&mut self) {
        self.shared.counters.accepted();
        self.post.accepted();
        self.meter.accepted();
    }

    fn admit_or_shed(
        &mut self,
        socket: Socket,
        peer: SocketAddr,
        asks_wait: bool,
    ) -> Option<Arrival> {
        match self.decide(&socket, peer, asks_wait) {
            Ok(entry) => {
                let Entry { is_exempt, has_header, waited, place } = entry;
                let mut permit = Permit::new(Arc::clone(&self.shared), is_exempt);
                permit.hold(place);
                let turn = self.turn;
                Some(Arrival { socket, peer, permit, waited, has_header, turn })
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
    fn decide(
        &mut self,
        socket: &Socket,
        peer: SocketAddr,
        asks_wait: bool,
    ) -> Result<Entry, Refusal> {
        if self.is_draining {
            return Err((Reason::Draining, None));
        }
        let is_told = self.is_recovering || self.codel.is_some();
        let waited = if is_told || asks_wait { sys::waited(socket).ok() } else { None };
        if let Some(waited) = waited {
            self.meter.waited(waited.age);
        }
        // nobody decides by what is known of some alone
        let waited = waited.filter(|_| is_told);
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
        if self.handoff.as_ref().is_some_and(|handoff| handoff.capacity() == 0) {
            return Err(Reason::Handoff);
        }
        Ok(places)
    }

    /// What to do after a failure; `None`: try again.
    fn failed(&mut self, listener: &Socket, err: io::Error) -> Option<Batch> {
        let errno = errno(&err);
        self.shared.counters.accept_failed(errno);
        if self.gives_up(errno) {
            return Some(Batch::Fatal(err));
        }
        match Class::of(errno) {
            Class::Retry => self.backoff.is_stuck().then_some(Batch::Backoff),
            Class::Backoff if is_without_descriptors(&err) => self.shed_head(listener),
            Class::Backoff => Some(Batch::Backoff),
            Class::Fatal => Some(Batch::Fatal(err)),
        }
    }

    /// Whether accept(2) failed for want of something for too long.
    fn gives_up(&mut self, errno: i32) -> bool {
        self.give_up_after.is_some_and(|after| {
            Class::of(errno) == Class::Backoff && after <= self.backoff.failed(Instant::now())
        })
    }

    /// Sheds who is first in the queue, in the place of the spare descriptor.
    fn shed_head(&mut self, listener: &Socket) -> Option<Batch> {
        if !self.spare.is_there() {
            return Some(Batch::Backoff);
        }
        let taken = self.spare.accept(listener);
        let batch = match taken {
            Ok((socket, peer)) if self.shared.probe.is_from(address(&peer)) => {
                close::reset(socket);
                self.backoff.retry();
                None
            }
            Ok((socket, _)) => {
                self.accepted();
                self.shared.counters.shed(Reason::Emfile, Stage::Accept);
                // what lingers would keep the descriptor
                close::shed(socket, &OnShed::Rst, 0, &self.shared);
                self.backoff.retry();
                None
            }
            // a descriptor is taken before the queue is looked at: the queue was empty all the time
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Some(Batch::Empty),
            Err(err) => {
                self.shared.counters.accept_failed(errno(&err));
                Some(Batch::Backoff)
            }
        };
        self.spare.refill();
        batch
    }

    /// Waits for descriptors or memory, at most until a connection of this process gives some back.
    pub(crate) async fn back_off(&mut self) {
        self.is_recovering = true;
        let delay = self.backoff.next();
        let _paused = self.shared.counters.pause(Pause::Backoff);
        let given_back =
            self.shared.gate.told(|| self.shared.check_open().is_err() || self.post.is_called());
        // which of the two came first does not matter
        drop(time::timeout(delay, given_back).await);
        self.spare.refill();
    }

    pub(crate) fn fatal(&self, err: io::Error) -> AcceptError {
        self.shared.fail(&err);
        AcceptError::Fatal(err)
    }
}
