//! From what is asked for to a listener; whatever cannot hold is an error here, before anybody is
//! served.

use std::{
    error::Error,
    fmt, io, mem,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use socket2::Socket;
use tokio::{runtime, sync::mpsc};

use crate::{
    accept::Spare,
    adaptive::{Adaptive, AdaptiveError, Controller},
    cidr::Cidr,
    close::OnShed,
    deadline::{DeadlineError, Deadlines, ticker::Watcher},
    decide::Decide,
    gate::{Gate, Words},
    handover::Generation,
    limits::{Bounds, LimitError, Limits},
    linger::{self, Linger},
    listener::{Door, ShedListener},
    owner::{self, Owner},
    page::PageError,
    peer_map::PerIp,
    policy::{Policy, ProxyProtocol, Settings},
    range::OutOfRange,
    rate::Rate,
    reason::Reason,
    reuseport::Group,
    shared::{Answers, Shared},
    socket::{self, Reuse, Source},
    sys,
};

/// A listener to be.
pub struct Builder {
    source: Source,
    name: Option<String>,
    limits: Limits,
    backlog: i32,
    answers: Answers,
    linger: Linger,
    queue_max_wait: Duration,
    policy: Settings,
    deadlines: Deadlines,
    max_request: u64,
    decide: Option<Box<dyn Decide>>,
    adaptive: Option<Adaptive>,
    give_up_after: Option<Duration>,
    joins_others: bool,
}

impl ShedListener {
    /// Begins with a socket to be bound to `address`: IP:PORT, `[::]:8080` say, which takes IPv4,
    /// too.
    #[must_use]
    pub fn bind(address: impl Into<String>) -> Builder {
        Builder::new(Source::Address(address.into()))
    }

    /// Begins with a socket that listens already.
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
            backlog: i32::MAX,
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
    /// there are descriptors for.
    #[must_use]
    pub fn hard(mut self, hard: usize) -> Self {
        self.limits.hard = Some(hard);
        self
    }

    /// The limit of the accept queue that listen(2) is asked for. Unsaid: the largest that the
    /// kernel gives, net.core.somaxconn.
    #[must_use]
    pub fn backlog(mut self, backlog: u16) -> Self {
        self.backlog = backlog.into();
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

    /// After a pause, connections that waited longer in the accept queue are shed. Unsaid: 1 s.
    #[must_use]
    pub fn queue_max_wait(mut self, wait: Duration) -> Self {
        self.queue_max_wait = wait;
        self
    }

    /// Connections from these ranges are shed for nothing but the hard limit: neither the soft limit
    /// nor the rate nor what a peer may have counts for them. Unsaid: from none.
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

    /// The size of a request in bytes, at least 1: when more were read since the connection began, or
    /// since [`request_done`](crate::ShedStream::request_done), reads fail. Unsaid: any.
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

    /// Lets the soft limit follow what the server can do, never above the one that is given. Unsaid:
    /// it does not.
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
    /// that listen on the address already. Unsaid: that is an error, since two programs that share an
    /// address by mistake get half of the connections each.
    #[must_use]
    pub fn join_others(mut self) -> Self {
        self.joins_others = true;
        self
    }

    /// Opens the listener. Raises RLIMIT_NOFILE to its hard limit.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    pub fn build(mut self) -> Result<ShedListener, BuildError> {
        let checked = self.check()?;
        let source = self.source.take();
        let is_borrowed = matches!(source, Source::Socket(_));
        let socket = source.open(self.backlog, Reuse::No)?;
        let local = socket::local_addr(&socket)?;
        let plan = self.plan(checked, local, Words::own());
        if is_borrowed {
            plan.shared.life.borrows();
        }
        plan.listener(socket)
    }

    /// Opens `members` sockets on one address, a SO_REUSEPORT group, each with an accept loop of its
    /// own, and one pair of limits for all. 1 to 1,024.
    ///
    /// One socket is enough below some 30,000 connections a second, and has no member that is full
    /// while others are idle.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    pub fn build_group(mut self, members: usize) -> Result<(Group, Vec<ShedListener>), BuildError> {
        if !(1..=MAX_MEMBERS).contains(&members) {
            return Err(BuildError::Members { got: members });
        }
        let checked = self.check()?;
        let Source::Address(address) = self.source.take() else {
            return Err(BuildError::Adopted {
                got: "a socket, for a group that has to open its own",
            });
        };
        let first = if self.joins_others { Reuse::Join } else { Reuse::Begin };
        let socket = socket::open(socket::parse(&address)?, self.backlog, first)?;
        let local = socket::local_addr(&socket)?;
        let backlog = self.backlog;
        let plan = self.plan(checked, local, Words::own());
        let mut group = Group::new(plan, local, backlog);
        let mut listeners = vec![group.member(socket)?];
        while listeners.len() < members {
            listeners.push(group.grow()?);
        }
        Ok((group, listeners))
    }

    /// As [`build`](Self::build), for a program that is restarted without a gap: the socket is the
    /// one of this name that the generation before had, if it had one, and the limits hold over all
    /// generations.
    ///
    /// # Errors
    /// It cannot be as asked: what was inherited listens on another address, say.
    pub fn build_in(mut self, generation: &mut Generation) -> Result<ShedListener, BuildError> {
        let checked = self.check()?;
        let source = self.source.take();
        let name = self.name.clone().unwrap_or_else(|| source.name());
        let inherited = generation.inherited(&name);
        let is_inherited = inherited.is_some();
        let socket = match inherited {
            Some(inherited) => {
                let inherited = socket::adopted(inherited)?;
                // of somebody before us that was killed while it closed; where it fails, there is none
                drop(inherited.detach_filter());
                let (got, expected) = (socket::local_addr(&inherited)?, source.address()?);
                if got != expected && expected.port() != 0 {
                    return Err(BuildError::Inherited { name, got, expected });
                }
                inherited
            }
            None => source.open(self.backlog, Reuse::No)?,
        };
        let kept = socket.try_clone().map_err(|source| BuildError::call("dup", source))?;
        let (words, is_borrowed) =
            generation.words(&name, is_inherited).map_err(BuildError::Page)?;
        self.name = Some(name);
        let plan = self.plan(checked, socket::local_addr(&socket)?, words);
        plan.shared.life.keep(Some(kept));
        if is_borrowed {
            plan.shared.life.borrows();
        }
        generation.keep(&plan.shared);
        plan.listener(socket)
    }

    fn check(&mut self) -> Result<Checked, BuildError> {
        if runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let nofile = sys::raise_nofile().map_err(|source| BuildError::call("getrlimit", source))?;
        let bounds = Bounds::new(self.limits, nofile).map_err(BuildError::Limits)?;
        let policy = mem::take(&mut self.policy).check().map_err(BuildError::OutOfRange)?;
        self.deadlines.check().map_err(BuildError::Deadlines)?;
        if self.max_request == 0 {
            return Err(BuildError::MaxRequestBytes);
        }
        if let Some(adaptive) = &self.adaptive {
            adaptive.check(bounds.soft()).map_err(BuildError::Adaptive)?;
        }
        Ok(Checked { bounds, policy })
    }

    /// All of a listener but its socket.
    fn plan(self, checked: Checked, local: SocketAddr, words: Words) -> Plan {
        let Checked { bounds, policy } = checked;
        let most = self.linger.max.unwrap_or(bounds.hard() - bounds.soft()).max(1);
        let (sender, arrivals) = mpsc::channel(most);
        let name = self.name.unwrap_or_else(|| local.to_string()).into_boxed_str();
        let gate = Gate::new(&bounds, words);
        let mut shared =
            Shared::new(name, gate, self.limits, self.answers, policy, self.decide, sender);
        shared.watcher = (!self.deadlines.is_off()).then(|| Watcher::new(self.deadlines));
        shared.max_request = self.max_request;
        shared.adaptive = self.adaptive.map(|it| Controller::new(it, bounds.soft()));
        let shared = Arc::new(shared);
        tokio::spawn(linger::run(arrivals, self.linger));
        Watcher::start(&shared);
        Plan {
            shared,
            queue_max_wait: self.queue_max_wait,
            give_up_after: self.give_up_after,
            write_stall: self.deadlines.write_stall,
        }
    }
}

