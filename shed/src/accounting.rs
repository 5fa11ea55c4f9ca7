//! A model of the accounting. Up to three generations of a server, with one socket and one page of
//! limits, accept, shed, serve, lose handlers to panics, drain, start, hand over, leave and are
//! killed, in any order. After each step each has counted what a plain reference says, both
//! identities hold, and the words of the page are what all of them have together: never above a
//! limit, and nothing negative. Whoever drains leaves the socket to another that has it, but to
//! nobody while one starts that may never accept; the last one leaves it to nobody, too.
//!
//! The door, its decisions, what lingers, permits, the drain and the page are the real ones, and so
//! are the sockets. Not here: tasks and threads that wait (tests/loom.rs has their atomics).

mod generation;

use std::{
    collections::VecDeque,
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    task::Poll,
};

use proptest::prelude::*;
use socket2::{Domain, Socket, Type};
use tokio::runtime;

use self::generation::{Count, Generation};
use crate::{
    accept::AcceptError,
    close::OnShed,
    door::BATCH,
    drain::Queued,
    page::PageError,
    reason::{Cause, Reason},
    shared::Answers,
    slots::Lane,
    socket::{self, Reuse},
};

/// The hard limit. The soft ones change.
const HARD: usize = 12;

/// Exempt.
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Refused by the user.
const UNWANTED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const ANYBODY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A reset, an end at once, and an answer that lingers.
fn answers() -> Answers {
    let mut answers = Answers::new(OnShed::Rst);
    answers.set(Reason::Policy, OnShed::Fin);
    answers.set(Reason::Soft, OnShed::bytes("busy"));
    answers
}

/// One thing that happens; the first number says to which generation.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client connects.
    Come(IpAddr),
    /// The accept loop has its turn. `is_late`: it saw room before, and others were quicker.
    Accept(usize, bool),
    /// One that is open ends for this cause.
    Close(usize, usize, Cause),
    /// Whoever serves one that is open panics.
    Panic(usize, usize),
    /// One that is open is shed in its handshake.
    ShedLater(usize, usize),
    /// An answer arrived.
    Lingered(usize, usize),
    /// The soft limit becomes another.
    Limit(usize, usize),
    /// It is to drain, or to have done with it.
    Drain(usize, Queued),
    /// A next generation is started.
    Start(usize),
    /// The one that it started accepts.
    HandOver(usize),
    /// It ends.
    Leave(usize),
    /// It is killed, and the others do not know so far.
    Kill(usize),
    /// It looks for those that were killed.
    Look(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (who, place) = (0_usize..3, 0_usize..16);
    let of = (who.clone(), place);
    prop_oneof![
        12 => prop::sample::select(vec![ANYBODY, ANYBODY, OURS, UNWANTED]).prop_map(Step::Come),
        12 => (who.clone(), prop::bool::weighted(0.2))
            .prop_map(|(who, is_late)| Step::Accept(who, is_late)),
        4 => (of.clone(), prop::sample::select(Cause::ALL.to_vec()))
            .prop_map(|((who, it), cause)| Step::Close(who, it, cause)),
        1 => of.clone().prop_map(|(who, it)| Step::Panic(who, it)),
        1 => of.clone().prop_map(|(who, it)| Step::ShedLater(who, it)),
        2 => of.prop_map(|(who, it)| Step::Lingered(who, it)),
        1 => (who.clone(), 1_usize..=8).prop_map(|(who, soft)| Step::Limit(who, soft)),
        1 => (who.clone(), prop::sample::select(vec![Queued::Serve, Queued::Shed]))
            .prop_map(|(who, queued)| Step::Drain(who, queued)),
        2 => who.clone().prop_map(Step::Start),
        1 => who.clone().prop_map(Step::HandOver),
        1 => who.clone().prop_map(Step::Leave),
        1 => who.clone().prop_map(Step::Kill),
        1 => who.prop_map(Step::Look),
    ]
}

