//! What it costs to see a whole host: hundreds of network namespaces, each with its listeners.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use backlogd::{
    sources::{netns, netstat, sock_diag::SockDiag, sockstat},
    sys,
};

use crate::{
    child::{self, Coding, Running},
    load::thread_cpu,
    report::{Goal, Report, median},
    sample::node_exporter,
};

const NAMESPACES: usize = 250;
/// Listeners in each.
const LISTENERS: u16 = 4;
/// Namespaces whose listeners are in use, and connections a second in each.
const BUSY: usize = 10;
const PER_SECOND: u32 = 100;
/// From then on as many connections leave TIME_WAIT as come to it (`TCP_TIMEWAIT_LEN`).
const STEADY: Duration = Duration::from_secs(75);
/// The agent looks once a second.
const SPAN: Duration = Duration::from_secs(30);

pub(crate) fn run(agent: &Path, exporter: &Path) -> Result<Report> {
    let mut report = Report::new("host");
    let rate = |i| if i < BUSY { PER_SECOND } else { 0 };
    let spaces: Result<Vec<Running>> = (0..NAMESPACES)
        .map(|i| Running::in_own_netns(&["space", &LISTENERS.to_string(), &rate(i).to_string()]))
        .collect();
    let spaces = spaces?;
    thread::sleep(STEADY);
    let ours = measure_agent(&mut report, agent)?;
    let per_namespace = per_namespace(&spaces)?;
    let how = "a netlink socket, LISTEN dump, netstat, snmp and sockstat in each; median of 5";
    report.row("one pass per namespace", Goal::None, per_namespace, "ms", how);
    let exporter = node_exporter(exporter, &["tcpstat", "netstat", "sockstat"])?;
    let how =
        "tcpstat, netstat, sockstat: one namespace alone; CPU clock of the process, mean of 20";
    report.row("node_exporter, a scrape", Goal::None, exporter, "ms", how);
    let how = "in one namespace; CPU time of the process, mean of 100";
    report.row("ss -tan", Goal::None, ss()?, "ms", how);
    let ratio = per_namespace / ours;
    report.row("one pass per namespace : a sample", Goal::AtLeast(1.0), ratio, "×", "CPU times");
    drop(spaces);
    Ok(report)
}

/// CPU of the whole daemon for each sample, in milliseconds.
fn measure_agent(report: &mut Report, agent: &Path) -> Result<f64> {
    let start = Instant::now();
    let running = Running::agent(agent)?;
    let ready = start.elapsed().as_secs_f64() * 1e3;
    thread::sleep(Duration::from_secs(10));
    let before = running.cpu()?;
    thread::sleep(SPAN);
    let millis = running.cpu()?.saturating_sub(before).as_secs_f64() * 1e3;
    let each = millis / SPAN.as_secs_f64();
    let how = format!(
        "CPU clock of `backlogd run` over {} s of one sample a second, with all its threads; {BUSY} \
         namespaces have {PER_SECOND} connections a second each, and as many in TIME_WAIT as in any minute",
        SPAN.as_secs()
    );
    let what = format!("a sample, {NAMESPACES} namespaces with {LISTENERS} listeners each");
    report.row(what, Goal::AtMost(10.0), each, "ms", how);
    report.row("start to ready", Goal::AtMost(500.0), ready, "ms", "until /readyz answers");
    let kib = running.status_kib("VmRSS:")?;
    let peak = running.status_kib("VmHWM:")? / 1024.0;
    report.row(
        "memory",
        Goal::AtMost(25.0),
        kib / 1024.0,
        "MiB",
        format!("VmRSS; VmHWM {peak:.1}"),
    );
    child::get(child::AGENT, "/metrics", Coding::Gzip)?;
    let kib = running.status_kib("VmRSS:")?;
    report.row("memory, scraped", Goal::AtMost(25.0), kib / 1024.0, "MiB", "after one scrape");
    Ok(each)
}

/// CPU of looking into each namespace as a tool for one namespace would, in milliseconds.
fn per_namespace(spaces: &[Running]) -> Result<f64> {
    let files: Vec<PathBuf> = spaces
        .iter()
        .map(|space| netns::Way::Process(backlogd::id::Pid(space.id())).file())
        .collect();
    let pass = || -> Result<f64> {
        let start = thread_cpu();
        let mut sockets = Vec::new();
        for file in &files {
            sys::netns::enter(file)?;
            SockDiag::open()?.listen(&mut sockets)?;
            let folder = Path::new("/proc/thread-self/net");
            netstat::read(folder)?;
            sockstat::read(folder)?;
        }
        let took = thread_cpu().saturating_sub(start).as_secs_f64() * 1e3;
        anyhow::ensure!(sockets.len() == NAMESPACES * usize::from(LISTENERS), "{}", sockets.len());
        Ok(took)
    };
    let all = || (0..5).map(|_| pass()).collect::<Result<Vec<f64>>>();
    let took = thread::scope(|scope| scope.spawn(all).join().ok()).context("a pass")??;
    Ok(median(&took))
}

fn ss() -> Result<f64> {
    const RUNS: u32 = 100;
    let before = children_ticks()?;
    for _ in 0..RUNS {
        Command::new("ss").arg("-tan").output().context("ss")?;
    }
    let ticks = children_ticks()? - before;
    Ok(ticks * 1e3 / rustix::param::clock_ticks_per_second() as f64 / f64::from(RUNS))
}

/// CPU time of children that have ended: `cutime` and `cstime` (man 5 proc_pid_stat).
fn children_ticks() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(") ").context("no name in stat")?.1;
    let mut fields = after_name.split(' ').skip(13);
    let mut next = || fields.next().and_then(|n| n.parse::<f64>().ok()).context("short stat");
    Ok(next()? + next()?)
}

/// Holds listeners in this network namespace, and makes connections to the first.
pub(crate) fn space(n: u16, per_second: u32) -> Result<()> {
    let listen = |i| TcpListener::bind(("127.0.0.1", 11_000 + i));
    let listeners: Vec<TcpListener> = (0..n).map(listen).collect::<Result<_, _>>()?;
    println!("ready");
    let parent = rustix::process::getppid();
    let pause = Duration::from_secs(1) / per_second.max(1);
    // until the bench ends
    while rustix::process::getppid() == parent {
        if 0 < per_second
            && let Some(listener) = listeners.first()
        {
            let client = TcpStream::connect(listener.local_addr()?)?;
            drop((listener.accept()?, client));
        }
        thread::sleep(pause);
    }
    Ok(())
}
