//! What of a listener has to do with its end: its members, its open connections, its drain.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use socket2::Socket;
use tokio::sync::watch;

use crate::{
    drain::{Drained, Stage},
    leave::{self, Exit},
    registry::Registry,
    sys::{self, Slot},
};

/// How far the drain is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) stage: Stage,
    /// It was asked for a second time.
    pub(crate) is_hurried: bool,
    /// Somebody takes it further.
    is_driven: bool,
    /// When it is over at the latest; `None`: there is none, or it is over.
    pub(crate) ends: Option<Instant>,
    pub(crate) drained: Drained,
}

/// Whoever takes a drain further. Dropped before it is done, another one may.
#[derive(Debug)]
pub(crate) struct Driver<'a> {
    life: &'a Life,
    /// How far it was.
    pub(crate) from: Stage,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        self.life.progress.send_modify(|it| it.is_driven = false);
    }
}

impl Progress {
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }
}

/// One accept loop, as the others see it.
#[derive(Debug)]
struct Member {
    orders: watch::Sender<Option<Exit>>,
    accepted: Arc<AtomicU64>,
    socket: Arc<Slot>,
}

/// What one accept loop has of that.
#[derive(Debug)]
pub(crate) struct Post {
    orders: watch::Receiver<Option<Exit>>,
    /// Connections that it accepted. Nobody else adds to it.
    accepted: Arc<AtomicU64>,
    /// Its socket, for those who look at its queue.
    pub(crate) socket: Arc<Slot>,
}

