//! Restart without a gap: the next generation of a program has the listening sockets of this one,
//! and both keep within one pair of limits.
//!
//! The sockets go by descriptor, as systemd gives them (sd_listen_fds(3)): LISTEN_FDS of them from
//! 3 on, LISTEN_FDNAMES. Behind them are the [page](crate::page) of the limits and an end of a
//! socket pair, over which the child says that it accepts. Until then, the parent serves as before.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fmt,
    fs::File,
    io::{self, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    process::{self, Child, Command, ExitStatus},
    sync::{Arc, Weak},
    time::Duration,
};

use socket2::Socket;
use tokio::time;

use crate::{
    inherit::{
        self, GenerationError, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, SHED_GENERATION, VARIABLES,
    },
    page::{self, Page, PageError},
    shared::Shared,
    starting::{Lent, READY, Starting, says_ready},
    sys,
    words::Words,
};

/// A child that does not say within this time that it accepts is killed, unless another is set.
const LONGEST: Duration = Duration::from_secs(30);

/// This process, as one in a row that serve the same addresses.
#[derive(Debug)]
pub struct Generation {
    page: Arc<Page>,
    memory: File,
    inherited: Vec<(String, Socket)>,
    passed: Vec<(String, OwnedFd)>,
    parent: Option<UnixStream>,
    /// How many generations there were before.
    number: u64,
    listeners: BTreeMap<String, Weak<Shared>>,
    handovers: Handovers,
    longest: Duration,
}

/// How handovers ended. One that found listeners [closed](HandoverError::Closed), or about to be,
/// is none of them: nothing is wrong with the child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handovers {
    /// The child accepts.
    pub ok: u64,
    /// It could not be started, or ended.
    pub child_failed: u64,
    /// It did not say in time that it accepts.
    pub timeout: u64,
}

/// Why this generation goes on alone.
#[derive(Debug)]
#[non_exhaustive]
pub enum HandoverError {
    /// It drains, or its listeners are closed.
    Closed,
    /// The child could not be started.
    Start(io::Error),
    /// The child ended before it accepted.
    Ended(Option<ExitStatus>),
    /// The child did not say in time that it accepts, and was killed.
    Hung {
        /// How long it had.
        after: Duration,
    },
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("there is no open listener to hand over"),
            Self::Start(_) => f.write_str("the next generation could not be started"),
            Self::Ended(Some(status)) => {
                write!(f, "the next generation ended before it accepted: {status}")
            }
            Self::Ended(None) => f.write_str("the next generation ended before it accepted"),
            Self::Hung { after } => {
                write!(f, "the next generation did not accept within {after:?}, and was killed")
            }
        }
    }
}

impl Error for HandoverError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Start(err) => Some(err),
            Self::Closed | Self::Ended(_) | Self::Hung { .. } => None,
        }
    }
}

impl Generation {
    /// What this process inherited, from systemd or from the generation before; without any of it,
    /// a first generation. To be called once, before other threads open descriptors.
    ///
    /// The variables stay in the environment: [`clean`](Self::clean) takes them from other
    /// children.
    ///
    /// # Errors
    /// What the environment says does not hold, or three generations have connections open.
    pub fn take() -> Result<Self, GenerationError> {
        let given = inherit::parse(|name| env::var(name).ok(), process::id())?;
        let take =
            |fd| sys::inherited(fd).map_err(|source| GenerationError::Descriptor { fd, source });
        let mut fds = 3..;
        let mut inherited = Vec::new();
        for (name, fd) in given.names.into_iter().zip(fds.by_ref()) {
            inherited.push((name, take(fd)?.into()));
        }
        let first = 3 + RawFd::try_from(inherited.len()).unwrap_or(RawFd::MAX);
        let (page, memory, parent) = if given.number != 0 {
            let memory = take(first)?.into();
            let parent = take(first + 1)?.into();
            (Page::open(&memory).map_err(GenerationError::Page)?, memory, Some(parent))
        } else {
            let (page, memory) = Page::create().map_err(GenerationError::Page)?;
            (page, memory, None)
        };
        Ok(Self {
            page: Arc::new(page),
            memory,
            inherited,
            passed: Vec::new(),
            parent,
            number: given.number,
            listeners: BTreeMap::new(),
            handovers: Handovers::default(),
            longest: LONGEST,
        })
    }

    /// Takes from `command`'s environment what was for this process.
    pub fn clean(command: &mut Command) {
        for name in VARIABLES {
            command.env_remove(name);
        }
    }

    /// How long a child may take until it is [ready](Self::ready). Unsaid: 30 s.
    pub fn ready_within(&mut self, longest: Duration) {
        self.longest = longest;
    }

    /// How many generations there were before this one. One that was never [ready](Self::ready) is
    /// none.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How its handovers ended.
    #[must_use]
    pub fn handovers(&self) -> Handovers {
        self.handovers
    }

