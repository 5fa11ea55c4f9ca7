//! Opens what a [`Builder`] describes, after all that it asks for was found to hold.

use std::{mem, net::SocketAddr, sync::Arc, time::Duration};

use socket2::Socket;
use tokio::{runtime, sync::mpsc};

use crate::{
    accept::Spare,
    adaptive::Controller,
    build_error::BuildError,
    builder::Builder,
    deadline::ticker::Watcher,
    descriptors::Claim,
    door::Door,
    handle::SetError,
    handover::Generation,
    linger,
    listener::ShedListener,
    policy::Policy,
    reuseport::Group,
    shared::Shared,
    socket::{self, Reuse, Source},
    sys, warning,
    words::Words,
};

/// Connections that begin to linger before the task that looks at them has its turn.
const ARRIVALS: usize = 1_024;

impl Builder {
    /// Opens the listener, in a runtime with IO and a timer. Raises RLIMIT_NOFILE to its hard
    /// limit.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    ///
    /// # Panics
    /// The runtime has no IO ([`enable_io`](tokio::runtime::Builder::enable_io)).
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

    /// Opens `members` sockets on one address, a SO_REUSEPORT group, each with an accept loop of
    /// its own, and one pair of limits for all. 1 to 1,024.
    ///
    /// One socket is enough below some 30,000 connections a second, and has no member that is full
    /// while others are idle.
    ///
    /// # Errors
    /// It cannot be as asked. Nothing is open then.
    ///
    /// # Panics
    /// As [`build`](Self::build).
    pub fn build_group(mut self, members: usize) -> Result<(Group, Vec<ShedListener>), BuildError> {
        if !(1..=MAX_MEMBERS).contains(&members) {
            return Err(BuildError::Members { got: members });
        }
        let checked = self.check()?;
        let Source::Address(address) = self.source.take() else {
            return Err(BuildError::GroupAdopted);
        };
        let first = if self.joins_others { Reuse::Join } else { Reuse::Begin };
        let socket = socket::bind(socket::parse(&address)?, first)?;
        let local = socket::local_addr(&socket)?;
        let plan = self.plan(checked, local, Words::own());
        let mut group = Group::new(plan, local);
        let mut listeners = vec![group.member(socket)?];
        while listeners.len() < members {
            listeners.push(group.grow()?);
        }
        Ok((group, listeners))
    }

