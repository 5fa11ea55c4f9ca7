//! A model of the accounting: whatever is accepted, shed, admitted and ended in whatever order,
//! both identities hold after each step, and the gate has what is open.

use std::{panic, sync::Arc, thread};

use proptest::prelude::*;
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;

use crate::{
    close::OnShed,
    descriptors::Claim,
    limits::Limits,
    linger::Lingering,
    permit::Permit,
    places::Places,
    policy::Settings,
    reason::{Cause, Reason, Stage},
    shared::{Answers, Shared},
    stats::Counters,
    words::Words,
};

/// One thing that happens to a listener.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A connection comes, exempt or not; where it is shed, its answer lingers or not.
    Accept { is_exempt: bool, lingers: bool },
    /// One that is open ends for this cause.
    Close(usize, Cause),
    /// Whoever serves one that is open panics.
    Panic(usize),
    /// One that is open is shed in its handshake.
    ShedLater(usize),
    /// An answer arrived.
    Lingered(usize),
    /// The soft limit becomes another.
    Limit(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0_usize..16;
    prop_oneof![
        8 => (prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(is_exempt, lingers)| Step::Accept { is_exempt, lingers }),
        3 => (place.clone(), prop::sample::select(Cause::ALL.to_vec()))
            .prop_map(|(it, cause)| Step::Close(it, cause)),
        1 => place.clone().prop_map(Step::Panic),
        1 => place.clone().prop_map(Step::ShedLater),
        2 => place.prop_map(Step::Lingered),
        1 => (1_usize..8).prop_map(Step::Limit),
    ]
}

/// What it should come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    accepted: u64,
    admitted: u64,
    shed_soft: u64,
    shed_hard: u64,
    shed_later: u64,
    panics: u64,
    open: u64,
    exempt_open: u64,
    lingering: u64,
}

impl Count {
    fn of(counters: &Counters) -> Self {
        let stats = counters.snapshot();
        Self {
            accepted: stats.accepted,
            admitted: stats.admitted,
            shed_soft: stats.shed_for(Reason::Soft),
            shed_hard: stats.shed_for(Reason::Hard),
            shed_later: stats.shed_at(Stage::Handshake),
            panics: stats.closed_for(Cause::Panic),
            open: stats.open,
            exempt_open: stats.exempt_open,
            lingering: stats.lingering,
        }
    }
}

struct Listener {
    shared: Arc<Shared>,
    soft: usize,
    hard: usize,
    open: Vec<Permit>,
    lingering: Vec<Lingering>,
    expected: Count,
}

impl Listener {
    fn new() -> Self {
        let (claim, answers) = (Claim::alone(Limits::soft(4)), Answers::new(OnShed::Rst));
        let policy = Settings::default().check().expect("it holds");
        let shared =
            Shared::new("".into(), claim, Words::own(), answers, policy, None, mpsc::channel(1).0);
        let (shared, expected) = (Arc::new(shared), Count::default());
        let (soft, hard) = (shared.gate.soft_limit(), shared.gate.hard_limit());
        Self { shared, soft, hard, open: vec![], lingering: vec![], expected }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Accept { is_exempt, lingers } => self.accept(is_exempt, lingers),
            Step::Close(place, cause) => {
                let panics = cause == Cause::Panic && !self.open.is_empty();
                self.expected.panics += u64::from(panics);
                self.end(place, |mut permit| permit.ends_by(cause));
            }
            Step::Panic(place) => {
                let n_open = self.open.len();
                self.end(place, |permit| {
                    let panics = thread::Builder::new().spawn(move || {
                        let _permit = permit;
                        // no message: the hook is for panics that nobody expects
                        panic::resume_unwind(Box::new(()));
                    });
                    panics.expect("a thread").join().expect_err("it panics");
                });
                self.expected.panics += u64::from(n_open != 0);
            }
            Step::ShedLater(place) if !self.open.is_empty() => {
                self.shared.counters.shed(Reason::Tls, Stage::Handshake);
                self.expected.shed_later += 1;
                self.end(place, |mut permit| permit.ends_by(Cause::Shed));
            }
            Step::ShedLater(_) => {}
            Step::Lingered(place) => {
                if let Some(place) = place.checked_rem(self.lingering.len()) {
                    drop(self.lingering.swap_remove(place));
                    self.expected.lingering -= 1;
                }
            }
            Step::Limit(soft) => {
                let (limits, hard) = (Limits::soft(soft), Some(self.hard));
                let limits = Limits { hard, ..limits };
                self.shared.claim.set(limits).expect("they hold");
                self.soft = soft;
            }
        }
    }

    /// As the accept loop does.
    fn accept(&mut self, is_exempt: bool, lingers: bool) {
        self.shared.counters.accepted();
        self.expected.accepted += 1;
        let places = Places::hard(&self.shared).and_then(|mut places| {
            if is_exempt { Ok(places) } else { places.soft().map(|()| places) }
        });
        let n_soft = usize::try_from(self.expected.open - self.expected.exempt_open);
        let is_full = self.open.len() + self.lingering.len() == self.hard;
        let is_busy = self.soft <= n_soft.expect("few") && !is_exempt;
        match places.map(Places::keep) {
            Ok(_) => {
                assert!(!is_full && !is_busy, "{:?}", self.expected);
                self.open.push(Permit::new(Arc::clone(&self.shared), is_exempt));
                self.expected.admitted += 1;
                self.expected.open += 1;
                self.expected.exempt_open += u64::from(is_exempt);
            }
            Err(reason) => {
                let is_right = if is_full { reason == Reason::Hard } else { is_busy };
                assert!(is_right, "{reason}, {:?}", self.expected);
                self.expected.shed_hard += u64::from(is_full);
                self.expected.shed_soft += u64::from(!is_full);
                self.shared.counters.shed(reason, Stage::Accept);
                if lingers {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                    let may =
                        !is_full && self.lingering.len() < ((self.hard - self.soft) / 2).max(1);
                    let lingering = Lingering::new(socket, &self.shared);
                    assert_eq!(lingering.is_ok(), may);
                    self.expected.lingering += u64::from(may);
                    self.lingering.extend(lingering);
                }
            }
        }
    }

    fn end(&mut self, place: usize, end: impl FnOnce(Permit)) {
        if let Some(place) = place.checked_rem(self.open.len()) {
            let permit = self.open.swap_remove(place);
            self.expected.open -= 1;
            self.expected.exempt_open -= u64::from(permit.is_exempt());
            end(permit);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let stats = self.shared.counters.snapshot();
        prop_assert_eq!(&Count::of(&self.shared.counters), &self.expected);
        prop_assert_eq!(stats.accepted, stats.admitted + stats.shed_at(Stage::Accept));
        let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
        prop_assert_eq!(stats.admitted, closed + stats.open);
        let hard = self.open.len() + self.lingering.len();
        let soft = self.open.iter().filter(|permit| !permit.is_exempt()).count();
        let gate = &self.shared.gate;
        prop_assert_eq!((gate.soft_taken(), gate.hard_taken()), (soft, hard));
        prop_assert!(hard <= self.hard);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn both_identities_hold_whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        let mut listener = Listener::new();
        for step in steps {
            listener.take(step);
            listener.check()?;
        }
        listener.open.clear();
        listener.lingering.clear();
        let gate = &listener.shared.gate;
        prop_assert_eq!((gate.soft_taken(), gate.hard_taken()), (0, 0));
    }
}
