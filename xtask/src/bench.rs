//! `cargo xtask bench sample|events|scrape|host|detect|fleet|shed`: what backlogd costs, against the
//! real peers in the same run.
//!
//! The measuring is in agent/examples/bench and shed/examples/cost, each a program of the crate that
//! it measures; here it is built, given a network namespace, and its numbers are shown. Fails when a
//! goal is missed. No service is installed, and all processes end with it; what stays are the packages
//! of the peers of `events`.

mod fleet;
mod guest;

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::{packages, sh, tools};

/// A bench that takes longer is stuck: all its processes are ended.
const SECONDS_AT_MOST: u32 = 540;
/// Debian's package of the peer.
const EXPORTER: &str = "prometheus-node-exporter";
/// The peer's script.
const SCRIPTS: &str = "agent/examples/bench/events";

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    bench: Bench,
    /// Prints the numbers as JSON, not as a table
    #[arg(long)]
    json: bool,
    /// Measures `events` on this kernel, such as 6.12, in a virtual machine: each tier, all peers
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// One sample, beside 0 to 100,000 established connections
    Sample,
    /// What the eBPF programs cost a connection, and connections the agent
    Events,
    /// One scrape of 1,000 listeners
    Scrape,
    /// A host with 250 network namespaces
    Host,
    /// All detections over 1,000 listeners, and replays
    Detect,
    /// The fleet's dashboard and the rules in a Prometheus with 1,000 hosts of 200 listeners
    Fleet,
    /// Connections that are shed, against HAProxy and nginx
    Shed,
}

/// Builds, measures and shows.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = sh::root()?;
    let mut document = match (&arguments.vm, arguments.bench) {
        (Some(kernel), Bench::Events) => guest::measure(&root, kernel)?,
        (Some(_), _) => bail!("--vm is for `bench events` alone"),
        (None, bench) => measure(&root, bench)?,
    };
    if document["machine"].is_null() {
        document["machine"] = machine()?.into();
    }
    if arguments.json {
        println!("{document:#}");
    } else {
        print!("{}", table(&document));
    }
    let missed = rows(&document).filter(|row| row["met"] == false).count();
    if 0 < missed {
        bail!("{missed} goals missed");
    }
    Ok(())
}

/// On this machine.
fn measure(root: &Path, bench: Bench) -> Result<Value> {
    let release = root.join("target/release");
    let agent = release.join("backlogd");
    let exporter = || packages::unpacked(root, EXPORTER);
    let (package, example, arguments) = match bench {
        Bench::Fleet => return fleet::measure(root),
        Bench::Sample => ("backlogd", "bench", vec!["sample".into(), agent, exporter()?]),
        Bench::Events => {
            packages::install(&packages::PEERS)?;
            ("backlogd", "bench", vec!["events".into(), agent, root.join(SCRIPTS)])
        }
        Bench::Scrape => ("backlogd", "bench", vec!["scrape".into(), agent]),
        Bench::Detect => ("backlogd", "bench", vec!["detect".into()]),
        Bench::Host => ("backlogd", "bench", vec!["host".into(), agent, exporter()?]),
        Bench::Shed => ("backlogd-shed", "cost", vec!["run".into(), packages::shedders(root)?]),
    };
    ensure!(sh::is_root()?, "only root can make a network namespace and load eBPF programs");
    let build = ["build", "--release", "--locked", "--bins", "--target-dir", "target"];
    let what = ["--package", package, "--example", example];
    sh::output(tools::cargo().current_dir(root).args(build).args(what))?;
    let mut command = in_own_namespace(&release.join("examples").join(example));
    Ok(serde_json::from_str(&sh::output(command.args(arguments))?)?)
}

/// `program` in a network namespace with loopback alone, where it and nobody else sees tracefs, which
/// bpftrace needs; it and its children end in time.
fn in_own_namespace(program: &Path) -> Command {
    const PREPARE: &str = "ip link set lo up && \
                           mount -t tracefs tracefs /sys/kernel/tracing && exec \"$0\" \"$@\"";
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &SECONDS_AT_MOST.to_string(), "unshare", "--net", "--mount"]);
    command.args(["sh", "-c", PREPARE]).arg(program);
    command
}

/// Processor, cores, memory and kernel.
fn machine() -> Result<String> {
    let (cpu, memory) =
        (fs::read_to_string("/proc/cpuinfo")?, fs::read_to_string("/proc/meminfo")?);
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kib: u64 = value(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers = kernel.split('-').next().unwrap_or(&kernel).trim();
    Ok(format!(
        "{}, {cores} cores, {} GiB, Linux {numbers}",
        value(&cpu, "model name"),
        kib.div_ceil(1 << 20)
    ))
}

fn rows(document: &Value) -> impl Iterator<Item = &Value> {
    document["rows"].as_array().into_iter().flatten()
}

/// As it stands in docs/BENCHMARKS.md.
fn table(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut table = format!("Machine: {}\n\n", text(&document["machine"]));
    table += "| what | goal | measured | how |\n|---|---|---|---|\n";
    for row in rows(document) {
        let unit = text(&row["unit"]);
        let goal = match (&row["goal"]["at_most"], &row["goal"]["at_least"]) {
            (Value::Number(limit), _) => format!("≤ {limit} {unit}"),
            (_, Value::Number(limit)) => format!("≥ {limit} {unit}"),
            _ => String::new(),
        };
        let missed = if row["met"] == false { " (missed)" } else { "" };
        let measured = row["measured"].as_f64().map_or("–".into(), number);
        let (what, how) = (text(&row["what"]), text(&row["how"]));
        table += &format!("| {what} | {goal} | {measured} {unit}{missed} | {how} |\n");
    }
    table
}

/// Three digits that count.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missed_goal_says_so() {
        let row = json!({
            "what": "a scrape", "goal": { "at_most": 15.0 }, "measured": 16.24, "unit": "ms",
            "met": false, "how": "mean of 50",
        });
        let document = json!({ "machine": "1 core", "rows": [row] });
        let expected = "| a scrape | ≤ 15.0 ms | 16.2 ms (missed) | mean of 50 |";
        assert_eq!(table(&document).lines().last(), Some(expected));
    }

    #[test]
    fn what_cannot_be_measured_is_no_number() {
        let row = json!({
            "what": "a peer", "goal": null, "measured": null, "unit": "", "met": null, "how": "why",
        });
        let document = json!({ "machine": "1 core", "rows": [row] });
        assert_eq!(table(&document).lines().last(), Some("| a peer |  | –  | why |"));
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let got = [1234.5, 12.345, 1.2345, 0.12345].map(number);
        assert_eq!(got, ["1234", "12.3", "1.23", "0.123"]);
    }
}
