//! One generation of the model: what it is made of, and what a plain reference says of it.

use std::{
    fs::File,
    panic,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use proptest::prelude::*;
use socket2::Socket;
use tokio::sync::mpsc;

use super::{HARD, OURS, UNWANTED, answers};
use crate::{
    accept::{AcceptError, Spare},
    conn::ShedStream,
    decide::{Candidate, Decide, Load, Verdict},
    descriptors::Claim,
    door::{Batch, Door},
    drain::{self, Drain, Drained, Queued},
    leave::Exit,
    limits::{Bounds, Limits},
    linger::Lingering,
    page::{Held, Page, PageError},
    policy::Settings,
    reason::{Cause, Reason, Stage},
    shared::Shared,
    slots::Lane,
    stats::Stats,
    words::Words,
};

/// What it should have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) accepted: u64,
    pub(super) admitted: u64,
    /// At accept, by reason.
    pub(super) shed: [u64; Reason::ALL.len()],
    pub(super) shed_later: u64,
    pub(super) closed: [u64; Cause::ALL.len()],
    pub(super) open: u64,
    pub(super) exempt_open: u64,
    pub(super) lingering: u64,
}

impl Count {
    pub(super) fn of(stats: &Stats) -> Self {
        let at_accept = |reason| {
            let of = |it: &&((Reason, Stage), u64)| it.0 == (reason, Stage::Accept);
            stats.shed.iter().find(of).map_or(0, |(_, n)| *n)
        };
        Self {
            accepted: stats.accepted,
            admitted: stats.admitted,
            shed: Reason::ALL.map(at_accept),
            shed_later: stats.shed_at(Stage::Handshake),
            closed: Cause::ALL.map(|cause| stats.closed_for(cause)),
            open: stats.open,
            exempt_open: stats.exempt_open,
            lingering: stats.lingering,
        }
    }

    /// What it has of the soft and of the hard limit.
    pub(super) fn taken(&self) -> (u64, u64) {
        (self.open - self.exempt_open, self.open + self.lingering)
    }
}

/// Sheds who comes from one address.
struct DislikesOne;

impl Decide for DislikesOne {
    fn decide(&self, candidate: &Candidate<'_>, _: &Load) -> Verdict {
        if candidate.peer.ip() == UNWANTED { Verdict::Shed(None) } else { Verdict::Admit }
    }
}

pub(super) struct Generation {
    pub(super) shared: Arc<Shared>,
    pub(super) page: Arc<Page>,
    pub(super) door: Door,
    pub(super) open: Vec<ShedStream>,
    pub(super) lingering: Vec<Lingering>,
    arrivals: mpsc::Receiver<Lingering>,
    pub(super) bounds: Bounds,
    pub(super) expected: Count,
    pub(super) is_paused: bool,
    /// The lane of a next one, which has the socket and does not accept so far.
    pub(super) lends_to: Option<Lane>,
    /// As an accept loop has it, and what it should say.
    held: Option<Held>,
    pub(super) listens: bool,
    /// Its drain has begun, and how it ended.
    pub(super) has_begun: bool,
    pub(super) drained: Option<u64>,
    pub(super) is_closed: bool,
}

/// The limits for this soft one.
pub(super) fn limits(soft: usize) -> (Limits, Bounds) {
    let limits = Limits { hard: Some(HARD), ..Limits::soft(soft) };
    (limits, Bounds::new(limits, 1_024).expect("they hold"))
}

impl Generation {
    /// The first one, and what it shares with the others.
    pub(super) fn first() -> (Self, File) {
        let (page, memory) = Page::create().expect("memory");
        (Self::new(page), memory)
    }

    pub(super) fn next(memory: &File) -> Result<Self, PageError> {
        Page::open(memory).map(Self::new)
    }

    fn new(page: Page) -> Self {
        let page = Arc::new(page);
        let entry = page.entry("web").expect("one listener");
        let (limits, bounds) = limits(4);
        let words = Words::Page { page: Arc::clone(&page), entry };
        let exempt = vec![OURS.to_string().parse().expect("a range")];
        let settings = Settings { exempt, ..Settings::default() };
        let policy = settings.check().expect("it holds");
        let (sender, arrivals) = mpsc::channel(64);
        let decide = Some(Box::new(DislikesOne) as Box<_>);
        let claim = Claim::alone(limits);
        let shared = Shared::new("web".into(), claim, words, answers(), policy, decide, sender);
        let shared = Arc::new(shared);
        let spare = Spare::new().expect("a descriptor");
        Self {
            door: Door::new(&shared, spare, Duration::from_secs(3_600), None),
            held: shared.gate.words().hold(),
            listens: true,
            shared,
            page,
            open: vec![],
            lingering: vec![],
            arrivals,
            bounds,
            expected: Count::default(),
            is_paused: false,
            lends_to: None,
            has_begun: false,
            drained: None,
            is_closed: false,
        }
    }

    pub(super) fn lane(&self) -> Lane {
        self.page.lane()
    }

