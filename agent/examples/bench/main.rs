//! Measures backlogd against its peers; started by `cargo xtask bench`, in a network namespace
//! that nobody else uses. One JSON document goes to standard output.
#![expect(
    clippy::print_stdout,
    reason = "its result, and how its children say that they are ready"
)]

mod child;
mod detect;
mod events;
mod hold;
mod host;
mod load;
mod raw;
mod report;
mod sample;
mod scrape;

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    refuse_hosts_namespace()?;
    match words[..] {
        ["sample", agent, exporter] => {
            println!("{}", sample::run(Path::new(agent), Path::new(exporter))?.to_json());
        }
        ["events", agent, scripts] => {
            println!("{}", events::run(Path::new(agent), Path::new(scripts))?.to_json());
        }
        ["events-in-guest", scripts] => {
            println!("{}", events::in_guest(Path::new(scripts))?.to_json());
        }
        ["client", per_second, seconds] => events::client(per_second.parse()?, seconds.parse()?)?,
        ["scrape", agent] => println!("{}", scrape::run(Path::new(agent))?.to_json()),
        ["hold", addr, pairs] => hold::connections(addr.parse()?, pairs.parse()?)?,
        ["host", agent, exporter] => {
            println!("{}", host::run(Path::new(agent), Path::new(exporter))?.to_json());
        }
        ["space", n, per_second] => host::space(n.parse()?, per_second.parse()?)?,
        ["listen", first_port, n] => hold::listeners(first_port.parse()?, n.parse()?)?,
        ["detect"] => println!("{}", detect::run()?.to_json()),
        ["judge"] => println!("{}", detect::judge()?),
        ["measure"] => println!("{}", sample::measure()?),
        _ => bail!("not a bench or one of its parts: {words:?}"),
    }
    Ok(())
}

/// Limits are changed and thousands of sockets opened: not where anybody else works. A namespace
/// of our own has loopback alone.
fn refuse_hosts_namespace() -> Result<()> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").context("network devices")?;
    let is_loopback = |line: &str| line.trim_start().starts_with("lo:");
    let only_loopback = devices.lines().skip(2).all(is_loopback);
    ensure!(only_loopback, "not in a network namespace of its own: it has network devices");
    Ok(())
}