/// All generations, and their clients.
struct World {
    socket: Socket,
    address: SocketAddr,
    memory: File,
    alive: Vec<Generation>,
    /// What those had that were killed, until somebody looks, and whether the socket was among it.
    dead: Vec<(Lane, Count, bool)>,
    /// Clients who wait to be accepted.
    queue: VecDeque<IpAddr>,
    clients: Vec<TcpStream>,
}

impl World {
    fn new() -> Self {
        let any = SocketAddr::new(ANYBODY, 0);
        let socket = socket::bind(any, Reuse::No).expect("a port");
        socket::listen(&socket, Some(4_096)).expect("it is bound");
        let address = socket::local_addr(&socket).expect("it is bound");
        let (first, memory) = Generation::first();
        let (alive, queue) = (vec![first], VecDeque::new());
        Self { socket, address, memory, alive, dead: vec![], queue, clients: vec![] }
    }

    /// What is taken of the soft and of the hard limit.
    fn taken(&self) -> (usize, usize) {
        let counts = self.alive.iter().map(|it| &it.expected);
        let taken = counts.chain(self.dead.iter().map(|(_, count, _)| count)).map(Count::taken);
        let (soft, hard) = taken.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        (usize::try_from(soft).expect("few"), usize::try_from(hard).expect("few"))
    }

    fn take(&mut self, step: Step) {
        if let Step::Come(address) = step {
            return self.come(address);
        }
        if let Step::Start(who) = step {
            return self.start(who);
        }
        if self.alive.is_empty() {
            return;
        }
        let n_alive = self.alive.len();
        match step {
            Step::Come(_) | Step::Start(_) => {}
            Step::HandOver(who) => self.hand_over(who % n_alive),
            Step::Accept(who, is_late) => self.accept(who % n_alive, is_late),
            Step::Close(who, place, cause) => self.alive[who % n_alive].close(place, cause),
            Step::Panic(who, place) => self.alive[who % n_alive].panic(place),
            Step::ShedLater(who, place) => self.alive[who % n_alive].shed_later(place),
            Step::Lingered(who, place) => self.alive[who % n_alive].lingered(place),
            Step::Limit(who, soft) => self.alive[who % n_alive].limit(soft),
            Step::Drain(who, queued) => {
                let who = who % n_alive;
                let others_listen = self.others_listen(who);
                if self.alive[who].drain(queued, others_listen) {
                    self.dead.clear();
                }
            }
            Step::Leave(who) => {
                let left = self.alive.swap_remove(who % n_alive);
                let lane = left.lane();
                drop(left);
                self.is_gone(lane);
            }
            Step::Kill(who) => {
                let killed = self.alive.swap_remove(who % n_alive);
                let lane = killed.lane();
                self.dead.push((lane, killed.expected.clone(), killed.listens));
                killed.kill();
                self.is_gone(lane);
            }
            Step::Look(who) => {
                self.alive[who % n_alive].page.looks();
                self.dead.clear();
            }
        }
    }

    /// Whether others than `who` have the socket, of those that are alive.
    fn others_listen(&self, who: usize) -> bool {
        self.alive.iter().enumerate().any(|(place, it)| place != who && it.listens)
    }

    fn come(&mut self, from: IpAddr) {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.bind(&SocketAddr::new(from, 0).into()).expect("a port");
        client.connect(&self.address.into()).expect("queued");
        self.clients.push(client.into());
        self.queue.push_back(from);
    }

    /// A next generation takes the first lane that is free, or whose owner is dead.
    fn start(&mut self, who: usize) {
        let is_taken = |lane: &Lane| self.alive.iter().any(|it| it.lane() == *lane);
        let lane = Lane::ALL.into_iter().find(|lane| !is_taken(lane));
        match (Generation::next(&self.memory), lane) {
            (Ok(next), Some(lane)) => {
                assert_eq!(next.lane(), lane);
                self.dead.retain(|(dead, ..)| *dead != lane);
                let n_alive = self.alive.len();
                let before = who.checked_rem(n_alive).map(|it| &mut self.alive[it]);
                // of one at a time, and of none that closes; the others are without a parent
                if let Some(it) = before.filter(|it| it.lends_to.is_none() && !it.has_begun) {
                    it.lend(lane, &self.socket);
                }
                self.alive.push(next);
            }
            (Err(PageError::Lanes), None) => {}
            (next, lane) => panic!("{:?} for {lane:?}", next.map(|_| ())),
        }
    }