    /// As [`build`](Self::build), for a program that is restarted without a gap: the socket is the
    /// one of this name that the generation before had, or systemd, if one of them had one, and the
    /// limits hold over all generations. The accept queue's limit is asked for anew. Each open
    /// listener of a generation has a name of its own.
    ///
    /// # Errors
    /// It cannot be as asked: what was inherited listens on another address, say.
    ///
    /// # Panics
    /// As `build`.
    pub fn build_in(mut self, generation: &mut Generation) -> Result<ShedListener, BuildError> {
        let checked = self.check()?;
        let source = self.source.take();
        let name = self.name.clone().unwrap_or_else(|| source.name());
        // it goes by the environment
        if name.contains('\0') {
            return Err(BuildError::NameWithNul { name });
        }
        if generation.has(&name) {
            return Err(BuildError::Named { name });
        }
        let inherited = generation.inherited(&name);
        let is_inherited = inherited.is_some();
        let socket = match inherited {
            Some(inherited) => {
                let inherited = socket::adopted(inherited, None)?;
                let (got, expected) = (socket::local_addr(&inherited)?, source.address()?);
                // any port, but no other interfaces than those that are meant
                let mut wanted = expected;
                if wanted.port() == 0 {
                    wanted.set_port(got.port());
                }
                if got != wanted {
                    return Err(BuildError::Inherited { name, got, expected });
                }
                socket::listen(&inherited, self.backlog)?;
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
        sys::raise_nofile().map_err(|source| BuildError::call("getrlimit", source))?;
        let claim = Claim::new(self.limits).map_err(|err| match err {
            SetError::Limits(err) => BuildError::Limits(err),
            SetError::Nofile(source) => BuildError::call("getrlimit", source),
        })?;
        let policy = mem::take(&mut self.policy).check().map_err(BuildError::OutOfRange)?;
        self.linger.check().map_err(BuildError::OutOfRange)?;
        self.deadlines.check().map_err(BuildError::Deadlines)?;
        if self.max_request == 0 {
            return Err(BuildError::MaxRequestBytes);
        }
        if let Some(adaptive) = &self.adaptive {
            adaptive.check(self.limits.soft).map_err(BuildError::Adaptive)?;
        }
        Ok(Checked { claim, policy })
    }

    /// All of a listener but its socket.
    fn plan(self, checked: Checked, local: SocketAddr, words: Words) -> Plan {
        let Checked { claim, policy } = checked;
        // how many linger is counted; the channel holds those that have just begun to
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        let name = self.name.unwrap_or_else(|| local.to_string()).into_boxed_str();
        let mut shared = Shared::new(name, claim, words, self.answers, policy, self.decide, sender);
        shared.watcher = (!self.deadlines.is_off()).then(|| Watcher::new(self.deadlines));
        shared.max_request = self.max_request;
        shared.max_lingering = self.linger.max;
        shared.adaptive = self.adaptive.map(|it| Controller::new(it, self.limits.soft));
        let shared = Arc::new(shared);
        tokio::spawn(linger::run(arrivals, self.linger));
        Watcher::start(&shared);
        Plan {
            shared,
            backlog: self.backlog,
            queue_max_wait: self.queue_max_wait,
            give_up_after: self.give_up_after,
        }
    }
}

/// What was found to hold, before a socket is opened.
struct Checked {
    claim: Claim,
    policy: Policy,
}

/// A group has at most so many sockets.
pub(crate) const MAX_MEMBERS: usize = 1_024;

/// What accept loops of one listener are made from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shared: Arc<Shared>,
    pub(crate) backlog: Option<u16>,
    queue_max_wait: Duration,
    give_up_after: Option<Duration>,
}

impl Plan {
    /// Has `socket` listen, if it does not: as late as may be, since whoever is queued is reset
    /// where anything fails after it.
    pub(crate) fn listener(&self, mut socket: Socket) -> Result<ShedListener, BuildError> {
        let call = |name| move |source| BuildError::call(name, source);
        let spare = Spare::new().map_err(call("open /dev/null"))?;
        let local = socket::local_addr(&socket)?;
        if !socket.is_listener().map_err(call("SO_ACCEPTCONN"))? {
            // to see that it can be watched; for good only when it listens, since one that does not
            // hangs up (`tcp_poll`, net/ipv4/tcp.c), which the runtime would not forget
            socket = sys::watch(socket).map_err(call("epoll_ctl"))?.into_inner();
            socket::listen(&socket, self.backlog)?;
        }
        let Shared { claim, warnings, .. } = &*self.shared;
        warnings.get_or_init(|| warning::read(&socket, self.backlog, claim.of_all()));
        let socket = sys::watch(socket).map_err(call("epoll_ctl"))?;
        let door = Door::new(&self.shared, spare, self.queue_max_wait, self.give_up_after);
        Ok(ShedListener::new(socket, local, door))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::File,
        iter, panic,
        process::{self, Command},
    };

    use super::*;

    /// Set in a process that has the test, and few descriptors, to itself.
    const ALONE: &str = "SHED_TEST_ALONE";

    /// Builds a listener after `before`, and gives the error, unless it panics; nobody could have
    /// been queued meanwhile.
    fn fails(runtime: &mut runtime::Builder, before: impl FnOnce()) -> Option<String> {
        let runtime = runtime.enable_time().build().expect("a runtime");
        let _entered = runtime.enter();
        let mut builder = ShedListener::bind("127.0.0.1:0").soft(1);
        let checked = builder.check().expect("it holds");
        let socket = builder.source.take().open(None, Reuse::No).expect("a port");
        let (local, kept) = (socket::local_addr(&socket), socket.try_clone().expect("descriptors"));
        let plan = builder.plan(checked, local.expect("bound"), Words::own());
        before();
        let built = panic::catch_unwind(panic::AssertUnwindSafe(|| plan.listener(socket)));
        assert!(!kept.is_listener().expect("a socket"));
        built.ok().map(|built| built.expect_err("it fails").to_string())
    }

    #[test]
    fn a_runtime_without_io_panics_before_it_listens() {
        assert_eq!(fails(&mut runtime::Builder::new_current_thread(), || ()), None);
    }

    #[test]
    fn nothing_listens_before_it_has_its_descriptors() {
        if env::var_os(ALONE).is_none() {
            let mut again = Command::new("sh");
            again.args(["-c", r#"ulimit -n 64; exec "$0" "$@""#]).env(ALONE, "");
            again.arg(env::current_exe().expect("a path")).arg("--exact");
            again.arg("plan::tests::nothing_listens_before_it_has_its_descriptors");
            let process::Output { status, stdout, .. } = again.output().expect("it runs");
            let text = String::from_utf8_lossy(&stdout).into_owned();
            return assert!(status.success() && text.contains("1 passed"), "{text}");
        }
        let mut held = Vec::new();
        let take_all = || held.extend(iter::from_fn(|| File::open("/dev/null").ok()));
        let err = fails(runtime::Builder::new_current_thread().enable_io(), take_all);
        assert_eq!(err.as_deref(), Some("open /dev/null failed"));
    }
}