    /// Has inherited sockets go by the listeners of this program, each a name and an address: one
    /// that has none of these names gets the name of the listener whose address it has. systemd
    /// calls all sockets of a unit by one name, `UNIT.socket` where FileDescriptorName= says no
    /// other, and a name that is an address cannot be said there.
    ///
    /// For a first generation; the sockets of a generation before have their listeners' names.
    pub fn name_by_address(&mut self, listeners: &[(&str, SocketAddr)]) {
        for (name, socket) in &mut self.inherited {
            let address = socket.local_addr().ok().and_then(|it| it.as_socket());
            if listeners.iter().all(|(it, _)| it != name)
                && let Some((of, _)) = listeners.iter().find(|(_, it)| Some(*it) == address)
            {
                (*of).clone_into(name);
            }
        }
    }

    /// Takes the inherited descriptor of that name, for something else than a listener that sheds.
    #[must_use]
    pub fn take_fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.inherited(name).map(OwnedFd::from)
    }

    /// Gives the next generation this descriptor, too; there, it is [taken](Self::take_fd) by this
    /// name, which is to be none of a listener.
    pub fn pass_fd(&mut self, name: impl Into<String>, fd: OwnedFd) {
        self.passed.push((name.into(), fd));
    }

    /// Whether there is an inherited socket of that name which no listener has so far.
    #[must_use]
    pub fn inherits(&self, name: &str) -> bool {
        self.inherited.iter().any(|(it, _)| it == name)
    }

    /// The inherited socket of that name.
    pub(crate) fn inherited(&mut self, name: &str) -> Option<Socket> {
        let place = self.inherited.iter().position(|(it, _)| it == name)?;
        Some(self.inherited.remove(place).1)
    }

    /// Where the limits of the listener `name` are counted, and whether somebody who is no
    /// generation has its socket, too.
    pub(crate) fn words(
        &mut self,
        name: &str,
        is_inherited: bool,
    ) -> Result<(Words, bool), PageError> {
        let entry = self.page.entry(name)?;
        if is_inherited && self.number == 0 {
            self.page.borrows(entry);
        }
        let is_borrowed = self.page.is_borrowed(entry);
        Ok((Words::Page { page: Arc::clone(&self.page), entry }, is_borrowed))
    }

    /// Whether a listener of that name is open.
    pub(crate) fn has(&self, name: &str) -> bool {
        let known = self.listeners.get(name).and_then(Weak::upgrade);
        known.is_some_and(|shared| !shared.is_closed())
    }

    /// Has `shared`, which counts in its words, for a handover. To be called within its runtime.
    pub(crate) fn keep(&mut self, shared: &Arc<Shared>) {
        let listener = Arc::downgrade(shared);
        self.listeners.insert(shared.name.clone().into(), Weak::clone(&listener));
        let is_used = move || listener.strong_count() != 0;
        tokio::spawn(page::watch(Arc::downgrade(&self.page), is_used));
    }

    /// That each inherited socket is for one of the listeners of these names. To be called before
    /// they are built, so that nobody connects to one where another cannot be.
    ///
    /// # Errors
    /// There are others.
    pub fn check_names(&self, listeners: &[&str]) -> Result<(), GenerationError> {
        let is_left = |(name, _): &&(String, Socket)| !listeners.contains(&&**name);
        inherit::none_left(self.inherited.iter().filter(is_left))
    }

    /// That nothing which was inherited is left.
    ///
    /// # Errors
    /// Inherited sockets are left that no listener has.
    pub fn check_used(&self) -> Result<(), GenerationError> {
        inherit::none_left(self.inherited.iter())
    }

    /// Tells the generation before, if there is one, that this one accepts. To be called when all
    /// listeners are built and have their accept loops.
    ///
    /// # Errors
    /// Inherited sockets are left that no listener has; or the generation before is gone.
    pub fn ready(&mut self) -> Result<(), GenerationError> {
        self.check_used()?;
        match self.parent.take() {
            Some(mut parent) => parent.write_all(&[READY]).map_err(GenerationError::Parent),
            None => Ok(()),
        }
    }

    /// Starts `command` as the next generation, and waits until it says that it is
    /// [ready](Self::ready). From then on, both accept; this one is to
    /// [drain](crate::Handle::drain) its listeners, which closes nothing for the other.
    ///
    /// # Errors
    /// The next generation does not accept. It is gone; this one goes on as before.
    pub async fn hand_over(&mut self, command: Command) -> Result<Child, HandoverError> {
        let result = self.try_hand_over(command).await;
        match &result {
            Ok(_) => self.handovers.ok += 1,
            Err(HandoverError::Hung { .. }) => self.handovers.timeout += 1,
            Err(HandoverError::Closed) => {}
            Err(HandoverError::Start(_) | HandoverError::Ended(_)) => {
                self.handovers.child_failed += 1;
            }
        }
        result
    }

    async fn try_hand_over(&self, command: Command) -> Result<Child, HandoverError> {
        let lent = self.listeners.values().filter_map(|it| Lent::new(it.upgrade()?)).collect();
        let mut starting = Starting::new(lent).ok_or(HandoverError::Closed)?;
        let (ours, theirs) = UnixStream::pair().map_err(HandoverError::Start)?;
        let command = self.inherited_by(command, starting.lent(), &theirs);
        starting.start(command.map_err(HandoverError::Start)?).map_err(HandoverError::Start)?;
        drop(theirs);
        match time::timeout(self.longest, says_ready(ours)).await {
            Ok(Ok(())) => starting.hand_over(),
            Ok(Err(_)) => Err(HandoverError::Ended(starting.ended().await)),
            Err(_) => Err(HandoverError::Hung { after: self.longest }),
        }
    }

    /// Has `command` inherit what the next generation is to have; by `theirs` it says that it
    /// accepts.
    fn inherited_by(
        &self,
        mut command: Command,
        lent: &[Lent],
        theirs: &UnixStream,
    ) -> io::Result<Command> {
        let names = lent.iter().map(Lent::name);
        let names = names.chain(self.passed.iter().map(|(name, _)| &**name));
        let names: Vec<_> = names.map(inherit::encode).collect();
        let mut fds: Vec<&dyn AsFd> = Vec::new();
        fds.extend(lent.iter().map(|it| -> &dyn AsFd { it.socket() }));
        fds.extend(self.passed.iter().map(|(_, fd)| -> &dyn AsFd { fd }));
        fds.extend([&self.memory as &dyn AsFd, theirs]);
        command
            .env_remove(LISTEN_PID)
            .env(LISTEN_FDS, names.len().to_string())
            .env(LISTEN_FDNAMES, names.join(":"))
            .env(SHED_GENERATION, (self.number + 1 + self.handovers.ok).to_string());
        sys::pass(&mut command, &fds)?;
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::{Domain, SockFilter, Type};

    use super::*;
    use crate::{Drain, Queued, ShedListener, page::Held};

    /// A client that gets no SYN-ACK: the listener's side of the handshake goes on for seconds.
    fn half_open(address: SocketAddr) -> Socket {
        let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
        client.attach_filter(&[SockFilter::new(6, 0, 0, 0)]).expect("a filter");
        // its SYN is sent
        drop(client.connect(&address.into()));
        client
    }

    fn is_answered(address: SocketAddr) -> bool {
        TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
    }

    #[tokio::test]
    async fn who_drains_while_the_next_one_starts_leaves_no_filter_to_who_goes_on() {
        for is_gone in [true, false] {
            let mut generation = Generation::take().expect("the first");
            let builder = ShedListener::bind("127.0.0.1:0").name("web");
            let mut listener = builder.build_in(&mut generation).expect("a listener");
            let (address, handle) = (listener.local_addr(), listener.handle());
            let shared = Arc::clone(listener.shared());
            let lent = Lent::new(Arc::clone(&shared)).expect("it is open");
            let socket = lent.socket().try_clone().expect("descriptors");
            // another one has the socket, and accepts
            let other = Arc::new(Page::open(&generation.memory).expect("a lane"));
            let entry = other.entry("web").expect("it is there");
            let held = Held::new(other, entry);
            let starting = Starting::new(vec![lent]).expect("it is open");
            let _client = half_open(address);
            let drain = Drain { delay: Duration::ZERO, queued: Queued::Serve, ..Drain::default() };
            let mut draining = std::pin::pin!(handle.drain(drain));
            let begun = time::Instant::now();
            while is_answered(address) {
                assert!(begun.elapsed() < Duration::from_secs(10), "no SYN is refused");
                // cancelled: nothing is lost
                let turn = async { tokio::join!(draining.as_mut(), listener.accept()) };
                drop(time::timeout(Duration::from_millis(1), turn).await);
            }
            let kept = (!is_gone).then_some(starting);
            assert!(!is_answered(address), "it closes yet");
            drop(listener);
            assert_eq!(is_answered(address), is_gone);
            drop((socket, held, kept));
        }
    }

    #[tokio::test]
    async fn a_limit_of_the_queue_that_is_set_while_the_next_one_starts_outlives_it() {
        let mut generation = Generation::take().expect("the first");
        let builder = ShedListener::bind("127.0.0.1:0").name("web");
        let listener = builder.build_in(&mut generation).expect("a listener");
        let limits: [&dyn Fn() -> io::Result<u32>; 2] =
            [&|| listener.handle().set_backlog(7), &|| listener.set_backlog(9)];
        for set in limits {
            let lent = Lent::new(Arc::clone(listener.shared())).expect("it is open");
            let limit = set().expect("it listens");
            lent.socket().listen(3).expect("as the next one does");
            drop(Starting::new(vec![lent]).expect("it is open"));
            assert_eq!(listener.accept_queue().expect("it is open").1, limit);
        }
    }
}
