//! Restart without a gap: the next generation of a program has the listening sockets of this one, and
//! both keep within one pair of limits.
//!
//! The sockets go by descriptor, as systemd gives them (sd_listen_fds(3)): LISTEN_FDS of them from 3
//! on, LISTEN_FDNAMES. Behind them are the [page](crate::page) of the limits and an end of a
//! socket pair, over which the child says that it accepts. Until then, the parent serves as before.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fmt,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, RawFd},
        unix::net::UnixStream,
    },
    process::{self, Child, Command, ExitStatus},
    sync::{Arc, Weak},
    time::Duration,
};

use socket2::Socket;
use tokio::{net, time};

use crate::{
    gate::Words,
    page::{self, Page, PageError},
    shared::Shared,
    sys,
};

const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// Set by us: behind the sockets are the page and the way to say that one is ready.
const SHED_GENERATION: &str = "SHED_GENERATION";
const VARIABLES: [&str; 4] = [LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, SHED_GENERATION];

/// More cannot be inherited.
const MAX_FDS: u32 = 1_024;

/// A child that does not say within this time that it accepts is killed, unless another is set.
const LONGEST: Duration = Duration::from_secs(30);

/// This process, as one in a row that serve the same addresses.
#[derive(Debug)]
pub struct Generation {
    page: Arc<Page>,
    memory: File,
    inherited: Vec<(String, Socket)>,
    parent: Option<UnixStream>,
    listeners: BTreeMap<String, Weak<Shared>>,
    handovers: Handovers,
    is_watching: bool,
    longest: Duration,
}

/// How handovers ended.
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

/// Why what was inherited cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum GenerationError {
    /// A variable of the environment has no number.
    Variable {
        /// Its name.
        name: &'static str,
        /// What it is.
        got: String,
    },
    /// A descriptor is not what it should be.
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Why not.
        source: io::Error,
    },
    /// The limits cannot be shared.
    Page(PageError),
    /// No listener of this program has these sockets, whose connections would wait for ever.
    Unused {
        /// Their names.
        names: Vec<String>,
    },
    /// The parent cannot be told.
    Parent(io::Error),
}

impl fmt::Display for GenerationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { name: LISTEN_FDS, got } => {
                write!(f, "{LISTEN_FDS} is {got:?}, expected 0 to {MAX_FDS}")
            }
            Self::Variable { name, got } => write!(f, "{name} is {got:?}, expected a process id"),
            Self::Descriptor { fd, .. } => {
                write!(f, "inherited descriptor {fd}: expected it open, and not closed on exec")
            }
            Self::Page(err) => err.fmt(f),
            Self::Unused { names } => write!(
                f,
                "inherited sockets {names:?} are not used, expected a listener of each name"
            ),
            Self::Parent(_) => f.write_str("the generation before cannot be told"),
        }
    }
}

impl Error for GenerationError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Descriptor { source, .. } | Self::Parent(source) => Some(source),
            Self::Page(err) => err.source(),
            Self::Variable { .. } | Self::Unused { .. } => None,
        }
    }
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
    /// What this process inherited, from systemd or from the generation before; without any of it, a
    /// first generation. To be called once, before other threads open descriptors.
    ///
    /// The variables stay in the environment: [`clean`](Self::clean) takes them from other children.
    ///
    /// # Errors
    /// What the environment says does not hold, or three generations have connections open.
    pub fn take() -> Result<Self, GenerationError> {
        let given = parse(|name| env::var(name).ok(), process::id())?;
        let take =
            |fd| sys::inherited(fd).map_err(|source| GenerationError::Descriptor { fd, source });
        let mut fds = 3..;
        let mut inherited = Vec::new();
        for (name, fd) in given.names.into_iter().zip(fds.by_ref()) {
            inherited.push((name, take(fd)?.into()));
        }
        let first = 3 + RawFd::try_from(inherited.len()).unwrap_or(RawFd::MAX);
        let (page, memory, parent) = if given.is_successor {
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
            parent,
            listeners: BTreeMap::new(),
            handovers: Handovers::default(),
            is_watching: false,
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

    /// How many generations there were before this one.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.page.generation()
    }

    /// How its handovers ended.
    #[must_use]
    pub fn handovers(&self) -> Handovers {
        self.handovers
    }

    /// The inherited socket of that name.
    pub(crate) fn inherited(&mut self, name: &str) -> Option<Socket> {
        let place = self.inherited.iter().position(|(it, _)| it == name)?;
        Some(self.inherited.remove(place).1)
    }

    /// Where the limits of the listener `name` are counted.
    pub(crate) fn words(&mut self, name: &str) -> Result<Words, PageError> {
        let entry = self.page.entry(name)?;
        if !self.is_watching {
            self.is_watching = true;
            tokio::spawn(page::watch(Arc::downgrade(&self.page)));
        }
        Ok(Words::Page { page: Arc::clone(&self.page), entry })
    }

    pub(crate) fn keep(&mut self, shared: &Arc<Shared>) {
        self.listeners.insert(shared.name.clone().into(), Arc::downgrade(shared));
    }

    /// Tells the generation before, if there is one, that this one accepts. To be called when all
    /// listeners are built and have their accept loops.
    ///
    /// # Errors
    /// Inherited sockets are left that no listener has; or the generation before is gone.
    pub fn ready(&mut self) -> Result<(), GenerationError> {
        if !self.inherited.is_empty() {
            let names = self.inherited.iter().map(|(name, _)| name.clone()).collect();
            return Err(GenerationError::Unused { names });
        }
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
            Err(_) => self.handovers.child_failed += 1,
        }
        result
    }

    async fn try_hand_over(&self, command: Command) -> Result<Child, HandoverError> {
        let listeners: Vec<_> = self
            .listeners
            .iter()
            .filter_map(|(name, it)| {
                let shared = it.upgrade()?;
                Some((name, shared.life.kept()?, shared))
            })
            .collect();
        if listeners.is_empty() {
            return Err(HandoverError::Closed);
        }
        let (ours, theirs) = UnixStream::pair().map_err(HandoverError::Start)?;
        let names: Vec<_> = listeners.iter().map(|(name, ..)| encode(name)).collect();
        let mut fds: Vec<&dyn AsFd> = Vec::new();
        fds.extend(listeners.iter().map(|(_, socket, _)| -> &dyn AsFd { socket }));
        fds.extend([&self.memory as &dyn AsFd, &theirs]);
        let child = start(command, &names, &fds).map_err(HandoverError::Start)?;
        let mut child = Starting(Some(child));
        drop(theirs);
        match time::timeout(self.longest, says_ready(ours)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(HandoverError::Ended(child.ended().await)),
            Err(_) => return Err(HandoverError::Hung { after: self.longest }),
        }
        for (_, _, shared) in &listeners {
            shared.life.hand_over();
        }
        child.0.take().ok_or(HandoverError::Ended(None))
    }
}