impl Post {
    pub(crate) fn accepted(&self) {
        // one writer: no need for a locked instruction
        self.accepted.store(self.accepted.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Whether there is an order that was not seen.
    pub(crate) fn is_called(&self) -> bool {
        self.orders.has_changed().unwrap_or(false)
    }

    /// Ends when there is.
    pub(crate) async fn called(&self) {
        // a clone: what it sees is not seen here
        drop(self.orders.clone().changed().await);
    }

    /// The order, if it was not seen.
    pub(crate) fn order(&mut self) -> Option<Exit> {
        if !self.is_called() {
            return None;
        }
        *self.orders.borrow_and_update()
    }
}

/// Members, open connections and the drain of one listener.
pub(crate) struct Life {
    pub(crate) registry: Registry,
    pub(crate) progress: watch::Sender<Progress>,
    /// In the order of the kernel's group: that of listen(2), but for one that left, in whose place
    /// the last one is (`__reuseport_detach_sock`, net/core/sock_reuseport.c).
    members: Mutex<Vec<Member>>,
    /// What all were ordered.
    exit: Mutex<Option<Exit>>,
    has_left: watch::Sender<usize>,
    /// The drain's deadline passed.
    is_over: AtomicBool,
    /// The limit of the socket's accept queue, as it is to be where a next generation does not
    /// accept after all; `None`: none starts.
    lent: Mutex<Option<u32>>,
    is_borrowed: AtomicBool,
    /// The listening socket, where it may be handed over.
    kept: Mutex<Option<Socket>>,
}

impl Life {
    pub(crate) fn new() -> Self {
        let begun = Progress {
            stage: Stage::Serving,
            is_hurried: false,
            is_driven: false,
            ends: None,
            drained: Drained::default(),
        };
        Self {
            registry: Registry::new(),
            progress: watch::Sender::new(begun),
            members: Mutex::default(),
            exit: Mutex::default(),
            has_left: watch::Sender::new(0),
            is_over: AtomicBool::new(false),
            lent: Mutex::default(),
            is_borrowed: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exit(&self) -> MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more accept loop.
    pub(crate) fn join(&self) -> Post {
        let (sender, orders) = watch::channel(None);
        let (accepted, socket) = (Arc::<AtomicU64>::default(), Arc::<Slot>::default());
        let mut members = self.members();
        if let Some(exit) = *self.exit() {
            sender.send_replace(Some(exit));
        }
        members.push(Member {
            orders: sender,
            accepted: Arc::clone(&accepted),
            socket: Arc::clone(&socket),
        });
        Post { orders, accepted, socket }
    }

    /// Forgets an accept loop whose socket is closed; how many are left.
    pub(crate) fn left(&self, post: &Post) -> usize {
        let mut members = self.members();
        let place = members.iter().position(|it| Arc::ptr_eq(&it.accepted, &post.accepted));
        if let Some(place) = place {
            members.swap_remove(place);
        }
        let n_left = members.len();
        drop(members);
        self.has_left.send_replace(n_left);
        n_left
    }

    /// How many accept loops there are.
    pub(crate) fn n_members(&self) -> usize {
        self.members().len()
    }

    /// Ends when there are no more than `n` accept loops.
    pub(crate) async fn at_most(&self, n: usize) {
        let mut left = self.has_left.subscribe();
        while n < self.n_members() {
            // no error: the sender is here
            drop(left.changed().await);
        }
    }

    /// Has all leave.
    pub(crate) fn leave(&self, exit: Exit) {
        let members = self.members();
        *self.exit() = Some(exit);
        for member in members.iter() {
            member.orders.send_replace(Some(exit));
        }
    }

    /// Has the last one leave, unless it is the only one; how many there will be.
    pub(crate) fn leave_last(&self) -> Option<usize> {
        let members = self.members();
        let (last, others) = members.split_last()?;
        let n_others = u32::try_from(others.len()).ok().filter(|&n| n != 0)?;
        last.orders.send_replace(Some(Exit::Steer { members: n_others }));
        Some(others.len())
    }

    /// Whether one was told to leave, and has not left.
    pub(crate) fn is_leaving(&self) -> bool {
        self.members().iter().any(|it| it.orders.borrow().is_some())
    }

    /// What each accept loop accepted.
    pub(crate) fn spread(&self) -> Vec<u64> {
        self.members().iter().map(|it| it.accepted.load(Ordering::Relaxed)).collect()
    }

    /// Length and limit of the accept queues, of all accept loops together.
    pub(crate) fn queue(&self) -> io::Result<(u32, u32)> {
        let members = self.members();
        let mut queues = members.iter().filter_map(|it| it.socket.borrow(sys::queue)).peekable();
        if queues.peek().is_none() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        queues.try_fold((0, 0), |(length, limit): (u32, u32), queue| {
            let (more, most) = queue?;
            Ok((length.saturating_add(more), limit.saturating_add(most)))
        })
    }

    /// Asks for another limit of the accept queue of each accept loop.
    pub(crate) fn listen(&self, backlog: Option<u16>) -> io::Result<()> {
        let members = self.members();
        let listen = |socket: &Socket| self.listen_on(socket, backlog).map(drop);
        members.iter().filter_map(|it| it.socket.borrow(listen)).collect()
    }

    /// Asks for another limit of the accept queue of one of them; gives what was granted.
    pub(crate) fn listen_on(&self, socket: &Socket, backlog: Option<u16>) -> io::Result<u32> {
        // held, so that it is not taken for what a next generation asked for
        let mut lent = self.lent();
        sys::listen(socket, backlog)?;
        let (_, limit) = sys::queue(socket)?;
        if let Some(lent) = &mut *lent {
            *lent = limit;
        }
        Ok(limit)
    }

    /// Hurries the drain, where it has begun.
    pub(crate) fn hurry(&self) {
        self.progress.send_if_modified(|it| {
            let has_begun = it.stage != Stage::Serving;
            it.is_hurried |= has_begun;
            has_begun
        });
    }

    /// Begins the drain, or goes on with it; `None`: somebody does, or it is done.
    pub(crate) fn drive(&self) -> Option<Driver<'_>> {
        let mut from = None;
        self.progress.send_if_modified(|it| {
            let may = !it.is_driven && !it.is_done();
            if may {
                it.is_driven = true;
                from = Some(it.stage);
                it.stage = it.stage.max(Stage::Announced);
            }
            may
        });
        from.map(|from| Driver { life: self, from })
    }

    pub(crate) fn stage(&self) -> Stage {
        self.progress.borrow().stage
    }

    /// Resets what is open; from here on, whatever ends does so by the drain.
    pub(crate) fn end_all(&self) -> u64 {
        self.is_over.store(true, Ordering::SeqCst);
        self.registry.end_all()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn lent(&self) -> MutexGuard<'_, Option<u32>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A next generation is about to have `socket`, which listens, and may never accept.
    pub(crate) fn lend(&self, socket: &Socket) -> io::Result<()> {
        let mut lent = self.lent();
        *lent = Some(sys::queue(socket)?.1);
        Ok(())
    }

    /// Whether one starts that does not accept so far.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent().is_some()
    }

    /// The next generation accepts.
    pub(crate) fn hand_over(&self) {
        *self.lent() = None;
    }

    /// The next generation is gone; unless it accepted before, what it did to `socket` is undone.
    pub(crate) fn take_back(&self, socket: &Socket) {
        // held, so that it is not undone what a drain begins meanwhile
        let progress = self.progress.borrow();
        let mut lent = self.lent();
        if let Some(limit) = lent.take()
            && progress.stage < Stage::Closing
        {
            leave::answer(socket);
            // where it fails, the child's is in force
            drop(socket.listen(i32::try_from(limit).unwrap_or(i32::MAX)));
        }
    }

    /// Somebody else has the listening socket, too, for later.
    pub(crate) fn borrows(&self) {
        self.is_borrowed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_borrowed(&self) -> bool {
        self.is_borrowed.load(Ordering::SeqCst)
    }

    /// Keeps the listening socket for a successor, or, `None`, closes it.
    pub(crate) fn keep(&self, socket: Option<Socket>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// The listening socket for a successor; `None`: it is closed.
    pub(crate) fn kept(&self) -> Option<Socket> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().and_then(|socket| socket.try_clone().ok())
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").field("progress", &self.progress).finish_non_exhaustive()
    }
}
