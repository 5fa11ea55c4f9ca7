//! What a scrape costs, how large it is, and whether it delays a sample.

#[path = "../../tests/fixtures/snapshot.rs"]
mod fixture;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use backlogd::{
    detect::Judged,
    metric::HistogramForm,
    model::{Model, Settings},
    publish::{
        exposition::{self, Format},
        http,
        metrics::Scrape,
        outlet::Deliveries,
    },
    sources::{Options, Sources},
    sys::clock,
};
use tokio::sync::{oneshot, watch};

use crate::{
    child::{self, AGENT, Coding, Running},
    hold,
    report::{Goal, Report, median, quantile},
};

/// Owners are looked for twice, the second time 2 s and a rest later.
const SETTLE: Duration = Duration::from_secs(5);
const WARM_UP: usize = 100;
const INTERVAL: Duration = Duration::from_millis(50);
const SAMPLES: usize = 300;

pub(crate) fn run(agent: &Path) -> Result<Report> {
    let mut report = Report::new("scrape");
    full(&mut report)?;
    size(&mut report, agent)?;
    let owners = hold::listen(1_000, 1)?;
    cost(&mut report, agent)?;
    jitter(&mut report)?;
    drop(owners);
    Ok(report)
}

fn size(report: &mut Report, agent: &Path) -> Result<()> {
    let _owners = hold::listen(200, 1)?;
    let _agent = Running::agent(agent)?;
    thread::sleep(SETTLE);
    let plain = child::get(AGENT, "/metrics", Coding::Plain)?.len();
    let how = "plain text, all series of `backlogd run`";
    report.row("a scrape, 200 listeners", Goal::AtMost(2048.0), kib(plain), "KiB", how);
    Ok(())
}

/// Encoding alone, of listeners whose histograms have all buckets in use, which no load gives.
fn full(report: &mut Report) -> Result<()> {
    const ENCODINGS: usize = 50;
    let forms = [
        (Format::OpenMetrics, "text"),
        (Format::Protobuf(HistogramForm::Both), "protobuf"),
        (Format::Protobuf(HistogramForm::Native), "protobuf, native alone"),
    ];
    for n_listeners in [200, 1_000] {
        let snapshot = Arc::new(fixture::listeners(n_listeners));
        for (format, name) in forms {
            let (mut took, mut length) = (Vec::new(), 0);
            for _ in 0..ENCODINGS {
                let start = Instant::now();
                let scrape = Scrape::new(Arc::clone(&snapshot), None);
                length = exposition::encode(scrape, format)?.len();
                took.push(start.elapsed().as_secs_f64() * 1e3);
            }
            let what = format!("{n_listeners} listeners, full histograms, {name}");
            let goal = match (n_listeners, format) {
                (200, Format::OpenMetrics) => Goal::AtMost(2048.0),
                _ => Goal::None,
            };
            let how = "every bucket of both histograms in use";
            report.row(format!("size, {what}"), goal, kib(length), "KiB", how);
            let how = format!("median of {ENCODINGS} encodings, without HTTP");
            report.row(format!("encoding, {what}"), Goal::None, median(&took), "ms", how);
        }
    }
    Ok(())
}

fn cost(report: &mut Report, agent: &Path) -> Result<()> {
    const SCRAPES: u32 = 50;
    let running = Running::agent(agent)?;
    thread::sleep(SETTLE);
    let (start, before) = (Instant::now(), running.cpu()?);
    thread::sleep(Duration::from_secs(5));
    let idle = running.cpu()?.saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
    for (coding, name) in [(Coding::Gzip, "gzip"), (Coding::Plain, "plain")] {
        let mut length = 0;
        let (start, before) = (Instant::now(), running.cpu()?);
        for _ in 0..SCRAPES {
            length = child::get(AGENT, "/metrics", coding)?.len();
        }
        let spent = running.cpu()?.saturating_sub(before).as_secs_f64();
        let each = (spent - idle * start.elapsed().as_secs_f64()) * 1e3 / f64::from(SCRAPES);
        let how =
            format!("mean of {SCRAPES} over HTTP, less {:.2} % of a core when idle", idle * 100.0);
        report.row(
            format!("CPU of a scrape, 1000 listeners, {name}"),
            Goal::AtMost(15.0),
            each,
            "ms",
            how,
        );
        let how = "body";
        report.row(
            format!("a scrape, 1000 listeners, {name}"),
            Goal::None,
            kib(length),
            "KiB",
            how,
        );
    }
    Ok(())
}

