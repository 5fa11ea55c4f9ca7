//! `backlogd list`: every listener, one row each, busiest first.

mod columns;
mod select;
mod view;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use clap::Args;

pub(super) use self::view::View;
use super::{
    Exit,
    flags::Flags,
    out::{self, Color, Format, Terminal},
    snapshot::{Reader, Request},
    span,
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
    #[command(flatten)]
    view: View,
    /// Repeat, every 2 s unless told
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "2s",
          value_parser = span::parse, value_name = "TIME")]
    watch: Option<Duration>,
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
        let netns = self.view.netns()?;
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
            let listeners = self.view.select(listeners, &netns);
            out::print(&self.view.document(&listeners, &terminal)?)?;
            if listeners.listeners.is_empty() {
                out::note(if any { "no such listener" } else { "no listener" });
            }
            return Ok(Exit::Fine);
        };
        for turn in 0_u64.. {
            if 0 < turn {
                thread::sleep(pause);
            }
            let listeners = self.view.select(reader.read()?, &netns);
            out::print(&self.frame(&listeners, &terminal, turn == 0)?)?;
        }
        Ok(Exit::Fine)
    }

    /// One turn of `--watch`: redrawn on a terminal, appended elsewhere.
    fn frame(
        &self,
        listeners: &Listeners,
        terminal: &Terminal,
        is_first: bool,
    ) -> anyhow::Result<String> {
        let separator = if is_first { "" } else { "\n" };
        match (self.view.output, terminal.size) {
            (Format::Json, _) => out::json_line(listeners),
            (Format::Yaml, _) => Ok(format!("---\n{}", out::yaml(listeners)?)),
            (Format::Table | Format::Wide, Some((_, rows))) if terminal.redraws => {
                Ok(redraw(&self.view.document(listeners, terminal)?, rows, is_first))
            }
            (Format::Table | Format::Wide, _) => {
                Ok(format!("{separator}{}", self.view.document(listeners, terminal)?))
            }
        }
    }
}

/// Writes over what is on the screen, line by line, so that nothing flickers. Lines that are too
/// long do not wrap, and wrapping is on again at the end, so an interrupt has nothing to restore.
fn redraw(text: &str, rows: usize, is_first: bool) -> String {
    let lines: Vec<_> = text.lines().take(rows.saturating_sub(1)).collect();
    let clear = if is_first { "\x1b[2J" } else { "" };
    format!("{clear}\x1b[?7l\x1b[H{}\x1b[K\n\x1b[J\x1b[?7h", lines.join("\x1b[K\n"))
}

#[cfg(test)]
mod tests;