/// What was found to hold, before a socket is opened.
struct Checked {
    bounds: Bounds,
    policy: Policy,
}

/// A group has at most so many sockets.
const MAX_MEMBERS: usize = 1_024;

/// What accept loops of one listener are made from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shared: Arc<Shared>,
    queue_max_wait: Duration,
    give_up_after: Option<Duration>,
    write_stall: Option<Duration>,
}

impl Plan {
    pub(crate) fn listener(&self, socket: Socket) -> Result<ShedListener, BuildError> {
        if let Some(write_stall) = self.write_stall {
            // accepted sockets have it from the listening one
            socket
                .set_tcp_user_timeout(Some(write_stall))
                .map_err(|source| BuildError::call("TCP_USER_TIMEOUT", source))?;
        }
        let local = socket::local_addr(&socket)?;
        let spare = Spare::new().map_err(|source| BuildError::call("open /dev/null", source))?;
        let socket = sys::watch(socket).map_err(|source| BuildError::call("epoll_ctl", source))?;
        let door = Door::new(&self.shared, spare, self.queue_max_wait, self.give_up_after);
        Ok(ShedListener::new(socket, local, door))
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

/// Why there is no listener.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// The address is none.
    Address {
        /// What was given.
        got: String,
    },
    /// The limits cannot hold.
    Limits(LimitError),
    /// A number cannot hold.
    OutOfRange(OutOfRange),
    /// The deadlines cannot hold.
    Deadlines(DeadlineError),
    /// Requests may have 0 bytes.
    MaxRequestBytes,
    /// The adaptive limit cannot hold.
    Adaptive(AdaptiveError),
    /// The socket that was given is not what it should be.
    Adopted {
        /// What it is.
        got: &'static str,
    },
    /// Somebody else listens on the address.
    InUse {
        /// The address.
        address: SocketAddr,
        /// Who that is, where it can be seen.
        owner: Option<Owner>,
        /// The answer.
        source: io::Error,
    },
    /// A group cannot have so many members.
    Members {
        /// What was given.
        got: usize,
    },
    /// What the generation before had by this name listens elsewhere.
    Inherited {
        /// The listener's name.
        name: String,
        /// Where it listens.
        got: SocketAddr,
        /// Where it should.
        expected: SocketAddr,
    },
    /// The limits cannot be shared with other generations.
    Page(PageError),
    /// It was not called from within a tokio runtime.
    NoRuntime,
    /// The kernel refused.
    Call {
        /// What was asked.
        call: &'static str,
        /// For which address.
        address: Option<SocketAddr>,
        /// The answer.
        source: io::Error,
    },
}

impl BuildError {
    pub(crate) fn call(call: &'static str, source: io::Error) -> Self {
        Self::Call { call, address: None, source }
    }

