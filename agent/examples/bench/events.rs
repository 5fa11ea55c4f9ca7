//! What the programs cost a connection: time by the kernel's own statistics, memory by its slabs,
//! connections per second; and what many connections cost the agent.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use backlogd::sources::{Options, Sources};

use crate::{
    child::Running,
    hold,
    load::{self, Loop, Rate},
    raw::EmptyProgram,
    report::{Goal, Report, median},
};

const BATCHES: usize = 8;
const CONNECTIONS: u32 = 4_500;
/// The programs on `inet_sock_set_state`.
const STATE: [&str; 2] = ["state", "state_2"];

pub(crate) fn run(agent: &Path) -> Result<Report> {
    load::without_time_wait()?;
    let mut report = Report::new("events");
    program_time(&mut report)?;
    memory(&mut report)?;
    rate(&mut report, agent)?;
    parts(&mut report)?;
    agent_cpu(&mut report, agent)?;
    Ok(report)
}

/// Runs and nanoseconds of each program of this process, by name.
type Counts = BTreeMap<String, (f64, f64)>;

/// The kernel's statistics, on while this lives.
struct Meter {
    _statistics: OwnedFd,
    empty: EmptyProgram,
    names: BTreeMap<u32, String>,
}

impl Meter {
    /// Over the programs that are loaded at this time.
    fn new() -> Result<Self> {
        let statistics = enable_stats(Stats::RunTime).context("BPF statistics")?;
        let empty = EmptyProgram::attach().context("the empty program")?;
        let name = |program: aya::programs::ProgramInfo| {
            Some((program.id(), program.name_as_str()?.to_owned()))
        };
        let names = loaded_programs().filter_map(Result::ok).filter_map(name).collect();
        Ok(Self { _statistics: statistics, empty, names })
    }

    fn read(&self) -> Result<Counts> {
        let mut counts = Counts::new();
        for entry in fs::read_dir("/proc/self/fdinfo")? {
            let entry = entry?;
            // the directory's own descriptor is gone by the time
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let number = |key| {
                let value = text.lines().find_map(|line| line.strip_prefix(key))?;
                value.trim().parse::<u32>().ok()
            };
            let wide = |key| {
                let value = text.lines().find_map(|line| line.strip_prefix(key))?;
                value.trim().parse::<f64>().ok()
            };
            let (Some(id), Some(runs), Some(nanos)) =
                (number("prog_id:"), wide("run_cnt:"), wide("run_time_ns:"))
            else {
                continue;
            };
            let is_empty = entry.file_name().to_str() == Some(&self.empty.fd().to_string());
            let name = if is_empty { Some("empty") } else { self.names.get(&id).map(|n| &**n) };
            counts.insert(name.unwrap_or("?").to_owned(), (runs, nanos));
        }
        Ok(counts)
    }

    /// What `work` adds.
    fn over<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Counts, T)> {
        let before = self.read()?;
        let value = work()?;
        let mut counts = self.read()?;
        for (name, (runs, nanos)) in &mut counts {
            let (runs_before, nanos_before) = before.get(name).copied().unwrap_or_default();
            *runs -= runs_before;
            *nanos -= nanos_before;
        }
        Ok((counts, value))
    }
}

/// What one program did in a batch: per connection its runs, and nanoseconds less those of as many
/// runs of the empty program.
fn net(counts: &Counts, name: &str, empty: f64, n: f64) -> (f64, f64) {
    let (runs, nanos) = counts.get(name).copied().unwrap_or_default();
    (runs / n, (nanos - runs * empty) / n)
}

/// Medians over batches of connections to one listener: the empty program, and each program's
/// (runs, net nanoseconds) per connection while they open and while they close.
struct PerConnection {
    empty: f64,
    open: BTreeMap<&'static str, (f64, f64)>,
    close: (f64, f64),
}

fn per_connection(meter: &Meter, listener: &Loop) -> Result<PerConnection> {
    let n = f64::from(CONNECTIONS);
    let (mut opened, mut closed, mut empties) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        let (counts, open) = meter
            .over(|| (0..CONNECTIONS).map(|_| listener.connect()).collect::<Result<Vec<_>>>())?;
        let (runs, nanos) = counts.get("empty").copied().unwrap_or_default();
        empties.push(nanos / runs);
        opened.push(counts);
        closed.push(meter.over(|| {
            drop(open);
            Ok(())
        })?);
    }
    let empty = median(&empties);
    let medians = |batches: &[Counts], name: &str| {
        let of = |pick: fn((f64, f64)) -> f64| {
            median(&batches.iter().map(|c| pick(net(c, name, empty, n))).collect::<Vec<_>>())
        };
        (of(|both| both.0), of(|both| both.1))
    };
    let closed: Vec<Counts> = closed.into_iter().map(|(counts, ())| counts).collect();
    let close =
        ["state", "state_2", "destroy", "destroy_2", "enqueue"].map(|n| medians(&closed, n));
    Ok(PerConnection {
        empty,
        open: ["state", "state_2", "enqueue"].map(|n| (n, medians(&opened, n))).into(),
        close: close.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1)),
    })
}

