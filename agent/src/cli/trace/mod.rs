//! `backlogd trace`: what happens to listeners and their connections, as it happens.
//!
//! It loads programs of its own: a daemon on the same host is not slowed by somebody who watches,
//! and everything is gone when this process ends, in whatever way.

mod follow;
mod line;
mod owner;

use std::{io, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
    value_parser,
};

use self::follow::Follow;
use super::{Exit, flags::Flags, out, span};
use crate::{
    config::Config,
    daemon,
    event::{Comm, EventKind, Filter, Kinds},
    id::{NetnsId, Pid},
    input::{Hook, Tier},
    sources::{Namespaces, Options, Sources},
    sys::{netns, signal::Stop},
};

/// Room for some 10,000 events, while the reader does something else.
const EVENTS_BYTES: u32 = 1 << 20;

/// What only the tracepoints of system calls see on some kernels, or since when a connection is
/// open.
const CALLS: [EventKind; 4] =
    [EventKind::Accept, EventKind::AcceptError, EventKind::Close, EventKind::ConnectError];

/// Show what happens to listeners and their connections, as it happens
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  \
        sudo backlogd trace --port 443 --event overflow,syn_drop\n  \
        sudo backlogd trace --comm nginx --duration 10s\n  \
        sudo backlogd trace -o json --event accept | jq .wait_seconds\n\n\
        TIME is UTC. PROCESS is the one in whose context it happened, or else the listener's\n\
        owner. The filters work in the kernel: what is not asked for costs next to nothing. What\n\
        comes faster than it can be written is lost, and said at the end.",
    // it asks no daemon, and looks into one namespace
    mut_arg("socket", |arg| arg.hide(true)),
    mut_arg("own_netns_only", |arg| arg.hide(true)),
    mut_arg("host_root", |arg| arg.hide(true))
)]
pub(super) struct Trace {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Form,
    /// Only this local port
    #[arg(short, long, value_parser = value_parser!(u16).range(1..), value_name = "PORT")]
    port: Option<u16>,
    /// Only listeners of this process, and what it does itself
    #[arg(long, value_parser = value_parser!(u32).range(1..), value_name = "PID")]
    pid: Option<u32>,
    /// Only listeners of processes with this name, and what those do themselves; the kernel keeps
    /// 15 bytes of a name
    #[arg(long, value_name = "NAME")]
    comm: Option<Comm>,
    /// Only this network namespace: its inode number, or a path such as /run/netns/blue or
    /// /proc/PID/ns/net
    #[arg(long, value_name = "NETNS")]
    netns: Option<Namespace>,
    /// Only events of these kinds, separated by commas; repeatable
    #[arg(short, long = "event", value_delimiter = ',', value_parser = kinds(),
          value_name = "KIND")]
    events: Vec<EventKind>,
    /// End after this time
    #[arg(long, value_parser = span::parse, value_name = "TIME")]
    duration: Option<Duration>,
    /// End after this many events
    #[arg(long, value_parser = value_parser!(u64).range(1..), value_name = "NUMBER")]
    count: Option<u64>,
    /// Leave out the header
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    flags: Flags<false>,
}

/// The form of printed events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A line each, for people
    #[default]
    Table,
    /// An object each on a line of its own; stable, for programs
    Json,
}

/// A network namespace, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Namespace {
    /// By the inode number of its file in nsfs.
    Inode(NetnsId),
    /// By that file.
    Path(PathBuf),
}

impl FromStr for Namespace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
        match number.unwrap_or(text).parse() {
            Ok(inode) if 0 < inode => Ok(Self::Inode(NetnsId(inode))),
            _ if text.contains('/') => Ok(Self::Path(text.into())),
            _ => Err("expected an inode number, or a path such as /run/netns/blue or \
                      /proc/1/ns/net"),
        }
    }
}

