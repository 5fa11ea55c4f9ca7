//! From the ring buffer to standard output, until told to stop.
//!
//! One thread does it all: it waits for events and signals, prints events in batches, and takes a
//! sample once a second, which tells who owns the listeners.

use std::{
    iter,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Form, Trace, line, owner::Owners};
use crate::{
    cli::out,
    event::{Event, EventKind, Filter},
    input::{Hook, Sample, Tier},
    publish::api,
    sources::{Sources, ebpf::events::Events},
    sys::{clock, signal::Stop},
    time::{Monotonic, UnixTime},
};

/// Events that are read before they are printed and signals are looked for.
const BATCH: usize = 1024;

/// How often owners are looked for.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// At least so long after the newest sample a new listener's owners are looked for.
const SAMPLE_AGAIN: Duration = Duration::from_millis(50);

/// One run of the verb.
pub(super) struct Follow<'a> {
    trace: &'a Trace,
    filter: Filter,
    sources: Sources,
    owners: Owners,
    clocks: Clocks,
    started: Instant,
    sampled: Instant,
    next_sample: Instant,
    /// Events that were printed.
    shown: u64,
}

impl<'a> Follow<'a> {
    /// Opens the ring buffer, and says what is watched.
    pub(super) fn start(
        trace: &'a Trace,
        filter: Filter,
        mut sources: Sources,
    ) -> anyhow::Result<(Self, Events)> {
        let sample = sources.sample();
        let now = Instant::now();
        let mut follow = Self {
            trace,
            filter,
            sources,
            owners: Owners::default(),
            clocks: Clocks { monotonic: clock::monotonic(), unix: clock::realtime() },
            started: now,
            sampled: now,
            next_sample: now + SAMPLE_EVERY,
            shown: 0,
        };
        follow.take_over(&sample)?;
        // some hooks see the whole host
        let netns = sample.namespaces.first().map(|namespace| namespace.netns);
        let events = follow.sources.programs()?.watch(&Filter { netns, ..filter })?;
        follow.started = Instant::now();
        if trace.output == Form::Table && !trace.no_headers {
            out::print(&line::header())?;
        }
        out::note(&watching(follow.owners.count(&sample, &filter), &filter));
        if follow.sources.hooks().iter().any(is_by_syscall) {
            out::note("while this runs, every system call of the host takes some 30 ns longer");
        }
        Ok((follow, events))
    }

    /// Prints events until there were enough, the time is over or a signal comes; then says how
    /// many there were.
    pub(super) fn run(mut self, mut events: Events, stop: &Stop) -> anyhow::Result<()> {
        let end = self.trace.duration.map(|duration| self.started + duration);
        while !self.is_done() {
            let until = iter::once(self.next_sample).chain(end).min();
            let (is_told, is_readable) = wait(stop, &events, until)?;
            if is_told || end.is_some_and(|end| end <= Instant::now()) {
                break;
            }
            if self.next_sample <= Instant::now() {
                self.sample()?;
            }
            if is_readable {
                self.print_batch(&mut events)?;
            }
        }
        let programs = self.sources.programs()?;
        programs.unwatch()?;
        let lost = programs.events_lost();
        // sent before that
        while self.print_batch(&mut events)? {}
        out::note(&summary(self.shown, lost, self.started.elapsed()));
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.trace.count.is_some_and(|count| count <= self.shown)
    }

    /// Prints what there is, up to a batch; whether there may be more.
    fn print_batch(&mut self, events: &mut Events) -> anyhow::Result<bool> {
        let mut text = String::new();
        let mut n = 0;
        while n < BATCH && !self.is_done() {
            let Some(event) = events.next().transpose()? else { break };
            self.owners.learn(&event);
            if self.filter.by_owner() && event.kind == EventKind::Listen {
                // so that the programs are told of the new listener
                self.next_sample = self.next_sample.min(self.sampled + SAMPLE_AGAIN);
            }
            text += &self.show(&event)?;
            self.shown += 1;
            n += 1;
        }
        if !text.is_empty() {
            out::print(&text)?;
        }
        Ok(n == BATCH)
    }

    fn show(&self, event: &Event) -> anyhow::Result<String> {
        let at = self.clocks.unix(event.at);
        let owner = event.cookie.and_then(|cookie| self.owners.of(cookie));
        match self.trace.output {
            Form::Table => Ok(line::show(event, at, owner)),
            Form::Json => out::json_line(&api::Event::new(event, at, owner)),
        }
    }

