//! Measures what a shed connection costs against HAProxy and nginx, and an admitted one against a
//! bare listener; started by `cargo xtask bench shed`, in a network namespace that nobody else
//! uses.
//!
//! Servers run on core 0, the load, which is this process, on core 1. One JSON document goes to
//! standard output.
#![expect(clippy::print_stdout, reason = "its result, and what its attackers saw")]

mod admitted;
mod attack;
mod crowd;
mod load;
mod peers;
mod process;
mod report;
mod rounds;
mod server;
mod shed;
mod victim;

use std::{
    env, fs,
    path::Path,
    process::{self as own, Command},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::{self, Runtime};

use crate::{peers::Peers, report::Report};

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["run", packages, ref parts @ ..] => {
            println!("{}", run(Path::new(packages), parts)?.to_json());
        }
        ["serve", kind, port] => server::run(kind, port.parse()?)?,
        ["attack", address] => attack::be(address.parse()?)?,
        ["crowd", address] => crowd::be(address.parse()?)?,
        _ => bail!("not a part of this bench: {words:?}"),
    }
    Ok(())
}

/// A runtime of one thread, for a server or the load.
fn runtime() -> Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
}

/// All, or those `parts` that are named.
fn run(packages: &Path, parts: &[&str]) -> Result<Report> {
    prepare()?;
    let peers = Peers::new(packages)?;
    let is_wanted = |part| parts.is_empty() || parts.contains(&part);
    let (runtime, mut report) = (runtime()?, Report::new("shed"));
    runtime.block_on(async {
        if is_wanted("shed") {
            shed::run(&peers, &mut report).await?;
        }
        if is_wanted("admitted") {
            admitted::run(&mut report).await?;
        }
        if is_wanted("victim") {
            victim::run(&peers, &mut report).await?;
        }
        anyhow::Ok(())
    })?;
    if is_wanted("crowd") {
        crowd::run(&mut report)?;
    }
    Ok(report)
}

/// Limits are changed and thousands of sockets opened: not where anybody else works. A namespace
/// of our own has loopback alone.
fn prepare() -> Result<()> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").context("network devices")?;
    let is_loopback = |line: &str| line.trim_start().starts_with("lo:");
    let only_loopback = devices.lines().skip(2).all(is_loopback);
    ensure!(only_loopback, "not in a network namespace of its own: it has network devices");
    let id = own::id().to_string();
    let moved = Command::new("taskset").args(["--cpu-list", "--pid", "1", &id]).output();
    ensure!(moved.context("cannot start taskset")?.status.success(), "there is no core 1");
    // ports do not run out
    for (key, value) in [
        ("ipv4/tcp_max_tw_buckets", "0"),
        ("ipv4/ip_local_port_range", "20000 65535"),
        ("core/somaxconn", "4096"),
    ] {
        let path = format!("/proc/sys/net/{key}");
        fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}
