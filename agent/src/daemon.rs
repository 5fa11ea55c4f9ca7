//! Ties the parts together: the sampler's thread, the servers, the signals. The only file that
//! knows all of them; long because it is the one place where they meet.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    config::{Config, ConfigError},
    detect::{
        Detector, Judged,
        alert::Verdicts,
        phase::Change,
        tuning::{SETTLED, Tuning},
    },
    error,
    model::{Model, Settings},
    publish::{
        exposition::{self, Format},
        fold::Caps,
        http,
        metrics::Scrape,
        outlet::{Deliveries, Outlets},
    },
    sources::{Namespaces, OpenError, Options, Sources},
    sys::{clock, heap},
};

/// How long requests that are under way may take when the agent is told to stop.
const GRACE: Duration = Duration::from_millis(500);

/// How often the file for node_exporter's textfile collector is written.
const TEXTFILE_EVERY: Duration = Duration::from_secs(10);

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
    /// Another daemon answers on the Unix socket.
    #[error("another backlogd answers on {0}")]
    AlreadyRunning(PathBuf),
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

enum Command {
    Configure { settings: Settings, interval: Duration, tuning: Arc<Tuning> },
    Stop,
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
    let tcp = bind_tcp(config.listen)?;
    let unix = config.socket.as_deref().map(UnixSocket::bind).transpose()?;
    let listener = unix.as_ref().and_then(UnixSocket::listener);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Start { what: "the runtime", source })?;
    // first: a signal that comes while the programs are loaded is answered after that
    let signals = {
        let _entered = runtime.enter();
        Signals::take()
            .map_err(|source| DaemonError::Start { what: "the signal handlers", source })?
    };
    let (snapshots, seen) = watch::channel(None);
    let sampler = Sampler::start(&config, snapshots)?;
    let result = runtime.block_on(serve(
        config,
        reload,
        Listeners { tcp, unix: listener },
        signals,
        seen,
        &sampler,
    ));
    // a receiver's name that is just being resolved is waited for by nobody
    runtime.shutdown_background();
    sampler.stop();
    result
}

/// The sampler's thread, as the daemon holds it.
struct Sampler {
    commands: mpsc::Sender<Command>,
    thread: thread::JoinHandle<()>,
}

