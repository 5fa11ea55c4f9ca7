//! Ties the parts together: what runs, and what ends it. With the modules below,
//! one for each thing that runs, the only part that knows all others.

mod duty;
mod inherit;
mod log;
mod reload;
mod sampler;
mod server;
mod signals;
mod socket;
mod textfile;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use backlogd_shed::{Drain, Owner};
use thiserror::Error;
use tokio::sync::watch;

use self::{
    duty::{Parts, Receivers, Why},
    inherit::Inherited,
    sampler::Sampler,
    server::{Ending, Listeners},
    signals::Signals,
    socket::UnixSocket,
};
use crate::{
    config::{Config, ConfigError},
    detect::Judged,
    model::Settings,
    notify::{self, Manager},
    publish::{
        http,
        outlet::{Deliveries, Outlets},
    },
    shed::{Dead, Fronts, Live, Restart, StartError, Watch},
    sources::{Namespaces, OpenError, Options},
    sys::{activation::ActivationError, clock, heap},
};

/// The request of a scrape that was accepted comes within this time.
const SETTLE: Duration = Duration::from_millis(200);
/// How long requests that are under way may take when the agent is told to stop.
const GRACE: Duration = Duration::from_millis(500);

/// What the daemon is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It watches; listeners that shed are beside it.
    Watch,
    /// Its listeners that shed: SIGUSR2 hands them over to the next generation, and it ends when
    /// one of them can accept nothing more.
    Shed,
}

/// Why the daemon could not start, or ended.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The address for scrapes is taken, or not ours.
    #[error("cannot listen on {addr}{}", why(owner.as_ref(), source))]
    Listen {
        /// As configured.
        addr: SocketAddr,
        /// Who has it, where it is in use.
        owner: Option<Owner>,
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
    /// One of them accepts nothing more.
    #[error(transparent)]
    Dead(#[from] Dead),
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

impl DaemonError {
    /// Whether the configuration cannot hold here, or is not that of what was inherited.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Activation(err) => !matches!(err, ActivationError::Call { .. }),
            Self::Shed(err) => err.is_configuration(),
            Self::Listen { .. }
            | Self::AlreadyRunning(_)
            | Self::Dead(_)
            | Self::Sources(_)
            | Self::Start { .. }
            | Self::SamplerDied => false,
        }
    }
}

/// What is said of an address that is in use, or a port that not everybody may have.
fn why(owner: Option<&Owner>, source: &io::Error) -> String {
    match owner {
        Some(owner) => format!(": the address is in use, by {owner}"),
        None if source.kind() == io::ErrorKind::PermissionDenied => {
            ", which takes CAP_NET_BIND_SERVICE for this port".to_owned()
        }
        None => String::new(),
    }
}

/// Runs until SIGTERM or SIGINT, or until the next generation serves and what is open here has
/// ended. `reload` reads the configuration anew, on SIGHUP.
///
/// # Errors
/// [`DaemonError`]; nothing is left half started.
pub fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError> + Send + 'static,
    purpose: Purpose,
) -> Result<(), DaemonError> {
    heap::keep_no_large_blocks();
    // first: descriptor 3 is not ours to take later. Opened before it samples, and listeners that
    // shed serve from the same moment
    let Inherited { tcp, fronts, restart } = inherit::take(&config, purpose)?;
    let (manager, watchdog) = notify::service_manager();
    let unix = config.socket.as_deref().map(UnixSocket::bind).transpose()?;
    let listener = unix.as_ref().and_then(UnixSocket::listener);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("the runtime"))?;
    // first: a signal that comes while the programs are loaded is answered after that
    let mut signals = {
        let _entered = runtime.enter();
        Signals::take().map_err(failed("the signal handlers"))?
    };
    let (snapshots, seen) = watch::channel(None);
    let sampler = Sampler::start(&config, purpose, snapshots, watchdog)?;
    let end = runtime.block_on(serve(
        config,
        reload,
        Listeners { tcp, unix: listener },
        &mut signals,
        seen,
        (&sampler, manager, fronts, restart),
    ));
    sampler.stop();
    let result = end.map(|end| match end {
        End::Stopped => {}
        End::HandedOver(fronts) => runtime.block_on(leave(fronts, signals)),
    });
    // a receiver's name that is just being resolved is waited for by nobody
    runtime.shutdown_background();
    result
}

/// How it ended.
enum End {
    /// It was told to, and nothing is left.
    Stopped,
    /// The next generation serves; these have connections that go on.
    HandedOver(Option<Fronts>),
}

