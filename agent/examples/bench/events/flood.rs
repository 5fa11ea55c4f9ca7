//! As many short connections as this machine gives, from several processes: is each counted, and
//! what does the agent take?

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{ChildStderr, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    child::{AGENT, Coding, Running, get},
    load::Loop,
    report::{Goal, Report},
};

/// Processes, each with a listener of its own.
const CLIENTS: u32 = 2;
/// Of all together.
const PER_SECOND: u32 = 50_000;
const SECONDS: u64 = 30;
/// The agent's next samples have seen all.
const SETTLE: Duration = Duration::from_secs(3);

/// All rows.
pub(crate) fn rows(report: &mut Report, agent: &Path) -> Result<()> {
    by_default(report, agent)?;
    with_waits(report, agent)?;
    traced(report, agent)
}

/// One of the processes: says its port, waits for a line, makes connections, says how many, waits for
/// another line.
pub(crate) fn client(per_second: u32, seconds: u64) -> Result<()> {
    let mut out = io::stdout();
    let mut line = String::new();
    let server = Loop::new()?;
    writeln!(out, "ready\n{}", server.port())?;
    io::stdin().read_line(&mut line)?;
    let n = server.paced(per_second, Duration::from_secs(seconds))?;
    writeln!(out, "{n}")?;
    io::stdin().read_line(&mut line)?;
    Ok(())
}

fn by_default(report: &mut Report, agent: &Path) -> Result<()> {
    let running = Running::agent(agent)?;
    let flood = Flood::run(&running, SECONDS)?;
    let how = format!("{CLIENTS} processes, {SECONDS} s, {PER_SECOND}/s wanted");
    report.row("short connections, a second", Goal::None, flood.per_second(), "connections", how);
    let how = format!(
        "of {} connections by their own count; {} established, {} accepted, {} closed, {} \
         published as lost",
        flood.made, flood.established, flood.accepted, flood.closed, flood.lost
    );
    let missed = flood.missed();
    report.row("short connections, miscounted", Goal::AtMost(0.0), missed, "connections", how);
    let how = "CPU of `backlogd run` meanwhile";
    let cpu = flood.agent * 100.0;
    report.row("short connections, agent", Goal::AtMost(1.0), cpu, "% of a core", how);
    Ok(())
}

/// With the tracepoints of accept(2), where nothing else sees it.
fn with_waits(report: &mut Report, agent: &Path) -> Result<()> {
    let running = Running::agent_with(agent, &["--accept-tracepoints"])?;
    let flood = Flood::run(&running, 10)?;
    let how = format!(
        "of {} connections in 10 s, {:.0}/s; --accept-tracepoints; {} waits",
        flood.made,
        flood.per_second(),
        flood.waits
    );
    let missed = flood.missed() + flood.made.abs_diff(flood.waits) as f64;
    report.row("short connections, waits missed", Goal::AtMost(0.0), missed, "waits", how);
    let how = "CPU of `backlogd run` meanwhile";
    let cpu = flood.agent * 100.0;
    let what = "short connections, agent with accept waits";
    report.row(what, Goal::AtMost(1.0), cpu, "% of a core", how);
    Ok(())
}

/// Somebody watches all of it.
fn traced(report: &mut Report, agent: &Path) -> Result<()> {
    let running = Running::agent(agent)?;
    let opens = passive_opens()?;
    let mut trace = Trace::start(agent)?;
    let before = trace.running.cpu()?;
    let flood = Flood::run(&running, SECONDS)?;
    let cpu = trace.running.cpu()?.saturating_sub(before).as_secs_f64() / flood.seconds;
    let (shown, lost) = trace.end()?;
    // established, accepted, closed; the look at /metrics is a connection, too
    let events = 3 * (passive_opens()? - opens);
    let how = format!(
        "of {events} events in {SECONDS} s, {shown} were shown and {lost} counted as lost; \
         {:.0} connections/s",
        flood.per_second()
    );
    let missed = events.abs_diff(shown + lost) as f64;
    report.row("trace, neither shown nor lost", Goal::AtMost(0.0), missed, "events", how);
    let per_second = shown as f64 / flood.seconds;
    report.row("trace, shown a second", Goal::None, per_second, "events", "JSON to /dev/null");
    let how = "CPU of `backlogd trace` meanwhile";
    report.row("trace, CPU", Goal::None, cpu * 100.0, "% of a core", how);
    let how = "of the daemon beside it, as above";
    let missed = flood.missed();
    report.row("trace, miscounted", Goal::AtMost(0.0), missed, "connections", how);
    let cpu = flood.agent * 100.0;
    report.row("trace, agent", Goal::AtMost(1.0), cpu, "% of a core", how);
    Ok(())
}