    pub(crate) fn at(address: SocketAddr, call: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::InUse { address, owner: owner::of(address), source }
        } else {
            Self::Call { call, address: Some(address), source }
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { got } => {
                write!(f, "address is {got:?}, expected IP:PORT, such as [::]:8080")
            }
            Self::Limits(err) => err.fmt(f),
            Self::OutOfRange(err) => err.fmt(f),
            Self::Deadlines(err) => err.fmt(f),
            Self::MaxRequestBytes => f.write_str("max_request_bytes is 0, expected at least 1"),
            Self::Adaptive(err) => err.fmt(f),
            Self::Adopted { got } => write!(f, "got {got}, expected a listening TCP socket"),
            Self::InUse { address, owner: Some(owner), .. } => {
                write!(f, "listener {address}: the address is in use, by {owner}")
            }
            Self::InUse { address, owner: None, .. } => {
                write!(f, "listener {address}: the address is in use, by a socket that is not seen")
            }
            Self::Members { got } => {
                write!(f, "members of the group are {got}, expected 1 to {MAX_MEMBERS}")
            }
            Self::Inherited { name, got, expected } => {
                write!(f, "the inherited socket {name:?} listens on {got}, expected {expected}")
            }
            Self::Page(err) => err.fmt(f),
            Self::NoRuntime => f.write_str("there is no tokio runtime, expected one to be entered"),
            Self::Call { call, address: Some(address), .. } => {
                write!(f, "listener {address}: {call} failed")
            }
            Self::Call { call, address: None, .. } => write!(f, "{call} failed"),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Call { source, .. } | Self::InUse { source, .. } => Some(source),
            Self::Page(err) => err.source(),
            Self::Address { .. }
            | Self::Limits(_)
            | Self::OutOfRange(_)
            | Self::Deadlines(_)
            | Self::MaxRequestBytes
            | Self::Adaptive(_)
            | Self::Adopted { .. }
            | Self::Members { .. }
            | Self::Inherited { .. }
            | Self::NoRuntime => None,
        }
    }
}