fn kib(bytes: usize) -> f64 {
    bytes as f64 / 1024.0
}

/// The daemon's two threads, in this process so that each sample's instant is seen.
fn jitter(report: &mut Report) -> Result<()> {
    let (snapshots, seen) = watch::channel(None);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = thread::spawn(move || serve(listener, seen, stopped));
    let (quiet, scraped, n_scrapes) = sample(&snapshots, addr)?;
    drop(stop);
    server.join().ok().context("the server's thread ended unexpectedly")??;
    for (case, cadence, n_scrapes) in
        [("nobody scrapes", quiet, 0), ("scraped in a loop", scraped, n_scrapes)]
    {
        let late = &cadence.late;
        let how = format!(
            "{SAMPLES} samples, one each {} ms, {n_scrapes} scrapes meanwhile; median {:.2} ms, \
             largest {:.2} ms; waited for a core {:.1} ms in all; a sample takes {:.2} ms, p99 \
             {:.2} ms",
            INTERVAL.as_millis(),
            median(late),
            quantile(late, 1.0),
            cadence.waited,
            median(&cadence.took),
            quantile(&cadence.took, 0.99),
        );
        let what = format!("lateness of a sample, p99, 1000 listeners, {case}");
        report.row(what, Goal::None, quantile(late, 0.99), "ms", how);
    }
    Ok(())
}

fn serve(
    listener: TcpListener,
    snapshots: watch::Receiver<Option<Judged>>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = axum::serve(
            listener,
            http::router(http::App {
                shed: backlogd::shed::Watch::default(),
                snapshots,
                now: clock::monotonic,
                histograms: HistogramForm::Both,
                series_limit: 2000,
                deliveries: Deliveries::default(),
            }),
        );
        tokio::select! {
            ended = async { server.await } => Ok(ended?),
            _ = stopped => Ok(()),
        }
    })
}

/// Milliseconds.
struct Cadence {
    /// That each sample began after its time.
    late: Vec<f64>,
    took: Vec<f64>,
    /// That the sampler was ready to run and did not, in all.
    waited: f64,
}

/// The cadence alone, then while somebody scrapes without pause; and how often that was.
fn sample(
    snapshots: &watch::Sender<Option<Judged>>,
    addr: SocketAddr,
) -> Result<(Cadence, Cadence, u32)> {
    let mut sources = Sources::open(&Options::default())?;
    let mut model = Model::new(Settings::default(), sources.hooks());
    // as the daemon's sampler waits: for an order that does not come
    let (_orders, wait) = mpsc::channel::<()>();
    let mut run = |n_samples: usize| -> Result<Cadence> {
        let waited = waited()?;
        let (mut late, mut took) = (Vec::new(), Vec::new());
        let mut next = Instant::now();
        for _ in 0..n_samples {
            // a timeout: the sending end lives
            let _ = wait.recv_timeout(next.saturating_duration_since(Instant::now()));
            let start = Instant::now();
            late.push(start.saturating_duration_since(next).as_secs_f64() * 1e3);
            let snapshot = model.apply(&sources.sample());
            snapshots.send_replace(Some(Arc::new(snapshot).into()));
            took.push(start.elapsed().as_secs_f64() * 1e3);
            next += INTERVAL;
        }
        Ok(Cadence { late, took, waited: self::waited()? - waited })
    };
    run(WARM_UP)?;
    let quiet = run(SAMPLES)?;
    let done = AtomicBool::new(false);
    let (scraped, n_scrapes) = thread::scope(|scope| {
        let scraper = scope.spawn(|| -> Result<u32> {
            let mut n_scrapes = 0;
            while !done.load(Ordering::Relaxed) {
                child::get(addr, "/metrics", Coding::Gzip)?;
                n_scrapes += 1;
            }
            Ok(n_scrapes)
        });
        let scraped = run(SAMPLES);
        done.store(true, Ordering::Relaxed);
        (scraped, scraper.join())
    });
    let n_scrapes = n_scrapes.ok().context("the scraper ended unexpectedly")??;
    Ok((quiet, scraped?, n_scrapes))
}

/// Milliseconds that this thread was ready to run and did not: the second number of `schedstat`
/// (`proc_pid_schedstat`, fs/proc/base.c).
fn waited() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: f64 = text.split(' ').nth(1).context("no run delay in schedstat")?.parse()?;
    Ok(nanos / 1e6)
}