impl Sampler {
    /// Opens the sources on a thread of their own and starts sampling.
    fn start(
        config: &Config,
        snapshots: watch::Sender<Option<Judged>>,
    ) -> Result<Self, DaemonError> {
        let (commands, orders) = mpsc::channel();
        let (opened, result) = mpsc::channel();
        let options = options(config);
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
                    sample(sources, (settings, detector), interval, &orders, &snapshots);
                }
            })
            .map_err(|source| DaemonError::Start { what: "the sampler's thread", source })?;
        result.recv().map_err(|_| DaemonError::SamplerDied)??;
        Ok(Self { commands, thread })
    }

    fn configure(&self, config: &Config) {
        let (settings, interval) = (settings(config), config.sample_interval);
        let tuning = config.tuning.clone();
        // it has ended: the watch channel says so to those who serve
        let _ = self.commands.send(Command::Configure { settings, interval, tuning });
    }

    fn stop(self) {
        // both fail only when the thread has ended already
        let _ = self.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

/// Samples at a fixed cadence until told to stop. A sample that comes late is not made up for.
fn sample(
    mut sources: Sources,
    (settings, mut detector): (Settings, Detector),
    mut interval: Duration,
    orders: &mpsc::Receiver<Command>,
    snapshots: &watch::Sender<Option<Judged>>,
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
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Command::Configure { settings, interval: new, tuning }) => {
                    model.set(settings);
                    detector.tune(tuning);
                    idle_from = model.samples() + SETTLED;
                    interval = new;
                    next = next.min(Instant::now() + interval);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => break,
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// One line for each entry that takes no subject, which may be a slip of the pen.
fn log_idle(verdicts: &Verdicts) {
    for entry in verdicts.idle.iter().take(LOGGED) {
        tracing::warn!("{entry} has matched nothing so far");
    }
    let more = verdicts.idle.len().saturating_sub(LOGGED);
    if 0 < more {
        tracing::warn!(more, "more entries of the configuration have matched nothing so far");
    }
}

/// Most changes of one sample, or entries that match nothing, that are logged one by one.
const LOGGED: usize = 20;

/// One line for each alert that begins, becomes better or worse, or is told no more.
fn log_changes(verdicts: &Verdicts) {
    for (change, alert) in verdicts.changes.iter().take(LOGGED) {
        let (alert_name, severity) = (alert.about.name, alert.severity.name());
        let subject = &alert.subject.name;
        let evidence = &alert.latest;
        match change {
            Change::Cleared => {
                tracing::info!(alert = alert_name, severity, subject, "cleared");
            }
            Change::Lost(why) => tracing::warn!(
                alert = alert_name,
                severity,
                subject,
                seen = evidence.seen,
                "cannot be told any more: {why}"
            ),
            Change::Inhibited(by) => {
                tracing::info!(
                    alert = alert_name,
                    severity,
                    subject,
                    "is told by {by} from now on"
                );
            }
            Change::Silenced => {
                tracing::info!(
                    alert = alert_name,
                    severity,
                    subject,
                    "silenced by the configuration"
                );
            }
            Change::Raised | Change::Severity => tracing::warn!(
                alert = alert_name,
                severity,
                subject,
                seen = evidence.seen,
                cause = evidence.cause,
                mend = evidence.mend,
                "{}",
                alert.about.summary
            ),
            Change::None => {}
        }
    }
    let more = verdicts.changes.len().saturating_sub(LOGGED);
    if 0 < more {
        tracing::warn!(more, "more alerts have changed: see /api/v1/alerts");
    }
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

fn bind_tcp(addr: SocketAddr) -> Result<TcpListener, DaemonError> {
    let failed = |source| DaemonError::Listen { addr, source };
    let listener = TcpListener::bind(addr).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The socket for the reading verbs; the file goes with it.
struct UnixSocket {
    path: PathBuf,
    listener: io::Result<UnixListener>,
}

impl UnixSocket {
    /// That it cannot be had costs the reading verbs, not the daemon.
    fn bind(path: &Path) -> Result<Self, DaemonError> {
        if UnixStream::connect(path).is_ok() {
            return Err(DaemonError::AlreadyRunning(path.to_owned()));
        }
        let listener = Self::listen(path);
        if let Err(err) = &listener {
            tracing::warn!(socket = %path.display(), error = %err,
                "no Unix socket: list takes its own samples");
        }
        Ok(Self { path: path.to_owned(), listener })
    }

    fn listen(path: &Path) -> io::Result<UnixListener> {
        // one level alone: what is missing beyond that is a slip of the pen
        match path.parent().map(fs::create_dir) {
            Some(Err(err)) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            Some(_) | None => {}
        }
        match fs::symlink_metadata(path) {
            // left by a daemon that was killed: nobody answered on it
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                let text = "there is a file that is no socket, and it stays";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn listener(&self) -> Option<UnixListener> {
        self.listener.as_ref().ok()?.try_clone().ok()
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.listener.is_ok() {
            // a file that stays is removed at the next start
            let _ = fs::remove_file(&self.path);
        }
    }
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
}

/// What the servers listen on.
struct Listeners {
    tcp: TcpListener,
    unix: Option<UnixListener>,
}

async fn serve(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError>,
    Listeners { tcp, unix }: Listeners,
    signals: Signals,
    snapshots: watch::Receiver<Option<Judged>>,
    sampler: &Sampler,
) -> Result<(), DaemonError> {
    let failed = |what| move |source| DaemonError::Start { what, source };
    let (deliveries, (verdicts, to_tell)) = (Deliveries::default(), watch::channel(Arc::default()));
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut receivers = Receivers {
        outlets: Outlets::start(&config.outlets, instance, to_tell, deliveries.clone()),
        verdicts,
    };
    let router = http::router(http::App {
        snapshots: snapshots.clone(),
        now: clock::monotonic,
        histograms: config.histograms,
        series_limit: config.series_limit,
        deliveries,
    });
    let tcp = tokio::net::TcpListener::from_std(tcp).map_err(failed("the server"))?;
    let unix = unix
        .map(tokio::net::UnixListener::from_std)
        .transpose()
        .map_err(failed("the server on the Unix socket"))?;
    // not as configured: port 0 is any free one
    let listen = tcp.local_addr().map_err(failed("the server"))?;
    let (stop, stopped) = watch::channel(());
    let until = |mut stopped: watch::Receiver<()>| async move { drop(stopped.changed().await) };
    let serve_tcp = axum::serve(tcp, router.clone()).with_graceful_shutdown(until(stopped.clone()));
    let serve_unix = async {
        match unix {
            Some(unix) => axum::serve(unix, router).with_graceful_shutdown(until(stopped)).await,
            None => Ok(()),
        }
    };
    tracing::info!(%listen, version = env!("CARGO_PKG_VERSION"), "started");
    let servers = async { tokio::try_join!(serve_tcp, serve_unix) };
    tokio::pin!(servers);
    let result = tokio::select! {
        ended = &mut servers => return ended.map(drop).map_err(failed("the server")),
        result = watch_over(config, signals, &reload, snapshots, (sampler, &mut receivers)) => result,
    };
    tracing::info!("stopping");
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
    mut signals: Signals,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    mut snapshots: watch::Receiver<Option<Judged>>,
    (sampler, receivers): (&Sampler, &mut Receivers),
) -> Result<(), DaemonError> {
    let newest = snapshots.clone();
    let mut textfile = tokio::time::interval(TEXTFILE_EVERY);
    let mut caps = Caps::new(config.series_limit);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => {
                config = reloaded(config, reload, sampler);
                receivers.outlets.configure(&config.outlets);
            }
            changed = snapshots.changed() => match (changed, &*snapshots.borrow()) {
                (Err(_), _) => return Err(DaemonError::SamplerDied),
                (Ok(()), Some(judged)) => {
                    receivers.verdicts.send_replace(judged.verdicts.clone());
                }
                (Ok(()), None) => {}
            },
            _ = textfile.tick() => match (&config.textfile, newest.borrow().clone()) {
                (Some(dir), Some(newest)) => write_textfile(dir, newest, &mut caps),
                // before the first sample
                (Some(_), None) => textfile.reset_after(Duration::from_millis(100)),
                (None, _) => {}
            }
        }
    }
}

/// The configuration in force after SIGHUP: a bad file keeps the old one.
fn reloaded(
    old: Config,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    sampler: &Sampler,
) -> Config {
    let new = match reload() {
        Ok(new) => new,
        Err(err) => {
            let error = error::chain(&err);
            tracing::error!(%error, "not reloaded: the configuration stays as it was");
            return old;
        }
    };
    let fixed = [
        ("listen", new.listen != old.listen),
        ("socket", new.socket != old.socket),
        ("no_ebpf", new.no_ebpf != old.no_ebpf),
        ("tier", new.tier != old.tier),
        ("accept_tracepoints", new.accept_tracepoints != old.accept_tracepoints),
        ("slots", new.slots != old.slots),
        ("own_netns_only", new.own_netns_only != old.own_netns_only),
        ("host_root", new.host_root != old.host_root),
        ("table_cpu_ratio", new.table_cpu_ratio.total_cmp(&old.table_cpu_ratio).is_ne()),
        ("series_limit", new.series_limit != old.series_limit),
        ("histograms", new.histograms != old.histograms),
        ("log", new.log != old.log),
        ("log_format", new.log_format != old.log_format),
    ];
    for (key, _) in fixed.iter().filter(|(_, differs)| *differs) {
        tracing::warn!(key, "changed in the file: takes effect at the next start");
    }
    sampler.configure(&new);
    tracing::info!("reloaded");
    Config {
        listen: old.listen,
        socket: old.socket,
        no_ebpf: old.no_ebpf,
        tier: old.tier,
        accept_tracepoints: old.accept_tracepoints,
        slots: old.slots,
        own_netns_only: old.own_netns_only,
        host_root: old.host_root,
        table_cpu_ratio: old.table_cpu_ratio,
        series_limit: old.series_limit,
        histograms: old.histograms,
        log: old.log,
        log_format: old.log_format,
        ..new
    }
}

/// Writes the metrics where node_exporter's textfile collector reads them: whole, or not at all.
/// Without `process_*`, which would stand beside node_exporter's own.
fn write_textfile(dir: &Path, newest: Judged, caps: &mut Caps) {
    let (path, unfinished) = (dir.join("backlogd.prom"), dir.join("backlogd.prom.tmp"));
    let scrape = Scrape::capped(newest, None, caps);
    let written = exposition::encode(scrape, Format::Prometheus)
        .map_err(io::Error::other)
        .and_then(|bytes| fs::write(&unfinished, bytes))
        .and_then(|()| fs::rename(&unfinished, &path));
    if let Err(err) = written {
        tracing::warn!(path = %path.display(), error = %err, "textfile not written");
    }
}
