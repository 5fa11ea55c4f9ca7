//! `backlogd record`: snapshots into a file, to look at later with `replay`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    system::uname,
};

use super::{Exit, flags::Flags, out, snapshot::Sampler, span};
use crate::{
    recording::{Place, Writer, clock},
    sys::{clock::realtime, signal::Stop},
};

/// Write what happens on this host to a file, for `backlogd replay`
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  \
        sudo backlogd record incident.backlogd\n  \
        sudo backlogd record --for 10m --interval 500ms incident.backlogd\n  \
        backlogd replay incident.backlogd list\n\n\
        It takes samples of its own, also when a daemon runs, until SIGINT or SIGTERM. The file is\n\
        written as time goes by: of a recorder that was killed it has all but the last snapshots.\n\
        It holds addresses, names of processes, units and pods, and numbers; nothing of what\n\
        connections carry. Only its owner can read it.",
    // it asks no daemon
    mut_arg("socket", |arg| arg.hide(true))
)]
pub(super) struct Record {
    /// The file
    file: PathBuf,
    /// Time from one snapshot to the next
    #[arg(long, default_value = "1s", value_parser = span::parse, value_name = "TIME")]
    interval: Duration,
    /// End after this time
    #[arg(long = "for", value_parser = span::parse, value_name = "TIME")]
    duration: Option<Duration>,
    /// Overwrite the file if there is one
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    flags: Flags<false>,
}

impl Record {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let config = self.flags.load_readable()?.config;
        let stop = Stop::take().context("signals")?;
        // before the file: who cannot sample leaves an older one alone
        let sampler = Sampler::open(&config)?;
        let place = || self.file.display().to_string();
        let file = create(&self.file, self.force).with_context(place)?;
        let release = uname().release().to_string_lossy().into_owned();
        let writer = Writer::new(&file, &release, realtime()).with_context(place)?;
        out::note(&format!("recording to {}; SIGINT ends it", place()));
        let done = self.record(sampler, writer, &stop).with_context(place)?;
        let bytes = file.metadata().with_context(place)?.len();
        out::note(&summary(done, bytes));
        Ok(Exit::Fine)
    }

    /// Takes samples until told to stop, or the time is over.
    fn record(
        &self,
        mut sampler: Sampler,
        mut writer: Writer<&File>,
        stop: &Stop,
    ) -> anyhow::Result<Place> {
        let mut next = Instant::now();
        let end = self.duration.map(|duration| next + duration);
        loop {
            writer.push(&sampler.next())?;
            sampler.look_closer(false);
            // a sample that took longer is followed by the next at once, and by no more
            next = (next + self.interval).max(Instant::now());
            if end.is_some_and(|end| end < next) || wait(stop, next)? {
                break;
            }
        }
        let place = writer.place();
        writer.finish()?;
        Ok(place)
    }
}

/// Makes the file, for its owner alone.
fn create(path: &Path, force: bool) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    match force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    options.open(path).map_err(|err| match err.kind() {
        io::ErrorKind::AlreadyExists => {
            anyhow::Error::msg("there is such a file; --force overwrites it")
        }
        _ => err.into(),
    })
}

/// Waits until an instant; true when told to stop before.
fn wait(stop: &Stop, until: Instant) -> anyhow::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("timeout")?;
        let mut fds = [PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(n) => return Ok(0 < n),
            // stopped and continued
            Err(Errno::INTR) => {}
            Err(err) => return Err(err).context("poll"),
        }
    }
}

/// What there was in the end.
fn summary(done: Place, bytes: u64) -> String {
    let snapshots = if done.snapshots == 1 { "snapshot" } else { "snapshots" };
    format!("{} {snapshots} over {}, {bytes} bytes", done.snapshots, clock(done.time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Nanos;

    #[test]
    fn people_are_told_what_it_came_to() {
        let place =
            |snapshots, seconds: u64| Place { snapshots, time: Nanos(seconds * 1_000_000_000) };
        assert_eq!("1 snapshot over 00:00:00, 900 bytes", summary(place(1, 0), 900));
        assert_eq!("3661 snapshots over 01:01:00, 7 bytes", summary(place(3661, 3660), 7));
    }
}