impl PerConnection {
    fn describe(&self) -> String {
        let part = |(name, (runs, nanos)): (&&str, &(f64, f64))| {
            format!("{name} {nanos:.0} ns in {runs:.2} runs")
        };
        self.open.iter().map(part).collect::<Vec<_>>().join(", ")
    }

    fn open_nanos(&self) -> f64 {
        self.open.values().map(|(_, nanos)| nanos).sum()
    }
}

fn program_time(report: &mut Report) -> Result<()> {
    let server = Loop::new()?;
    let sources = Sources::open(&Options::default())?;
    let meter = Meter::new()?;
    let followed = per_connection(&meter, &server)?;
    let leave_state = refused(&meter, followed.empty)?;
    let leave_data = data(&meter, &server, followed.empty)?;
    drop((sources, meter));
    let _sources = Sources::open(&Options { slots: 1, ..Options::default() })?;
    let without_slot = Loop::new()?;
    let unfollowed = per_connection(&Meter::new()?, &without_slot)?;

    let both_ends = followed.open_nanos();
    // the client goes to SYN_SENT and to ESTABLISHED, past two programs
    let server_side = both_ends - 4.0 * leave_state;
    let how = format!("{}; the client's four runs subtracted", followed.describe());
    report.row(
        "all programs, to accept, server's end",
        Goal::AtMost(500.0),
        server_side,
        "ns",
        how,
    );
    let how = format!("median of {BATCHES} batches of {CONNECTIONS}; net of the empty program");
    report.row("all programs, to accept, both ends", Goal::None, both_ends, "ns", how);
    let how = format!("{:.1} runs; both ends", followed.close.0);
    report.row("all programs, at close", Goal::None, followed.close.1, "ns", how);
    let how = "what is subtracted from each run: the statistics themselves";
    report.row("the empty program", Goal::None, followed.empty, "ns", how);
    let how = "a run of `state` for connect(2) to a closed port";
    report.row("no listener's concern: a client", Goal::AtMost(20.0), leave_state, "ns", how);
    let how = "a run of `enqueue` for a byte on an established connection";
    report.row("no listener's concern: data", Goal::AtMost(20.0), leave_data, "ns", how);
    report.row(
        "a listener without slot, to accept, both ends",
        Goal::None,
        unfollowed.open_nanos(),
        "ns",
        unfollowed.describe(),
    );
    Ok(())
}

/// Net nanoseconds of one run for a client that is refused.
fn refused(meter: &Meter, empty: f64) -> Result<f64> {
    let closed_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut nets = Vec::new();
    for _ in 0..BATCHES {
        let (counts, ()) = meter.over(|| {
            for _ in 0..CONNECTIONS {
                drop(TcpStream::connect(closed_port));
            }
            Ok(())
        })?;
        let sum = STATE.map(|name| net(&counts, name, empty, 1.0));
        nets.push((sum[0].1 + sum[1].1) / (sum[0].0 + sum[1].0));
    }
    Ok(median(&nets))
}

/// Net nanoseconds of one run for data that arrives on a connection.
fn data(meter: &Meter, server: &Loop, empty: f64) -> Result<f64> {
    let (mut client, mut accepted) = server.connect()?;
    client.set_nodelay(true)?;
    let mut nets = Vec::new();
    for _ in 0..BATCHES {
        let (counts, ()) = meter.over(|| {
            for _ in 0..CONNECTIONS {
                client.write_all(b"x")?;
                accepted.read_exact(&mut [0])?;
            }
            Ok(())
        })?;
        let (runs, nanos) = net(&counts, "enqueue", empty, 1.0);
        nets.push(nanos / runs);
    }
    Ok(median(&nets))
}

/// What open connections add to the kernel's general slabs, with the programs more than without.
fn memory(report: &mut Report) -> Result<()> {
    const OPEN: u32 = 10_000;
    const PAIRS: usize = 3;
    let mut each = Vec::new();
    let mut caches: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..PAIRS {
        let without = slab_growth(OPEN)?;
        let sources = Sources::open(&Options::default())?;
        let with = slab_growth(OPEN)?;
        drop(sources);
        let mut sum = 0.0;
        for (cache, bytes) in with {
            let more = (bytes - without.get(&cache).copied().unwrap_or(0.0)) / f64::from(OPEN);
            sum += more;
            *caches.entry(cache).or_default() += more / PAIRS as f64;
        }
        each.push(sum);
    }
    let large = caches.iter().filter(|(_, bytes)| 8.0 < bytes.abs());
    let large: Vec<_> = large.map(|(cache, bytes)| format!("{cache} {bytes:+.0}")).collect();
    let how = format!(
        "growth of kmalloc-* over {OPEN} open connections, with less without; median of {PAIRS}; {}",
        large.join(", ")
    );
    report.row("kernel memory per connection", Goal::AtMost(320.0), median(&each), "bytes", how);
    Ok(())
}

