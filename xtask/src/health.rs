//! `cargo xtask health`: records healthy servers, for the test that no detection fires on them.
//!
//! xtask/health/case.py plays each case in a network namespace of its own, all at once, while
//! `backlogd record` looks on. docs/health.md says what each is for; agent/tests/health.rs replays them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{packages, sh, tools};

/// All cases, in the order of docs/health.md, and whether the tracepoints of system calls are used where
/// no better hook of accept works: with them how long connections wait is known, without them is what the
/// agent does by default.
const CASES: [(&str, bool); 10] = [
    ("idle", false),
    ("nginx", true),
    ("prefork", true),
    ("deferred", false),
    ("connections", false),
    ("pool", false),
    ("activation", false),
    ("burst", true),
    ("pause", true),
    ("deploy", true),
];
/// What the cases run.
const PROGRAMS: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("python3", "python3"),
    ("nginx", "nginx-light"),
];

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Records the cases, all at once
    Record {
        /// For how long
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
        minutes: u32,
        /// The folder of the recordings; those of the same name are overwritten
        #[arg(long, default_value = "agent/tests/health")]
        into: PathBuf,
        /// Only these cases
        #[arg(value_parser = CASES.map(|(name, _)| name))]
        cases: Vec<String>,
    },
}

/// Builds and records.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Verb::Record { minutes, into, cases } = &arguments.verb;
    ensure!(sh::is_root()?, "only root can make a network namespace and load eBPF programs");
    let root = sh::root()?;
    packages::install(&PROGRAMS)?;
    let build = ["build", "--release", "--locked", "--package", "backlogd", "--bin", "backlogd"];
    sh::run(tools::cargo().current_dir(&root).args(build).args(["--target-dir", "target"]))?;
    let into = root.join(into);
    fs::create_dir_all(&into)?;
    let is_wanted =
        |(case, _): &(&str, bool)| cases.is_empty() || cases.iter().any(|wanted| wanted == case);
    let start = |(case, waits)| {
        let mut command = play(&root, case, &into);
        command.args(["--for", &format!("{minutes}m")]);
        command.args(if waits { &["--accept-tracepoints"][..] } else { &[] });
        Ok((case, command.spawn().with_context(|| sh::show(&command))?))
    };
    println!("recording for {minutes} minutes");
    let running: Result<Vec<(&str, Child)>> =
        CASES.into_iter().filter(is_wanted).map(start).collect();
    for (case, mut child) in running? {
        let status = child.wait()?;
        ensure!(status.success(), "{case}: {status}");
        let bytes = fs::metadata(file(&into, case)).context(case)?.len();
        println!("{case}: {bytes} bytes");
    }
    Ok(())
}

/// Plays a case and records it. All processes end with the one that is started here, and that ends
/// with the recorder.
fn play(root: &Path, case: &str, into: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).arg(root.join("xtask/health/case.py")).arg(case);
    command.arg(root.join("target/release/backlogd")).args(["record", "--own-netns-only"]);
    command.args(["--config", "/dev/null", "--force"]).arg(file(into, case));
    command.stdin(Stdio::null());
    command
}

fn file(into: &Path, case: &str) -> PathBuf {
    into.join(case).with_extension("backlogd")
}