    fn sample(&mut self) -> anyhow::Result<()> {
        let sample = self.sources.sample();
        self.sampled = Instant::now();
        self.next_sample = self.sampled + SAMPLE_EVERY;
        self.take_over(&sample)
    }

    /// Learns who owns the listeners, and tells the programs whose events are wanted.
    fn take_over(&mut self, sample: &Sample) -> anyhow::Result<()> {
        self.owners.update(sample);
        if let Ok(slots) = &sample.slots
            && self.filter.by_owner()
        {
            let (owners, filter) = (&self.owners, &self.filter);
            let is_watched = |cookie| owners.are_watched(cookie, filter);
            self.sources.programs()?.watch_listeners(&slots.records, is_watched);
        }
        Ok(())
    }
}

/// Waits until told to stop, for events, or for the time; whether the first, whether the second.
fn wait(stop: &Stop, events: &Events, until: Option<Instant>) -> anyhow::Result<(bool, bool)> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.map(Timespec::try_from).transpose().context("timeout")?;
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(events, PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        // stopped and continued
        Ok(_) | Err(Errno::INTR) => {}
        Err(err) => return Err(err).context("poll"),
    }
    Ok((fds[0].revents().contains(PollFlags::IN), fds[1].revents().contains(PollFlags::IN)))
}

/// The two clocks at one instant.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    monotonic: Monotonic,
    unix: UnixTime,
}

impl Clocks {
    /// An instant by the wall clock as it went when both were read.
    fn unix(self, at: Monotonic) -> UnixTime {
        let later = at - self.monotonic;
        let earlier = self.monotonic - at;
        UnixTime(self.unix.0.saturating_add(later.0).saturating_sub(earlier.0))
    }
}

/// Whether the tracepoints of system calls serve it.
fn is_by_syscall(hook: &Hook) -> bool {
    hook.tier == Tier::Tracepoint && hook.program.starts_with("exit_")
}

/// What is watched at the start.
fn watching(n_listeners: usize, filter: &Filter) -> String {
    let mut which = String::new();
    which += &filter.port.map_or_else(String::new, |port| format!(" on port {port}"));
    which += &filter.pid.map_or_else(String::new, |pid| format!(" of process {pid}"));
    which += &filter.comm.map_or_else(String::new, |comm| {
        // a name can hold anything
        format!(" of \"{}\"", out::printable(&comm.to_string()))
    });
    which += &filter.netns.map_or_else(String::new, |netns| format!(" in {netns}"));
    match n_listeners {
        0 => format!("no listener{which} so far; waiting"),
        1 => format!("watching 1 listening socket{which}"),
        n => format!("watching {n} listening sockets{which}"),
    }
}

/// What there was in the end.
fn summary(shown: u64, lost: u64, span: Duration) -> String {
    let events = if shown == 1 { "event" } else { "events" };
    let lost = match lost {
        0 => "none lost".to_owned(),
        n => format!("{n} lost: the ring buffer was full"),
    };
    format!("{shown} {events} in {:.1} s, {lost}", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Comm, Kinds},
        id::{NetnsId, Pid},
    };

    #[test]
    fn an_event_is_dated_before_and_after_the_clocks_were_read() {
        let clocks = Clocks { monotonic: Monotonic(100), unix: UnixTime(1000) };
        let shown = [90, 100, 150].map(|at| clocks.unix(Monotonic(at)));
        assert_eq!([990, 1000, 1050].map(UnixTime), shown);
    }

    #[test]
    fn people_are_told_what_is_watched_and_what_it_came_to() {
        let all = Filter { kinds: Kinds::all(), port: None, netns: None, pid: None, comm: None };
        let port = Filter { port: Some(81), ..all };
        let some = Filter {
            pid: Some(Pid(7)),
            comm: Some(Comm::new("sh")),
            netns: Some(NetnsId(9)),
            ..all
        };
        assert_eq!("watching 3 listening sockets", watching(3, &all));
        assert_eq!("no listener on port 81 so far; waiting", watching(0, &port));
        let expected = "watching 1 listening socket of process 7 of \"sh\" in net:[9]";
        assert_eq!(expected, watching(1, &some));
        let span = Duration::from_millis(2960);
        assert_eq!("1 event in 3.0 s, none lost", summary(1, 0, span));
        let expected = "0 events in 3.0 s, 12 lost: the ring buffer was full";
        assert_eq!(expected, summary(0, 12, span));
    }
}