/// What the clients did, and what the agent says of it.
struct Flood {
    seconds: f64,
    made: u64,
    /// By the kernel's PassiveOpens.
    opens: u64,
    established: u64,
    accepted: u64,
    closed: u64,
    waits: u64,
    /// Published as lost.
    lost: u64,
    /// CPU of the agent, of a core.
    agent: f64,
}

impl Flood {
    fn run(agent: &Running, seconds: u64) -> Result<Self> {
        let words = [(PER_SECOND / CLIENTS).to_string(), seconds.to_string()];
        let words = ["client", &words[0], &words[1]];
        let mut clients =
            (0..CLIENTS).map(|_| Running::talking_part(&words)).collect::<Result<Vec<_>>>()?;
        let ports = clients.iter_mut().map(|(_, out)| number(out)).collect::<Result<Vec<_>>>()?;
        thread::sleep(SETTLE);
        let (start, cpu, opens) = (Instant::now(), agent.cpu()?, passive_opens()?);
        clients.iter_mut().try_for_each(|(client, _)| client.tell("go"))?;
        let made = clients.iter_mut().map(|(_, out)| number(out)).sum::<Result<u64>>()?;
        let time = start.elapsed().as_secs_f64();
        let cpu = agent.cpu()?.saturating_sub(cpu).as_secs_f64();
        let opens = passive_opens()? - opens;
        thread::sleep(SETTLE);
        let text = String::from_utf8(get(AGENT, "/metrics", Coding::Plain)?)?;
        let of = |name: &str| -> u64 {
            ports.iter().map(|port| sum(&text, name, &format!("port=\"{port}\""))).sum()
        };
        Ok(Self {
            seconds: time,
            made,
            opens,
            established: of("backlogd_listener_established_total"),
            accepted: of("backlogd_listener_accepted_total"),
            closed: of("backlogd_listener_closed_total"),
            waits: of("backlogd_listener_accept_wait_seconds_count"),
            lost: sum(&text, "backlogd_events_lost_total", ""),
            agent: cpu / time,
        })
    }

    fn per_second(&self) -> f64 {
        self.made as f64 / self.seconds
    }

    /// By how much any number is off.
    fn missed(&self) -> f64 {
        let counted = [self.opens, self.established, self.accepted, self.closed];
        counted.map(|n| self.made.abs_diff(n)).into_iter().sum::<u64>() as f64
    }
}

/// The sum of the series with this name and label.
fn sum(text: &str, name: &str, label: &str) -> u64 {
    let series = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
    });
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn number(out: &mut BufReader<ChildStdout>) -> Result<u64> {
    let mut line = String::new();
    out.read_line(&mut line)?;
    line.trim().parse().with_context(|| format!("not a number: {line:?}"))
}

/// Of this namespace (`snmp_seq_show_tcp_udp`, net/ipv4/proc.c).
fn passive_opens() -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let at = names.split(' ').position(|name| name == "PassiveOpens");
    let value = at.and_then(|at| values.split(' ').nth(at)?.parse().ok());
    value.context("no PassiveOpens")
}

/// A running `backlogd trace` of the three events that each connection has.
struct Trace {
    running: Running,
    notes: BufReader<ChildStderr>,
}

impl Trace {
    /// Once it watches.
    fn start(agent: &Path) -> Result<Self> {
        let mut command = Command::new(agent);
        command.args(["trace", "-o", "json", "--event", "established,accept,close"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Running::start(&mut command)?;
        let mut notes = BufReader::new(running.errors()?);
        let mut line = String::new();
        while !line.contains("watching") {
            line.clear();
            ensure!(notes.read_line(&mut line)? != 0, "trace does not start");
        }
        Ok(Self { running, notes })
    }

    /// How many events were shown, and how many lost.
    fn end(&mut self) -> Result<(u64, u64)> {
        self.running.interrupt()?;
        let mut notes = String::new();
        self.notes.read_to_string(&mut notes)?;
        // backlogd: 5 events in 3.0 s, 12 lost: …
        let last = notes.lines().last().unwrap_or_default();
        let words: Vec<_> = last.split(' ').collect();
        let number = |at: usize| match words.get(at) {
            Some(&"none") => Some(0),
            word => word?.parse().ok(),
        };
        number(1).zip(number(6)).with_context(|| format!("trace says {last:?}"))
    }
}