impl Trace {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let config = self.flags.load_readable()?.config;
        let stop = Stop::take().context("signals")?;
        let filter = self.filter(self.netns.as_ref().map(enter).transpose()?);
        let options = Options {
            // what costs every system call a little is on only for those who asked
            accept_tracepoints: self.wants_syscalls(&config, &filter),
            events_bytes: EVENTS_BYTES,
            namespaces: Namespaces::Own,
            ..daemon::options(&config)
        };
        let mut sources = Sources::open(&options).context("cannot trace")?;
        sources.programs().context("cannot trace")?;
        self.note_unseen(&sources.hooks())?;
        let (follow, events) = Follow::start(&self, filter, sources).context("cannot trace")?;
        follow.run(events, &stop)?;
        Ok(Exit::Fine)
    }

    /// Whether the tracepoints of system calls may be on, where nothing else sees what was asked
    /// for: unless somebody said no.
    fn wants_syscalls(&self, config: &Config, filter: &Filter) -> bool {
        let asked = filter.kinds.iter().any(|kind| CALLS.contains(&kind));
        config.accept_tracepoints || asked && !self.flags.has("accept_tracepoints")
    }

    /// Says which of the events that were asked for by name cannot be seen.
    ///
    /// # Errors
    /// When none of them can.
    fn note_unseen(&self, hooks: &[Hook]) -> anyhow::Result<()> {
        if self.events.is_empty() {
            let names: Vec<&str> = EventKind::ALL
                .into_iter()
                .filter(|kind| unseen(hooks, *kind).is_some())
                .map(EventKind::name)
                .collect();
            if !names.is_empty() {
                let names = names.join(", ");
                out::note(&format!("not all seen here: {names}; backlogd doctor says why"));
            }
            return Ok(());
        }
        let mut n_seen = 0;
        for &kind in &self.events {
            match unseen(hooks, kind) {
                Some(Unseen::Wholly(why)) => out::note(&why),
                Some(Unseen::InPart(why)) => {
                    n_seen += 1;
                    out::note(&why);
                }
                None => n_seen += 1,
            }
        }
        ensure!(0 < n_seen, "cannot trace: no hook sees what was asked for");
        Ok(())
    }

    fn filter(&self, netns: Option<NetnsId>) -> Filter {
        let kinds = match &*self.events {
            [] => Kinds::all(),
            some => some.iter().copied().collect(),
        };
        Filter { kinds, port: self.port, netns, pid: self.pid.map(Pid), comm: self.comm }
    }
}

/// clap's own message names the kinds there are.
fn kinds() -> impl TypedValueParser<Value = EventKind> {
    PossibleValuesParser::new(EventKind::ALL.map(EventKind::name)).try_map(|name| {
        EventKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or("expected an event")
    })
}

/// Enters the namespace: the programs follow the listeners of the thread that loads them.
fn enter(namespace: &Namespace) -> anyhow::Result<NetnsId> {
    let path = match namespace {
        Namespace::Path(path) => path.clone(),
        Namespace::Inode(inode) => {
            netns::find(*inode).context("cannot list /proc")?.with_context(|| {
                format!("no network namespace {inode} found in /proc or /run/netns")
            })?
        }
    };
    netns::enter(&path).map_err(|err| {
        let needs = match err.kind() {
            io::ErrorKind::PermissionDenied => " (needs CAP_SYS_ADMIN)",
            _ => "",
        };
        anyhow::Error::new(err).context(format!("cannot enter {}{needs}", path.display()))
    })
}

/// Why no event of this kind can be seen, if so.
fn unseen(hooks: &[Hook], kind: EventKind) -> Option<Unseen> {
    let names = served_by(kind);
    let hooks = || hooks.iter().filter(|hook| names.contains(&hook.event));
    let missing = hooks().find(|hook| Tier::Sampled <= hook.tier)?;
    let (event, reasons) = (missing.event, missing.reasons());
    if hooks().any(|hook| hook.tier < Tier::Sampled) {
        return Some(Unseen::InPart(format!("{kind} is seen in part, not {event}: {reasons}")));
    }
    Some(Unseen::Wholly(format!("no hook sees {kind}: {reasons}")))
}

/// What cannot be seen of a kind of event, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unseen {
    Wholly(String),
    InPart(String),
}

/// The events in the table of hooks.
const fn served_by(kind: EventKind) -> &'static [&'static str] {
    match kind {
        EventKind::Syn => &["syn"],
        EventKind::Cookie => &["syn_cookie"],
        EventKind::SynDrop => &["syn_drop"],
        EventKind::Overflow => &["syn_drop", "ack_drop"],
        EventKind::Established => &["established"],
        EventKind::Reset => &["reset"],
        EventKind::Accept => &["accept"],
        EventKind::AcceptError => &["accept_error"],
        EventKind::Close => &["close"],
        EventKind::Discard => &["discard"],
        EventKind::Listen | EventKind::Unlisten => &["listen"],
        EventKind::ConnectError => &["connect_error"],
    }
}

#[cfg(test)]
mod tests;
