//! What the accept loop, the connections and the handles of one listener have in common.

use std::{
    error::Error,
    fmt, io,
    net::SocketAddr,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};

use crate::{
    accept::AcceptError,
    adaptive::Controller,
    close::OnShed,
    deadline::ticker::Watcher,
    decide::{Candidate, Decide, Load, Refusal, Verdict},
    descriptors::Claim,
    gate::Gate,
    health::Probe,
    leave::Exit,
    life::Life,
    linger::Lingering,
    policy::Policy,
    reason::Reason,
    stats::Counters,
    warning::Warning,
    words::Words,
};

/// What each reason gets.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    default: OnShed,
    by_reason: [Option<OnShed>; Reason::ALL.len()],
}

impl Answers {
    pub(crate) fn new(default: OnShed) -> Self {
        Self { default, by_reason: Default::default() }
    }

    pub(crate) fn set_default(&mut self, answer: OnShed) {
        self.default = answer;
    }

    pub(crate) fn set(&mut self, reason: Reason, answer: OnShed) {
        self.by_reason[reason as usize] = Some(answer);
    }

    /// Whether any is a text.
    #[cfg(feature = "tls")]
    pub(crate) fn has_text(&self) -> bool {
        let given = self.by_reason.iter().flatten();
        given.chain([&self.default]).any(|it| matches!(it, OnShed::Bytes(_)))
    }

    pub(crate) fn of(&self, reason: Reason) -> &OnShed {
        self.by_reason[reason as usize].as_ref().unwrap_or(&self.default)
    }
}

/// Why a listener can accept nothing more.
#[derive(Clone, Copy, Debug)]
enum Failure {
    /// errno of accept(2).
    Call(i32),
    /// The user's [`Decide`] panicked.
    Panic,
}

/// The source of the error where the user's [`Decide`] panicked.
#[derive(Debug)]
struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the accept loop panicked, in Decide::decide")
    }
}

impl Error for Panicked {}

/// One listener.
pub(crate) struct Shared {
    pub(crate) name: Box<str>,
    pub(crate) gate: Arc<Gate>,
    /// What it claims of the descriptors of the process, and so what is in force in the gate.
    pub(crate) claim: Claim,
    pub(crate) counters: Counters,
    pub(crate) answers: Answers,
    pub(crate) policy: Policy,
    pub(crate) decide: Option<Box<dyn Decide>>,
    /// What ends connections that take too long, where there are deadlines.
    pub(crate) watcher: Option<Watcher>,
    /// The size of a request in bytes, at most.
    pub(crate) max_request: u64,
    /// How many shed connections may linger, where that is said.
    pub(crate) max_lingering: Option<usize>,
    pub(crate) adaptive: Option<Controller>,
    pub(crate) probe: Probe,
    pub(crate) life: Life,
    /// Found with the first socket.
    pub(crate) warnings: OnceLock<Vec<Warning>>,
    lingering: mpsc::Sender<Lingering>,
    /// Peers expect a TLS handshake.
    is_before_tls: AtomicBool,
    is_closed: AtomicBool,
    /// Why nothing will be accepted again.
    fatal: OnceLock<Failure>,
    has_failed: Notify,
    has_closed: Notify,
}

impl Shared {
    pub(crate) fn new(
        name: Box<str>,
        claim: Claim,
        words: Words,
        answers: Answers,
        policy: Policy,
        decide: Option<Box<dyn Decide>>,
        lingering: mpsc::Sender<Lingering>,
    ) -> Self {
        let gate = Arc::new(Gate::new(&claim.bounds(), words));
        claim.open(&gate);
        Self {
            name,
            gate,
            claim,
            counters: Counters::new(),
            answers,
            policy,
            decide,
            watcher: None,
            max_request: u64::MAX,
            max_lingering: None,
            adaptive: None,
            probe: Probe::default(),
            life: Life::new(),
            warnings: OnceLock::new(),
            lingering,
            is_before_tls: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            fatal: OnceLock::new(),
            has_failed: Notify::new(),
            has_closed: Notify::new(),
        }
    }

