//! The sampler's thread: each interval one sample, what it means and what is wrong, for all who
//! serve. What the configuration says of it changes while it runs.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    DaemonError, Purpose, failed,
    log::{log_changes, log_idle},
    options, settings,
};
use crate::{
    config::Config,
    detect::{
        Detector, Judged,
        tuning::{SETTLED, Tuning},
    },
    model::{Model, Settings},
    notify::Watchdog,
    sources::{Options, Sources},
};

/// The sampler's thread, as the daemon holds it.
pub(super) struct Sampler {
    commands: mpsc::Sender<Command>,
    thread: thread::JoinHandle<()>,
}

impl Sampler {
    /// Opens the sources on a thread of their own and starts sampling.
    pub(super) fn start(
        config: &Config,
        purpose: Purpose,
        snapshots: watch::Sender<Option<Judged>>,
        watchdog: Watchdog,
    ) -> Result<Self, DaemonError> {
        let (commands, orders) = mpsc::channel();
        let (opened, result) = mpsc::channel();
        // who sheds alone asked for no programs
        let options = Options { tells_cost: purpose == Purpose::Watch, ..options(config) };
        let (settings, interval) = (settings(config), config.sample_interval);
        let tuning = config.tuning.clone();
        let thread = thread::Builder::new()
            .name("sampler".to_owned())
            .spawn(move || {
                let sources = match Sources::open(&options) {
                    Ok(sources) => sources,
                    Err(err) => return drop(opened.send(Err(err))),
                };
                let detector = Detector::new(tuning);
                if opened.send(Ok(())).is_ok() {
                    sample(sources, (settings, detector), interval, &orders, &snapshots, watchdog);
                }
            })
            .map_err(failed("the sampler's thread"))?;
        result.recv().map_err(|_| DaemonError::SamplerDied)??;
        Ok(Self { commands, thread })
    }

    pub(super) fn configure(&self, config: &Config) {
        let (settings, interval) = (settings(config), config.sample_interval);
        let tuning = config.tuning.clone();
        // it has ended: the watch channel says so to those who serve
        let _ = self.commands.send(Command::Configure { settings, interval, tuning });
    }

    pub(super) fn stop(self) {
        // both fail only when the thread has ended already
        let _ = self.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

enum Command {
    Configure { settings: Settings, interval: Duration, tuning: Arc<Tuning> },
    Stop,
}

/// Samples at a fixed cadence until told to stop. A sample that comes late is not made up for.
fn sample(
    mut sources: Sources,
    (settings, mut detector): (Settings, Detector),
    mut interval: Duration,
    orders: &mpsc::Receiver<Command>,
    snapshots: &watch::Sender<Option<Judged>>,
    mut watchdog: Watchdog,
) {
    let mut model = Model::new(settings, sources.hooks());
    let (mut next, mut idle_from) = (Instant::now(), SETTLED);
    loop {
        let snapshot = Arc::new(model.apply(&sources.sample()));
        sources.look_closer(model.wants_closer_look());
        sources.look_at_threads(model.wants_threads_of());
        let verdicts = Arc::new(detector.judge(&snapshot));
        log_changes(&verdicts);
        if snapshot.samples == idle_from {
            log_idle(&verdicts);
        }
        snapshots.send_replace(Some(Judged { snapshot, verdicts }));
        next = (next + interval).max(Instant::now());
        loop {
            watchdog.beat();
            let wake = watchdog.wake(next);
            match orders.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Command::Configure { settings, interval: new, tuning }) => {
                    model.set(settings);
                    detector.tune(tuning);
                    idle_from = model.samples() + SETTLED;
                    interval = new;
                    next = next.min(Instant::now() + interval);
                }
                Err(mpsc::RecvTimeoutError::Timeout) if wake < next => {}
                Err(mpsc::RecvTimeoutError::Timeout) => break,
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