async fn serve(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
    listeners: Listeners,
    signals: &mut Signals,
    snapshots: watch::Receiver<Option<Judged>>,
    (sampler, mut manager, mut fronts, mut restart): (
        &Sampler,
        Manager,
        Option<Fronts>,
        Option<Restart>,
    ),
) -> Result<End, DaemonError> {
    let (deliveries, (verdicts, to_tell)) = (Deliveries::default(), watch::channel(Arc::default()));
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut receivers = Receivers {
        outlets: Outlets::start(&config.outlets, instance, to_tell, deliveries.clone()),
        verdicts,
    };
    let lives = fronts.as_ref().map_or(Vec::new(), Fronts::lives);
    let handles = fronts.as_ref().map_or(Vec::new(), Fronts::watch);
    let generations = restart.as_ref().map(Restart::watch);
    let is_first = generations.as_ref().is_none_or(|it| it.number == 0);
    let shed = Watch { handles, generations };
    let router = http::router(http::App {
        snapshots: snapshots.clone(),
        now: clock::monotonic,
        histograms: config.histograms,
        series_limit: config.series_limit,
        deliveries,
        shed: shed.clone(),
    });
    let (ending, seen) = watch::channel(Ending::default());
    let (listen, servers) = listeners.serve(router, seen)?;
    tracing::info!(%listen, version = env!("CARGO_PKG_VERSION"), "started");
    log::log_muted(&config.tuning);
    let mut first = snapshots.clone();
    let servers = async {
        if !is_first {
            // the generation before answers until there is something to tell; an error: there never
            // is
            drop(first.wait_for(Option::is_some).await);
        }
        servers.await
    };
    tokio::pin!(servers);
    let parts = Parts {
        sampler,
        lives: &lives,
        receivers: &mut receivers,
        manager: &mut manager,
        fronts: fronts.as_mut(),
        restart: restart.as_mut(),
        shed,
    };
    let result = tokio::select! {
        ended = &mut servers => return ended.map(|()| End::Stopped).map_err(failed("the server")),
        result = duty::watch_over(config, signals, &reload, snapshots, parts) => result,
    };
    let end = match result {
        Ok(Why::HandedOver) => {
            ending.send_replace(Ending::Leaving);
            if let Ok(ended) = tokio::time::timeout(SETTLE, &mut servers).await {
                return ended.map(|()| End::HandedOver(fronts)).map_err(failed("the server"));
            }
            Ok(End::HandedOver(fronts))
        }
        Ok(Why::Told) | Err(_) => {
            tracing::info!("stopping");
            manager.stopping();
            let drained = drained(fronts);
            tokio::pin!(drained);
            // scrapes are answered meanwhile
            tokio::select! {
                biased;
                () = &mut drained => {}
                () = signals.stop() => cut_off(&lives, drained).await,
                ended = &mut servers => return ended.map(|()| End::Stopped).map_err(failed("the server")),
            }
            result.map(|_| End::Stopped)
        }
    };
    ending.send_replace(Ending::Stopped);
    // what is still under way then is cut off
    let _ = tokio::join!(tokio::time::timeout(GRACE, servers), receivers.outlets.stop());
    end
}

async fn drained(fronts: Option<Fronts>) {
    if let Some(fronts) = fronts {
        fronts.stop().await;
    }
}

/// Resets what is open, and waits until that is done.
async fn cut_off(lives: &[Live], drained: impl Future<Output = ()>) {
    tracing::warn!("told again to stop: what is open is reset");
    let now = Drain { delay: Duration::ZERO, deadline: Duration::ZERO, ..Drain::default() };
    let hurried = async {
        for live in lives {
            live.handle().drain(now).await;
        }
    };
    // where it takes longer, it is cut off by the end of the process
    drop(tokio::time::timeout(GRACE, async { tokio::join!(hurried, drained) }).await);
}

/// Waits for the last connections of a generation that was handed over.
async fn leave(fronts: Option<Fronts>, mut signals: Signals) {
    let lives = fronts.as_ref().map_or(Vec::new(), Fronts::lives);
    let left = async {
        if let Some(fronts) = fronts {
            fronts.leave().await;
        }
    };
    tokio::pin!(left);
    // who tells it to stop gets the drain that goes on; who says so twice wants none
    for _ in 0..2 {
        tokio::select! {
            biased;
            () = &mut left => return tracing::info!("the last connections of this generation ended"),
            () = signals.stop() => {}
        }
    }
    cut_off(&lives, left).await;
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