    /// What the user says of a connection that has its places already.
    pub(crate) fn ask_user(
        &self,
        peer: SocketAddr,
        is_exempt: bool,
        waited: Option<Duration>,
    ) -> Result<(), Refusal> {
        let Some(decide) = &self.decide else { return Ok(()) };
        let gate = &self.gate;
        let open = gate.soft_taken().saturating_sub(usize::from(!is_exempt));
        let load = Load { open, soft: gate.soft_limit(), hard: gate.hard_limit() };
        let candidate = Candidate { listener: &self.name, peer, is_exempt, waited };
        // one that panicked is not asked again
        if let Some(Failure::Panic) = self.fatal.get() {
            return Err((Reason::Policy, None));
        }
        // caught, so that the connection is counted; what it left behind, nobody looks at
        match panic::catch_unwind(AssertUnwindSafe(|| decide.decide(&candidate, &load))) {
            Ok(Verdict::Admit) => Ok(()),
            // no text is read before a handshake
            Ok(Verdict::Shed(Some(OnShed::Bytes(_)))) if self.is_before_tls() => {
                Err((Reason::Policy, Some(OnShed::Rst)))
            }
            Ok(Verdict::Shed(answer)) => Err((Reason::Policy, answer)),
            Err(_) => {
                self.ends_by(Failure::Panic);
                Err((Reason::Policy, None))
            }
        }
    }

    /// How many may linger.
    pub(crate) fn most_lingering(&self) -> u64 {
        let between = self.gate.hard_limit().saturating_sub(self.gate.soft_limit());
        self.max_lingering.unwrap_or((between / 2).max(1)) as u64
    }

    /// Lets `lingering` linger.
    ///
    /// # Errors
    /// As many do as may; it is reset.
    pub(crate) fn linger(&self, lingering: Lingering) -> io::Result<()> {
        self.lingering.try_send(lingering).map_err(|err| {
            err.into_inner().reset();
            io::ErrorKind::QuotaExceeded.into()
        })
    }

    /// Peers expect a TLS handshake first, from here on.
    #[cfg(feature = "tls")]
    pub(crate) fn comes_before_tls(&self) {
        self.is_before_tls.store(true, Ordering::Relaxed);
    }

    fn is_before_tls(&self) -> bool {
        self.is_before_tls.load(Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// That it accepts, as far as is known.
    pub(crate) fn check_open(&self) -> Result<(), AcceptError> {
        if self.is_closed() || self.fatal.get().is_some() {
            return Err(self.end());
        }
        Ok(())
    }

    /// Why nothing more is accepted. One that failed is closed for that.
    pub(crate) fn end(&self) -> AcceptError {
        self.failure().map_or(AcceptError::Closed, AcceptError::Fatal)
    }

    /// Nothing more is accepted.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.claim.close();
        self.gate.wake();
        self.has_closed.notify_waiters();
    }

    /// Has all accept loops leave.
    pub(crate) fn leave(&self, exit: Exit) {
        self.life.leave(exit);
        self.gate.wake();
    }

    /// Ends when the listener is closed.
    pub(crate) async fn closing(&self) {
        loop {
            let closed = self.has_closed.notified();
            if self.is_closed() {
                return;
            }
            closed.await;
        }
    }

    pub(crate) fn fail(&self, err: &io::Error) {
        self.ends_by(Failure::Call(err.raw_os_error().unwrap_or(libc::EIO)));
    }

    fn ends_by(&self, failure: Failure) {
        self.fatal.get_or_init(|| failure);
        self.has_failed.notify_waiters();
        // whoever waits for room has to know it, too
        self.gate.wake();
    }

    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.fatal.get().map(|failure| match failure {
            Failure::Call(errno) => io::Error::from_raw_os_error(*errno),
            Failure::Panic => io::Error::other(Panicked),
        })
    }

    /// Ends when the listener can accept nothing more, for an error of its own.
    pub(crate) async fn failed(&self) -> io::Error {
        loop {
            let failed = self.has_failed.notified();
            if let Some(err) = self.failure() {
                return err;
            }
            failed.await;
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .field("gate", &self.gate)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
