//! What is asked of a listener; whatever cannot hold is an error at its build, before anybody is
//! served.

use std::{fmt, net::TcpListener, time::Duration};

use crate::{
    adaptive::Adaptive,
    cidr::Cidr,
    close::OnShed,
    deadline::Deadlines,
    decide::Decide,
    limits::Limits,
    linger::Linger,
    listener::ShedListener,
    peer_map::PerIp,
    policy::{ProxyProtocol, Settings},
    rate::Rate,
    reason::Reason,
    shared::Answers,
    socket::Source,
};

/// A listener to be.
pub struct Builder {
    pub(crate) source: Source,
    pub(crate) name: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) backlog: Option<u16>,
    pub(crate) answers: Answers,
    pub(crate) linger: Linger,
    pub(crate) queue_max_wait: Duration,
    pub(crate) policy: Settings,
    pub(crate) deadlines: Deadlines,
    pub(crate) max_request: u64,
    pub(crate) decide: Option<Box<dyn Decide>>,
    pub(crate) adaptive: Option<Adaptive>,
    pub(crate) give_up_after: Option<Duration>,
    pub(crate) joins_others: bool,
}

impl ShedListener {
    /// Begins with a socket to be bound to `address`: IP:PORT, `[::]:8080` say, which takes IPv4,
    /// too.
    #[must_use]
    pub fn bind(address: impl Into<String>) -> Builder {
        Builder::new(Source::Address(address.into()))
    }

    /// Begins with a socket that listens already. A filter of its packets is taken off, since a
    /// process that was killed while it closed the socket leaves one; one that is to stay has to be
    /// locked (SO_LOCK_FILTER, socket(7)).
    #[must_use]
    pub fn adopt(socket: TcpListener) -> Builder {
        Builder::new(Source::Socket(socket.into()))
    }
}

impl Builder {
    fn new(source: Source) -> Self {
        Self {
            source,
            name: None,
            limits: Limits::soft(1_000),
            backlog: None,
            answers: Answers::new(OnShed::Rst),
            linger: Linger::default(),
            queue_max_wait: Duration::from_secs(1),
            policy: Settings::default(),
            deadlines: Deadlines::default(),
            max_request: u64::MAX,
            decide: None,
            adaptive: None,
            give_up_after: None,
            joins_others: false,
        }
    }

    /// Its name in counters. Unsaid: the address.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Both limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Above this many open connections, more are shed. Unsaid: 1,000.
    #[must_use]
    pub fn soft(mut self, soft: usize) -> Self {
        self.limits.soft = soft;
        self
    }

    /// At this many, nothing is accepted. Unsaid: a quarter above the soft limit, or as many as
    /// there are descriptors for, beside the other listeners of the process.
    #[must_use]
    pub fn hard(mut self, hard: usize) -> Self {
        self.limits.hard = Some(hard);
        self
    }

    /// The limit of the accept queue that listen(2) is asked for. Unsaid, or 0: the largest that
    /// the kernel gives, net.core.somaxconn, or what a socket has that listens already. Where it
    /// gives less than is said, there is a [warning](crate::Handle::warnings).
    #[must_use]
    pub fn backlog(mut self, backlog: u16) -> Self {
        self.backlog = Some(backlog).filter(|&it| it != 0);
        self
    }

    /// What shed connections get. Unsaid: a reset.
    #[must_use]
    pub fn on_shed(mut self, answer: OnShed) -> Self {
        self.answers.set_default(answer);
        self
    }

    /// What those get that are shed for `reason`.
    #[must_use]
    pub fn on_shed_for(mut self, reason: Reason, answer: OnShed) -> Self {
        self.answers.set(reason, answer);
        self
    }

    /// Bounds of the wait for an answer to arrive.
    #[must_use]
    pub fn linger(mut self, linger: Linger) -> Self {
        self.linger = linger;
        self
    }

    /// After a pause, connections that waited longer in the accept queue are shed, and those whose
    /// clients left without a word. Unsaid: 1 s.
    #[must_use]
    pub fn queue_max_wait(mut self, wait: Duration) -> Self {
        self.queue_max_wait = wait;
        self
    }

    /// For connections from these ranges neither the soft limit nor the rate nor what a peer may
    /// have counts, nor an adaptive limit. All else does: the hard limit, a drain, the wait in the
    /// queue after a pause, whether somebody takes what is handed over, a [`Decide`]. Unsaid: from
    /// none.
    #[must_use]
    pub fn exempt(mut self, ranges: impl IntoIterator<Item = Cidr>) -> Self {
        self.policy.exempt = ranges.into_iter().collect();
        self
    }

    /// How fast connections are admitted, from all peers together. Unsaid: as they come.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.policy.rate = Some(rate);
        self
    }

    /// What one peer may have. Unsaid: whatever there is.
    #[must_use]
    pub fn per_ip(mut self, limit: PerIp) -> Self {
        self.policy.per_ip = Some(limit);
        self
    }

    /// Who passes connections of others on. Unsaid: nobody, and each is its own peer's.
    #[must_use]
    pub fn proxy_protocol(mut self, settings: ProxyProtocol) -> Self {
        self.policy.proxy_protocol = Some(settings);
        self
    }

    /// How long connections may take. Unsaid: for ever.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The size of a request in bytes, at least 1: when more were read since the connection began,
    /// or since [`request_done`](crate::ShedStream::request_done), reads fail. Unsaid: any.
    /// Who cannot call that, since hyper, tonic or whoever takes a stream reads by itself, leaves
    /// it off: it would be the size of all requests of a connection. For `axum::serve` it is off
    /// whatever is said; axum's `DefaultBodyLimit` is for that.
    #[must_use]
    pub fn max_request_bytes(mut self, bytes: u64) -> Self {
        self.max_request = bytes;
        self
    }

    /// Asks `decide` about connections that no limit refuses.
    #[must_use]
    pub fn decide(mut self, decide: impl Decide) -> Self {
        self.decide = Some(Box::new(decide));
        self
    }

    /// Lets the soft limit follow what the server can do, never above the one that is given.
    /// Unsaid: it does not.
    #[must_use]
    pub fn adaptive(mut self, adaptive: Adaptive) -> Self {
        self.adaptive = Some(adaptive);
        self
    }

    /// When accept(2) fails for want of descriptors or memory for so long, without one success, the
    /// listener ends with the error, for a supervisor to start the program again. Unsaid: never.
    #[must_use]
    pub fn give_up_after(mut self, after: Duration) -> Self {
        self.give_up_after = Some(after);
        self
    }

    /// Lets [`build_group`](Self::build_group) join members of another process, of the same user,
    /// that listen on the address already. Unsaid: that is an error, since two programs that share
    /// an address by mistake get half of the connections each. The others may get a
    /// [probe](crate::health::HealthConfig::probe), too, which is to be off then.
    #[must_use]
    pub fn join_others(mut self) -> Self {
        self.joins_others = true;
        self
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("source", &self.source)
            .field("limits", &self.limits)
            .field("backlog", &self.backlog)
            .finish_non_exhaustive()
    }
}