    /// Where a next generation of this one starts, it accepts; one that is overtaken by a drain is
    /// killed instead.
    fn hand_over(&mut self, who: usize) {
        let it = &mut self.alive[who];
        let Some(lane) = it.lends_to else { return };
        if it.has_begun {
            let next = self.alive.iter().position(|it| it.lane() == lane).expect("it starts");
            return self.take(Step::Kill(next));
        }
        it.has_lent(true, &self.socket);
    }

    /// The generation of `lane` is gone; whoever started it goes on alone.
    fn is_gone(&mut self, lane: Lane) {
        let lender = self.alive.iter_mut().find(|it| it.lends_to == Some(lane));
        if let Some(it) = lender {
            it.has_lent(false, &self.socket);
        }
    }

    fn accept(&mut self, who: usize, is_late: bool) {
        let (_, hard) = self.taken();
        let it = &mut self.alive[who];
        if it.is_closed {
            let room = it.has_room();
            return assert!(matches!(room, Poll::Ready(Err(AcceptError::Closed))), "{room:?}");
        }
        if !is_late {
            it.is_paused = (it.is_paused || HARD <= hard) && it.bounds.resume() < hard;
            let room = it.has_room();
            let is_paused = matches!(room, Poll::Pending);
            assert!(is_paused || matches!(room, Poll::Ready(Ok(true))), "{room:?}");
            assert_eq!(is_paused, it.is_paused, "{hard} taken");
            if is_paused {
                return;
            }
        }
        let is_admitted = (0..BATCH).find_map(|_| self.expect(who)).unwrap_or(false);
        assert_eq!(self.alive[who].accept(&self.socket), is_admitted);
    }

    /// What is to become of the first in the queue: whether it is admitted; `None`: shed, and there
    /// may be more.
    fn expect(&mut self, who: usize) -> Option<bool> {
        let Some(from) = self.queue.pop_front() else { return Some(false) };
        let (soft, hard) = self.taken();
        let it = &mut self.alive[who];
        let count = &mut it.expected;
        count.accepted += 1;
        let reason = match () {
            () if it.door.is_draining => Reason::Draining,
            () if HARD <= hard => Reason::Hard,
            () if from != OURS && it.bounds.soft() <= soft => Reason::Soft,
            () if from == UNWANTED => Reason::Policy,
            () => {
                count.admitted += 1;
                count.open += 1;
                count.exempt_open += u64::from(from == OURS);
                return Some(true);
            }
        };
        count.shed[reason as usize] += 1;
        // half of what is between the limits may linger
        let most = ((HARD - it.bounds.soft()) / 2).max(1) as u64;
        count.lingering += u64::from(reason == Reason::Soft && count.lingering < most);
        (HARD <= self.taken().1).then_some(false)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let taken = self.taken();
        prop_assert!(taken.1 <= HARD);
        let did_listen = self.dead.iter().any(|(.., did_listen)| *did_listen);
        for (who, it) in self.alive.iter().enumerate() {
            it.check()?;
            let gate = &it.shared.gate;
            prop_assert_eq!((gate.soft_taken(), gate.hard_taken()), taken);
            let others_listen = did_listen || self.others_listen(who);
            prop_assert_eq!(gate.words().others_listen(), others_listen);
        }
        Ok(())
    }
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for step in steps {
        world.take(step);
        world.check()?;
    }
    // whoever is left has what it has itself, and in the end nothing
    world.alive.truncate(1);
    for it in &world.alive {
        it.page.looks();
    }
    world.dead.clear();
    world.check()?;
    if let Some(last) = world.alive.pop() {
        let (open, lingering) = (last.open, last.lingering);
        drop((open, lingering));
        let gate = &last.shared.gate;
        prop_assert_eq!((gate.soft_taken(), gate.hard_taken()), (0, 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn both_identities_and_the_shared_limits_hold_whatever_happens(
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async { run(steps) })?;
    }
}