/// What a child says.
const READY: u8 = b'R';

/// A child that is killed, unless it is taken.
struct Starting(Option<Child>);

impl Starting {
    /// How it ended, after its descriptors were closed: its exit is soon, or it is killed.
    async fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..100 {
            if let Some(status) = self.0.as_mut()?.try_wait().ok()? {
                self.0 = None;
                return Some(status);
            }
            time::sleep(Duration::from_millis(5)).await;
        }
        self.kill()
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        let mut child = self.0.take()?;
        // where it fails, it ended
        drop(child.kill());
        child.wait().ok()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start(mut command: Command, names: &[String], fds: &[&dyn AsFd]) -> io::Result<Child> {
    command
        .env_remove(LISTEN_PID)
        .env(LISTEN_FDS, names.len().to_string())
        .env(LISTEN_FDNAMES, names.join(":"))
        .env(SHED_GENERATION, "1");
    sys::pass(&mut command, fds)?;
    command.spawn()
}

async fn says_ready(child: UnixStream) -> io::Result<()> {
    child.set_nonblocking(true)?;
    let child = net::UnixStream::from_std(child)?;
    loop {
        child.readable().await?;
        let mut byte = [0];
        match child.try_read(&mut byte) {
            Ok(1) if byte == [READY] => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
}

/// What the environment says.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    names: Vec<String>,
    is_successor: bool,
}

/// `variable` gives the environment, `pid` is ours.
fn parse(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Result<Given, GenerationError> {
    let number = |name: &'static str| {
        let parse = |got: String| match got.parse::<u32>() {
            Ok(number) => Ok(number),
            Err(_) => Err(GenerationError::Variable { name, got }),
        };
        variable(name).map(parse).transpose()
    };
    let nothing = Given { names: Vec::new(), is_successor: false };
    // for a process before us, whose environment we have
    if number(LISTEN_PID)?.is_some_and(|it| it != pid) {
        return Ok(nothing);
    }
    let Some(n) = number(LISTEN_FDS)? else { return Ok(nothing) };
    if MAX_FDS < n {
        return Err(GenerationError::Variable { name: LISTEN_FDS, got: n.to_string() });
    }
    let is_successor = variable(SHED_GENERATION).is_some();
    let given = variable(LISTEN_FDNAMES).unwrap_or_default();
    let mut names = given.split(':');
    let names = (0..n)
        // as sd_listen_fds_with_names(3) calls those without a name
        .map(|_| names.next().filter(|it| is_successor || !it.is_empty()).unwrap_or("unknown"))
        .map(|name| if is_successor { decode(name) } else { name.to_owned() })
        .collect();
    Ok(Given { names, is_successor })
}

/// A name as it may be between colons.
fn encode(name: &str) -> String {
    name.replace('%', "%25").replace(':', "%3A")
}

fn decode(name: &str) -> String {
    name.replace("%3A", ":").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: Result<(&[&str], bool), &str>) {
        let variable = |name: &str| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        };
        let got = parse(variable, 7).map_err(|err| err.to_string());
        let expected = expected.map(|(names, is_successor)| Given {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            is_successor,
        });
        assert_eq!(got, expected.map_err(str::to_owned), "{variables:?}");
    }

    #[test]
    fn takes_what_is_for_this_process() {
        check(&[], Ok((&[], false)));
        check(&[("LISTEN_FDS", "2")], Ok((&["unknown", "unknown"], false)));
        check(
            &[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:mail"), ("LISTEN_PID", "7")],
            Ok((&["web", "mail"], false)),
        );
        check(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "8")], Ok((&[], false)));
        check(
            &[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "[%3A%3A]%3A80"), ("SHED_GENERATION", "1")],
            Ok((&["[::]:80"], true)),
        );
        check(&[("LISTEN_FDS", "x")], Err("LISTEN_FDS is \"x\", expected 0 to 1024"));
        check(&[("LISTEN_FDS", "1025")], Err("LISTEN_FDS is \"1025\", expected 0 to 1024"));
        check(&[("LISTEN_FDS", "-1")], Err("LISTEN_FDS is \"-1\", expected 0 to 1024"));
        check(&[("LISTEN_PID", "")], Err("LISTEN_PID is \"\", expected a process id"));
    }

    proptest! {
        #[test]
        fn a_name_comes_back(name in ".*") {
            let encoded = encode(&name);
            prop_assert!(!encoded.contains(':'));
            prop_assert_eq!(decode(&encoded), name);
        }
    }
}
