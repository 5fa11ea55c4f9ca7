//! Ties the parts together: what runs, and what ends it. With the modules below,
//! one for each thing that runs, the only part that knows all others.

mod log;
mod reload;
mod sampler;
mod server;
mod socket;
mod textfile;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use self::{sampler::Sampler, server::Listeners, socket::UnixSocket};
use crate::{
    config::{Config, ConfigError},
    detect::{Judged, alert::Verdicts},
    model::Settings,
    notify::{self, Manager},
    publish::{
        fold::Caps,
        http,
        outlet::{Deliveries, Outlets},
    },
    shed::{Fronts, Live, StartError},
    sources::{Namespaces, OpenError, Options},
    sys::{
        activation::{self, ActivationError},
        clock, heap,
    },
};

/// How long requests that are under way may take when the agent is told to stop.
const GRACE: Duration = Duration::from_millis(500);

/// Why the daemon could not start, or ended.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The address for scrapes is taken, or not ours.
    #[error("cannot listen on {addr}")]
    Listen {
        /// As configured.
        addr: SocketAddr,
        /// What bind(2) or listen(2) answered.
        source: io::Error,
    },
    /// What the service manager passed is no socket for scrapes.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// Another daemon answers on the Unix socket.
    #[error("another backlogd answers on {0}")]
    AlreadyRunning(PathBuf),
    /// A shedding listener cannot be.
    #[error(transparent)]
    Shed(#[from] StartError),
    /// There is nothing to read.
    #[error(transparent)]
    Sources(#[from] OpenError),
    /// A thread, a runtime or a signal handler could not be had.
    #[error("cannot start {what}")]
    Start {
        /// What could not be started.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The sampler ended although nobody told it to.
    #[error("the sampler's thread ended unexpectedly")]
    SamplerDied,
}

/// Runs until SIGTERM or SIGINT. `reload` reads the configuration anew, on SIGHUP.
///
/// # Errors
/// [`DaemonError`]; nothing is left half started.
pub fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError> + Send + 'static,
) -> Result<(), DaemonError> {
    heap::keep_no_large_blocks();
    // first: descriptor 3 is not ours to take later
    let tcp = match activation::inherited()? {
        Some(listener) => listener,
        None => server::bind_tcp(config.listen)?,
    };
    let (manager, watchdog) = notify::service_manager();
    let unix = config.socket.as_deref().map(UnixSocket::bind).transpose()?;
    let listener = unix.as_ref().and_then(UnixSocket::listener);
    // opened before it samples, served on from the same moment
    let fronts = if config.shed.is_empty() { None } else { Some(Fronts::start(&config.shed)?) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("the runtime"))?;
    // first: a signal that comes while the programs are loaded is answered after that
    let signals = {
        let _entered = runtime.enter();
        Signals::take().map_err(failed("the signal handlers"))?
    };
    let (snapshots, seen) = watch::channel(None);
    let sampler = Sampler::start(&config, snapshots, watchdog)?;
    let result = runtime.block_on(serve(
        config,
        reload,
        Listeners { tcp, unix: listener },
        signals,
        seen,
        (&sampler, manager, fronts),
    ));
    // a receiver's name that is just being resolved is waited for by nobody
    runtime.shutdown_background();
    sampler.stop();
    result
}

/// The signals that the daemon answers.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Ends when the agent is told to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn serve(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
    listeners: Listeners,
    mut signals: Signals,
    snapshots: watch::Receiver<Option<Judged>>,
    (sampler, mut manager, fronts): (&Sampler, Manager, Option<Fronts>),
) -> Result<(), DaemonError> {
    let (deliveries, (verdicts, to_tell)) = (Deliveries::default(), watch::channel(Arc::default()));
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut receivers = Receivers {
        outlets: Outlets::start(&config.outlets, instance, to_tell, deliveries.clone()),
        verdicts,
    };
    let lives = fronts.as_ref().map_or(Vec::new(), Fronts::lives);
    let router = http::router(http::App {
        snapshots: snapshots.clone(),
        now: clock::monotonic,
        histograms: config.histograms,
        series_limit: config.series_limit,
        deliveries,
        shed: fronts.as_ref().map_or(Vec::new(), Fronts::watch),
    });
    let (stop, stopped) = watch::channel(());
    let (listen, servers) = listeners.serve(router, stopped)?;
    tracing::info!(%listen, version = env!("CARGO_PKG_VERSION"), "started");
    log::log_muted(&config.tuning);
    tokio::pin!(servers);
    let result = tokio::select! {
        ended = &mut servers => return ended.map_err(failed("the server")),
        result = watch_over(
            config, &mut signals, &reload, snapshots, (sampler, &lives, &mut receivers, &mut manager)
        ) => result,
    };
    tracing::info!("stopping");
    manager.stopping();
    // scrapes are answered meanwhile
    let drained = async {
        if let Some(fronts) = fronts {
            fronts.stop().await;
        }
    };
    tokio::select! {
        biased;
        () = drained => {}
        () = signals.stop() => tracing::warn!("told again to stop: what is open is cut off"),
        ended = &mut servers => return ended.map_err(failed("the server")),
    }
    // it fails when nobody is served any more
    let _ = stop.send(());
    // what is still under way then is cut off
    let _ = tokio::join!(tokio::time::timeout(GRACE, servers), receivers.outlets.stop());
    result
}

/// Who is told of alerts, and by which channel.
struct Receivers {
    outlets: Outlets,
    verdicts: watch::Sender<Arc<Verdicts>>,
}

/// Answers signals and writes the textfile until the agent is told to stop.
async fn watch_over(
    mut config: Config,
    signals: &mut Signals,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    mut snapshots: watch::Receiver<Option<Judged>>,
    (sampler, lives, receivers, manager): (&Sampler, &[Live], &mut Receivers, &mut Manager),
) -> Result<(), DaemonError> {
    let newest = snapshots.clone();
    let mut textfile_due = tokio::time::interval(textfile::EVERY);
    let mut caps = Caps::new(config.series_limit);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => {
                manager.reloading();
                config = reload::reloaded(config, reload, sampler, lives);
                receivers.outlets.configure(&config.outlets);
                manager.reloaded();
            }
            changed = snapshots.changed() => match (changed, &*snapshots.borrow()) {
                (Err(_), _) => return Err(DaemonError::SamplerDied),
                (Ok(()), Some(judged)) => {
                    receivers.verdicts.send_replace(judged.verdicts.clone());
                    manager.sampled(judged);
                }
                (Ok(()), None) => {}
            },
            _ = textfile_due.tick() => match (&config.textfile, newest.borrow().clone()) {
                (Some(dir), Some(newest)) => textfile::write(dir, newest, &mut caps),
                // before the first sample
                (Some(_), None) => textfile_due.reset_after(Duration::from_millis(100)),
                (None, _) => {}
            }
        }
    }
}

/// For `map_err`: `what` could not be started.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Start { what, source }
}

/// How the sources are opened by `config`.
pub(crate) fn options(config: &Config) -> Options {
    Options {
        ebpf: !config.no_ebpf,
        slots: config.slots,
        tier: config.tier,
        accept_tracepoints: config.accept_tracepoints,
        namespaces: if config.own_netns_only { Namespaces::Own } else { Namespaces::All },
        table_share: config.table_cpu_ratio,
        root: config.host_root.clone(),
        ..Options::default()
    }
}

/// What the model is told of `config`.
pub(crate) fn settings(config: &Config) -> Settings {
    Settings {
        retention: config.listener_retention,
        length_max_window: config.length_max_window,
        stalled_after: config.stalled_after,
    }
}