    /// Whether the accept loop would go on, or waits.
    pub(super) fn has_room(&mut self) -> Poll<Result<bool, AcceptError>> {
        pin!(self.door.wait_for_room()).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// One batch of the accept loop; whether it admitted somebody.
    pub(super) fn accept(&mut self, socket: &Socket) -> bool {
        let batch = self.door.batch(socket);
        self.lingering.extend(std::iter::from_fn(|| self.arrivals.try_recv().ok()));
        match batch {
            Batch::Admitted { arrival, .. } => {
                self.open.extend(arrival.serve(&self.shared));
                true
            }
            Batch::Empty | Batch::Taken | Batch::Yield => false,
            Batch::Backoff | Batch::Fatal(_) => panic!("accept(2) does not fail"),
        }
    }

    /// One of those that are open, which ends for `cause`.
    fn take(&mut self, place: usize, cause: Cause) -> Option<ShedStream> {
        let place = place.checked_rem(self.open.len())?;
        let mut conn = self.open.swap_remove(place);
        self.expected.closed[cause as usize] += 1;
        self.expected.open -= 1;
        self.expected.exempt_open -= u64::from(conn.permit().is_exempt());
        Some(conn)
    }

    /// It ends for what whoever serves it says, unless the drain ended it before.
    pub(super) fn close(&mut self, place: usize, cause: Cause) {
        let is_over = self.drained.is_some() && cause != Cause::Shed;
        let counts_as = if is_over { Cause::Drain } else { cause };
        if let Some(mut conn) = self.take(place, counts_as) {
            conn.permit().ends_by(cause);
        }
    }

    /// Whoever serves it panics.
    pub(super) fn panic(&mut self, place: usize) {
        let Some(conn) = self.take(place, Cause::Panic) else { return };
        let panics = thread::spawn(move || {
            let _conn = conn;
            // no message: the hook is for panics that nobody expects
            panic::resume_unwind(Box::new(()));
        });
        panics.join().expect_err("it panics");
    }

    /// It is shed in its handshake, unless the drain ended it before.
    pub(super) fn shed_later(&mut self, place: usize) {
        let is_over = self.drained.is_some();
        let cause = if is_over { Cause::Drain } else { Cause::Shed };
        if let Some(conn) = self.take(place, cause) {
            conn.shed(Reason::ProxyHeader);
            self.expected.shed_later += u64::from(!is_over);
        }
    }

    /// An answer arrived.
    pub(super) fn lingered(&mut self, place: usize) {
        if let Some(place) = place.checked_rem(self.lingering.len()) {
            drop(self.lingering.swap_remove(place));
            self.expected.lingering -= 1;
        }
    }

    pub(super) fn limit(&mut self, soft: usize) {
        self.bounds = self.shared.claim.set(limits(soft).0).expect("they hold");
    }

    /// It is about to hand over to the next one, of `lane`.
    pub(super) fn lend(&mut self, lane: Lane, socket: &Socket) {
        self.shared.life.lend(socket).expect("it listens");
        self.lends_to = Some(lane);
    }

    /// The next one accepts, or else it is gone.
    pub(super) fn has_lent(&mut self, accepts: bool, socket: &Socket) {
        match accepts {
            true => self.shared.life.hand_over(),
            false => self.shared.life.take_back(socket),
        }
        self.lends_to = None;
    }

    /// It is told to drain; told once more, its drain is over. Whether it looks for those that were
    /// killed: nothing is left to them.
    pub(super) fn drain(&mut self, queued: Queued, others_listen: bool) -> bool {
        let drain = Drain { delay: Duration::ZERO, deadline: Duration::from_secs(3_600), queued };
        let told =
            pin!(drain::run(&self.shared, &drain)).poll(&mut Context::from_waker(Waker::noop()));
        let looks = self.lends_to.is_none() && !self.has_begun;
        let (exit, drained) = match (self.has_begun, self.drained) {
            (false, _) if looks && others_listen => (Some(Exit::Hand), None),
            (false, _) => (Some(Exit::Filter { queued }), None),
            (true, None) => (Some(Exit::Now), Some(self.expected.open)),
            (true, drained) => (None, drained),
        };
        assert_eq!(told, drained.map_or(Poll::Pending, |reset| Poll::Ready(Drained { reset })));
        (self.has_begun, self.drained) = (true, drained);
        // as the accept loop does, but for the filter: the socket is everybody's
        let order = self.door.post.order();
        assert_eq!(order.map(|it| it.settle(&self.shared.life, self.held.as_mut())), exit);
        match exit {
            Some(Exit::Filter { queued }) => self.door.is_draining = queued == Queued::Shed,
            Some(Exit::Hand | Exit::Now) => {
                (self.held, self.listens) = (None, false);
                self.shared.close();
                self.is_closed = true;
            }
            Some(Exit::Steer { .. }) | None => {}
        }
        looks
    }

    /// Its process is killed: sockets are closed, and nothing is given back.
    pub(super) fn kill(mut self) {
        for conn in self.open.drain(..) {
            let (_socket, permit) = conn.into_parts();
            std::mem::forget(permit);
        }
        std::mem::forget((self.lingering, self.held));
        self.page.dies();
    }

    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let stats = self.shared.counters.snapshot();
        prop_assert_eq!(&Count::of(&stats), &self.expected);
        prop_assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept));
        let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
        prop_assert_eq!(stats.admitted, closed + stats.open);
        prop_assert_eq!(stats.connection_duration.count(), closed);
        prop_assert_eq!(self.open.len() as u64, stats.open);
        prop_assert_eq!(self.lingering.len() as u64, stats.lingering);
        prop_assert_eq!(self.shared.gate.own_taken() as u64, self.expected.taken().1);
        Ok(())
    }
}