fn slab_growth(n_pairs: u32) -> Result<BTreeMap<String, f64>> {
    let settle = || thread::sleep(Duration::from_millis(1_500));
    settle();
    let before = slabs()?;
    let held = hold::hold(9, usize::try_from(n_pairs)?)?;
    settle();
    let mut growth = slabs()?;
    drop(held);
    for (cache, bytes) in &mut growth {
        *bytes -= before.get(cache).copied().unwrap_or(0.0);
    }
    Ok(growth)
}

/// Bytes in use of each kmalloc cache.
fn slabs() -> Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let cache = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| name.starts_with("kmalloc-"))?;
        let mut number = || words.next()?.parse::<f64>().ok();
        let (active, _, size) = (number()?, number()?, number()?);
        Some((name.to_owned(), active * size))
    };
    Ok(text.lines().filter_map(cache).collect())
}

/// Connections per second with the agent and without, slice by slice.
fn rate(report: &mut Report, agent: &Path) -> Result<()> {
    const PAIRS: usize = 11;
    const SLICE: Duration = Duration::from_millis(1_000);
    /// The agent looks for owners twice after its start; without it the same pause.
    const SETTLE: Duration = Duration::from_millis(2_500);
    let server = Loop::new()?;
    let without = || -> Result<Rate> {
        thread::sleep(SETTLE);
        server.flat_out(SLICE)
    };
    let with = || -> Result<Rate> {
        let _agent = Running::agent(agent)?;
        without()
    };
    server.flat_out(SLICE)?;
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        let (with, without) = if pair % 2 == 0 {
            let with = with()?;
            (with, without()?)
        } else {
            let without = without()?;
            (with()?, without)
        };
        pairs.push((with, without));
    }
    let of =
        |pick: &dyn Fn(&(Rate, Rate)) -> f64| median(&pairs.iter().map(pick).collect::<Vec<_>>());
    let how = format!(
        "medians: {:.0}/s with, {:.0}/s without; {PAIRS} interleaved pairs of 1 s, \
         connect, accept, close in one thread",
        of(&|(with, _)| with.per_second),
        of(&|(_, without)| without.per_second)
    );
    let ratio = of(&|(with, without)| with.per_second / without.per_second);
    report.row("connections per second, with : without", Goal::AtLeast(0.97), ratio, "×", how);
    let how = format!(
        "medians: {:.2} µs with, {:.2} µs without; the same runs",
        of(&|(with, _)| with.cpu_micros),
        of(&|(_, without)| without.cpu_micros)
    );
    let ratio = of(&|(with, without)| without.cpu_micros / with.cpu_micros);
    report.row("CPU of a connection, without : with", Goal::None, ratio, "×", how);
    Ok(())
}

/// Where the CPU of a connection goes: in this process, without sampling. A listener without slot
/// has no socket storage, so that its children have none.
fn parts(report: &mut Report) -> Result<()> {
    const ROUNDS: usize = 8;
    const SLICE: Duration = Duration::from_millis(700);
    let _takes_the_slot = Loop::new()?;
    let mut micros: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for case in (0..3).map(|case| (case + round) % 3) {
            let slots = [None, Some(1), Some(4096)][case];
            let open = |slots| Sources::open(&Options { slots, ..Options::default() });
            let _sources = slots.map(open).transpose()?;
            let server = Loop::new()?;
            micros[case].push(server.flat_out(SLICE)?.cpu_micros);
        }
    }
    let [without, no_slot, followed] = micros.map(|values| median(&values));
    let how = format!("{without:.2} µs without programs; both ends, whole life of a connection");
    report.row("programs alone, CPU of a connection", Goal::None, no_slot - without, "µs", how);
    let how = "what a listener with a slot costs more than one without: the socket storage";
    report.row("storage, CPU of a connection", Goal::None, followed - no_slot, "µs", how);
    Ok(())
}

fn agent_cpu(report: &mut Report, agent: &Path) -> Result<()> {
    let server = Loop::new()?;
    let running = Running::agent(agent)?;
    thread::sleep(Duration::from_secs(3));
    let (start, before) = (Instant::now(), running.cpu()?);
    let reached = server.paced(10_000, Duration::from_secs(20))?;
    let spent = running.cpu()?.saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
    let how = format!("CPU of `backlogd run` over 20 s, {reached:.0} accepts/s reached");
    report.row("agent, 10000 accepts/s", Goal::AtMost(0.5), spent * 100.0, "% of a core", how);
    Ok(())
}
