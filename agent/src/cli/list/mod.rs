//! `backlogd list`: every listener, one row each, busiest first.

mod columns;
mod select;

use std::{
    fs,
    io::{self, IsTerminal as _},
    os::unix::fs::MetadataExt as _,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use self::select::{PortRange, Selection, SortBy};
use super::{
    Exit,
    flags::Flags,
    out::{self, Color, Format, Terminal},
    snapshot::{Reader, Request},
    span,
    trace::Namespace,
};
use crate::publish::api::Listeners;

/// List the listeners of this host, busiest first
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    backlogd list --port 80 --port 8000-8099\n  \
    backlogd list -o wide --comm nginx --watch\n  \
    backlogd list --namespace shop --pod web-0\n  \
    backlogd list --netns /run/netns/blue\n  \
    backlogd list -o json | jq '.listeners[] | select(.length > .limit)'\n\n\
    QUEUE is the accept queue, length/limit; MAX the highest length in the last minute; DROPS what\n\
    was dropped since somebody watched; SKDROPS the same over the socket's life, as `ss -m` counts\n\
    it; SYN the SYN queue; OPEN what was accepted and is not closed; CLOSE-WAIT of these, what the\n\
    peer has closed. WORKLOAD is the owner's pod, as namespace/pod[container], else its systemd\n\
    unit, else its container. `-` is not known here.")]
pub(super) struct List {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Only these ports, as 443, 80-90 or 80,443; repeatable
    #[arg(short, long = "port", value_delimiter = ',', value_name = "PORT")]
    ports: Vec<PortRange>,
    /// Only listeners of a process with this name; repeatable
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Only listeners of this process; repeatable
    #[arg(long = "pid", value_name = "PID", value_parser = pid)]
    pids: Vec<u32>,
    /// Only listeners of pods in this Kubernetes namespace; repeatable
    #[arg(short, long = "namespace", value_name = "NAME")]
    namespaces: Vec<String>,
    /// Only listeners of the pod with this name; repeatable
    #[arg(long = "pod", value_name = "NAME")]
    pods: Vec<String>,
    /// Only in this network namespace: its inode number, or a path such as /run/netns/blue or
    /// /proc/PID/ns/net; repeatable
    #[arg(long, value_name = "NETNS")]
    netns: Vec<Namespace>,
    /// What comes first
    #[arg(long, value_enum, default_value_t, value_name = "BY")]
    sort: SortBy,
    /// Also those where nobody listens any more
    #[arg(long)]
    all: bool,
    /// Repeat, every 2 s unless told
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "2s",
          value_parser = span::parse, value_name = "TIME")]
    watch: Option<Duration>,
    /// Leave out the header
    #[arg(long)]
    no_headers: bool,
    /// Take own samples, also when a daemon runs
    #[arg(long)]
    standalone: bool,
    /// Time between two own samples
    #[arg(long, default_value = "200ms", value_parser = span::parse, value_name = "TIME")]
    interval: Duration,
    #[command(flatten)]
    flags: Flags<false>,
}

impl List {
    pub(super) fn run(self, color: Color, verbose: bool) -> anyhow::Result<Exit> {
        let config = self.flags.load_readable()?.config;
        let netns = self.netns.iter().map(inode).collect::<anyhow::Result<Vec<_>>>()?;
        let request = Request {
            standalone: self.standalone,
            insist: self.flags.has("socket"),
            interval: self.interval,
        };
        let mut reader = Reader::open(&config, request)?;
        let terminal = Terminal::new(color);
        // people are told; JSON and YAML say it in `source`
        if verbose || io::stderr().is_terminal() {
            out::note(&reader.describe());
        }
        let Some(pause) = self.watch else {
            let listeners = reader.read()?;
            let any = !listeners.listeners.is_empty();
            let listeners = self.select(listeners, &netns);
            out::print(&self.document(&listeners, &terminal)?)?;
            if listeners.listeners.is_empty() {
                out::note(if any { "no such listener" } else { "no listener" });
            }
            return Ok(Exit::Fine);
        };
        for turn in 0_u64.. {
            if 0 < turn {
                thread::sleep(pause);
            }
            let listeners = self.select(reader.read()?, &netns);
            out::print(&self.frame(&listeners, &terminal, turn == 0)?)?;
        }
        Ok(Exit::Fine)
    }

    /// What was asked for, in the order that was asked for.
    fn select(&self, mut listeners: Listeners, netns: &[u32]) -> Listeners {
        let selection = Selection {
            ports: &self.ports,
            comms: &self.comms,
            pids: &self.pids,
            namespaces: &self.namespaces,
            pods: &self.pods,
            netns,
            // Programs get all there is: `sockets` tells them.
            gone: self.all || self.output != Format::Table,
        };
        listeners.listeners.retain(|listener| selection.takes(listener));
        select::sort(&mut listeners.listeners, self.sort);
        listeners
    }

    /// The whole output.
    fn document(&self, listeners: &Listeners, terminal: &Terminal) -> anyhow::Result<String> {
        match self.output {
            Format::Table => Ok(self.table(listeners, terminal, false)),
            Format::Wide => Ok(self.table(listeners, terminal, true)),
            Format::Json => out::json(listeners),
            Format::Yaml => out::yaml(listeners),
        }
    }

    /// One turn of `--watch`: redrawn on a terminal, appended elsewhere.
    fn frame(
        &self,
        listeners: &Listeners,
        terminal: &Terminal,
        is_first: bool,
    ) -> anyhow::Result<String> {
        let separator = if is_first { "" } else { "\n" };
        match (self.output, terminal.size) {
            (Format::Json, _) => out::json_line(listeners),
            (Format::Yaml, _) => Ok(format!("---\n{}", out::yaml(listeners)?)),
            (Format::Table | Format::Wide, Some((_, rows))) if terminal.redraws => {
                Ok(redraw(&self.document(listeners, terminal)?, rows, is_first))
            }
            (Format::Table | Format::Wide, _) => {
                Ok(format!("{separator}{}", self.document(listeners, terminal)?))
            }
        }
    }

    fn table(&self, listeners: &Listeners, terminal: &Terminal, wide: bool) -> String {
        let table = columns::table(&listeners.listeners, wide);
        if self.no_headers { table.render_rows(terminal) } else { table.render(terminal) }
    }
}

/// Writes over what is on the screen, line by line, so that nothing flickers. Lines that are too
/// long do not wrap, and wrapping is on again at the end, so an interrupt has nothing to restore.
fn redraw(text: &str, rows: usize, is_first: bool) -> String {
    let lines: Vec<_> = text.lines().take(rows.saturating_sub(1)).collect();
    let clear = if is_first { "\x1b[2J" } else { "" };
    format!("{clear}\x1b[?7l\x1b[H{}\x1b[K\n\x1b[J\x1b[?7h", lines.join("\x1b[K\n"))
}

/// The inode number of a network namespace.
fn inode(namespace: &Namespace) -> anyhow::Result<u32> {
    match namespace {
        Namespace::Inode(netns) => Ok(netns.0),
        Namespace::Path(path) => {
            let place = || format!("no network namespace at {}", path.display());
            let inode = fs::metadata(path).with_context(place)?.ino();
            u32::try_from(inode).with_context(place)
        }
    }
}

fn pid(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "expected a process id, a whole number")
}

#[cfg(test)]
mod tests;
