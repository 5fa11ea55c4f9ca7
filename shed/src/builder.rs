//! From what is asked for to a listener; whatever cannot hold is an error here, before anybody is
//! served.

use std::{
    error::Error,
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{runtime, sync::mpsc};

use crate::{
    accept::Spare,
    close::OnShed,
    decide::Decide,
    gate::Gate,
    limits::{Bounds, LimitError, Limits, MAX_LIMIT},
    linger::{self, Linger},
    listener::ShedListener,
    reason::Reason,
    shared::{Answers, Shared},
    sys,
};

/// Where the listening socket comes from.
#[derive(Debug)]
enum Source {
    Address(String),
    Socket(Socket),
}

/// A listener to be.
pub struct Builder {
    source: Source,
    name: Option<String>,
    limits: Limits,
    backlog: i32,
    answers: Answers,
    linger: Linger,
    queue_max_wait: Duration,
    decide: Option<Box<dyn Decide>>,
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
            decide: None,
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

    /// Asks `decide` about connections that no limit refuses.
    #[must_use]
    pub fn decide(mut self, decide: impl Decide) -> Self {
        self.decide = Some(Box::new(decide));
        self
    }

    /// Opens the listener. Raises RLIMIT_NOFILE to its hard limit.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    pub fn build(self) -> Result<ShedListener, BuildError> {
        if runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let nofile = sys::raise_nofile().map_err(|source| BuildError::call("getrlimit", source))?;
        let bounds = Bounds::new(self.limits, nofile).map_err(BuildError::Limits)?;
        let socket = match self.source {
            Source::Address(address) => open(&address, self.backlog)?,
            Source::Socket(socket) => adopted(socket)?,
        };
        let local = socket
            .local_addr()
            .map_err(|source| BuildError::call("getsockname", source))?
            .as_socket()
            .ok_or(BuildError::Adopted { got: "a socket of another family than IPv4 and IPv6" })?;
        let spare = Spare::new().map_err(|source| BuildError::call("open /dev/null", source))?;
        let most = self.linger.max.unwrap_or(bounds.hard() - bounds.soft()).max(1);
        let (sender, arrivals) = mpsc::channel(most);
        let name = self.name.unwrap_or_else(|| local.to_string()).into_boxed_str();
        let gate = Gate::new(&bounds);
        let shared = Shared::new(name, gate, self.limits, self.answers, self.decide, sender);
        let socket = sys::watch(socket).map_err(|source| BuildError::call("epoll_ctl", source))?;
        tokio::spawn(linger::run(arrivals, self.linger));
        Ok(ShedListener::new(socket, local, Arc::new(shared), spare, self.queue_max_wait))
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

fn open(address: &str, backlog: i32) -> Result<Socket, BuildError> {
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        return Err(BuildError::Address { got: address.to_owned() });
    };
    let failed = |call| move |source| BuildError::Call { call, address: Some(parsed), source };
    let socket = Socket::new(
        Domain::for_address(parsed),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )
    .map_err(failed("socket"))?;
    // a server that comes back binds in spite of connections in TIME_WAIT
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    if parsed.is_ipv6() {
        socket.set_only_v6(false).map_err(failed("IPV6_V6ONLY"))?;
    }
    socket.bind(&parsed.into()).map_err(failed("bind"))?;
    socket.listen(backlog).map_err(failed("listen"))?;
    Ok(socket)
}

fn adopted(socket: Socket) -> Result<Socket, BuildError> {
    let call = |name| move |source| BuildError::call(name, source);
    if socket.r#type().map_err(call("SO_TYPE"))? != Type::STREAM {
        return Err(BuildError::Adopted { got: "a socket of another kind than TCP" });
    }
    if !socket.is_listener().map_err(call("SO_ACCEPTCONN"))? {
        return Err(BuildError::Adopted { got: "a TCP socket that does not listen" });
    }
    socket.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
    socket.set_cloexec(true).map_err(call("FD_CLOEXEC"))?;
    Ok(socket)
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
    /// The socket that was given is not what it should be.
    Adopted {
        /// What it is.
        got: &'static str,
    },
    /// What the channel of an accept thread holds is out of range.
    Capacity {
        /// What was given.
        got: usize,
    },
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
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { got } => {
                write!(f, "address is {got:?}, expected IP:PORT, such as [::]:8080")
            }
            Self::Limits(err) => err.fmt(f),
            Self::Adopted { got } => write!(f, "got {got}, expected a listening TCP socket"),
            Self::Capacity { got } => {
                write!(f, "capacity is {got}, expected 1 to {MAX_LIMIT} connections")
            }
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
            Self::Call { source, .. } => Some(source),
            Self::Address { .. }
            | Self::Limits(_)
            | Self::Adopted { .. }
            | Self::Capacity { .. }
            | Self::NoRuntime => None,
        }
    }
}
