//! Builds, tests and packs backlogd: one verb, one file.
#![expect(clippy::print_stdout, reason = "a developer's command talks on standard output")]

mod dist;
mod ebpf;
mod elf;
mod sh;
mod test;
// mod test;
mod tools;

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
    /// Builds the static release binary into target/dist
    Dist,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Ebpf(arguments) => ebpf::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Dist => dist::run(),
    }
}
