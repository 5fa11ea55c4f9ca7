//! Builds, tests and packs backlogd: one verb, one file.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's command: what it says is for a person"
)]

mod bench;
mod cases;
mod counts;
mod dashboards;
mod deploy;
mod dist;
mod ebpf;
mod elf;
mod health;
mod incidents;
mod packages;
mod runs;
mod sh;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The developer's commands of backlogd.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the eBPF object and writes it to ebpf/prebuilt
    Ebpf(ebpf::Arguments),
    /// Runs all tests and checks
    Test(test::Arguments),
    /// Runs the kernel tests on other kernels, in virtual machines
    Vm(vm::Arguments),
    /// Checks units, objects of Kubernetes and the Containerfile
    Deploy,
    /// Builds the static release binary into target/dist
    Dist,
    /// Makes dashboards and rules for Grafana, Prometheus and Kubernetes
    Dashboards(dashboards::Arguments),
    /// Measures what the agent costs, against its peers
    Bench(bench::Arguments),
    /// Records healthy servers, for the test that no detection fires on them
    Health(health::Arguments),
    /// Records incidents that take their time, for the test that they are told early
    Incidents(incidents::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Ebpf(arguments) => ebpf::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Vm(arguments) => vm::run(&arguments),
        Verb::Deploy => deploy::run(),
        Verb::Dist => dist::run(),
        Verb::Dashboards(arguments) => dashboards::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Health(arguments) => health::run(&arguments),
        Verb::Incidents(arguments) => incidents::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}
