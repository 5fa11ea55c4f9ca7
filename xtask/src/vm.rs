//! `cargo xtask vm`: the kernel tests on other kernels, each in a virtual machine.
//!
//! In: the rows of `matrix.rs`; kernels from Debian, which xtask/vm/boot fetches and boots. Out: one
//! line for each machine that ended, then all as a table; all that a machine wrote is in
//! target/vm-logs. Cost: the static test program is built once; a machine takes a minute or two where
//! the processor is emulated, and 300 MiB.

mod matrix;
mod report;

use std::{
    fs, panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::{
    matrix::{ROWS, Row, Tier},
    report::{Ended, Outcome},
};
use crate::{dist::TARGET, packages, sh, tools};

pub(crate) use self::report::Report;

/// Host programs that the tests run in the guest.
const PROGRAMS: &str = "ss ip setpriv unshare";
/// Modules that nothing in the guest would load.
const MODULES: &str = "tcp_diag udp_diag veth";
/// For a whole machine, in seconds.
const TIMEOUT: &str = "1500";

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Runs this kernel alone, such as 6.1
    #[arg(long)]
    only: Option<String>,
    /// Runs this tier alone
    #[arg(long)]
    tier: Option<Tier>,
    /// How many machines run at a time
    #[arg(long, default_value_t = 2)]
    machines: usize,
}

/// Runs the machines and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    packages::install(&packages::VM)?;
    run_matrix(arguments)?.check(sh::is_ci())
}

/// Builds, runs the machines that were asked for, and prints the table.
pub(crate) fn run_matrix(arguments: &Arguments) -> Result<Report> {
    let rows: Vec<Row> = ROWS.into_iter().filter(|row| arguments.choose(row)).collect();
    let kernels = "the kernels are in xtask/src/vm/matrix.rs";
    ensure!(!rows.is_empty(), "no machine of that kernel and tier: {kernels}");
    let root = sh::root()?;
    let what = ["test", "--no-run", "--test", "kernel"];
    let files = build(&root, &what, ["kernel", "backlogd"])?;
    let machines = Machines::prepare(&root, &files)?;
    let report = machines.run(&rows, arguments.machines)?;
    println!("\n{report}");
    Ok(report)
}

impl Arguments {
    /// All machines, two at a time.
    pub(crate) fn all() -> Self {
        Self { only: None, tier: None, machines: 2 }
    }

    fn choose(&self, row: &Row) -> bool {
        self.only.as_ref().is_none_or(|kernel| kernel == row.kernel)
            && self.tier.is_none_or(|tier| tier == row.tier)
    }
}

/// Builds static programs of the agent's package; their paths, in the order of `names`.
pub(crate) fn build<const N: usize>(
    root: &Path,
    what: &[&str],
    names: [&str; N],
) -> Result<[PathBuf; N]> {
    tools::rustup_add("target", TARGET)?;
    let mut cargo = tools::cargo();
    cargo.current_dir(root).args(what).args(["--locked", "--profile", "vm"]);
    cargo.args(["--package", "backlogd", "--target", TARGET, "--target-dir"]);
    cargo.arg(root.join("target")).arg("--message-format=json-render-diagnostics");
    eprintln!("$ {}", sh::show(&cargo));
    let text = sh::output(&mut cargo)?;
    let mut paths = [const { PathBuf::new() }; N];
    for (path, name) in paths.iter_mut().zip(names) {
        let built = text.lines().find_map(|line| executable(line, name));
        *path = built.with_context(|| format!("cargo built no {name}"))?;
    }
    Ok(paths)
}

/// The path in cargo's message about the executable `name`.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_it = message.pointer("/target/name")? == name;
    is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
}

/// What all machines have in common.
struct Machines {
    boot: PathBuf,
    /// What is copied into each guest.
    folder: tempfile::TempDir,
    logs: PathBuf,
}

impl Machines {
    fn prepare(root: &Path, files: &[PathBuf; 2]) -> Result<Self> {
        let (scripts, logs) = (root.join("xtask/vm"), root.join("target/vm-logs"));
        fs::create_dir_all(&logs)?;
        let folder = tempfile::tempdir()?;
        let [kernel, backlogd] = files;
        for (from, name) in
            [(kernel, "kernel"), (backlogd, "backlogd"), (&scripts.join("run"), "run")]
        {
            fs::copy(from, folder.path().join(name))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(Self { boot: scripts.join("boot"), folder, logs })
    }

    /// Runs all, `n` at a time; reports in the order of `rows`.
    fn run(&self, rows: &[Row], n: usize) -> Result<Report> {
        let waiting = Mutex::new(rows.iter().enumerate());
        let worker = || {
            let mut ended = Vec::new();
            loop {
                let next = waiting.lock().expect("no worker panics with the lock held").next();
                let Some((i, row)) = next else { return Ok::<_, anyhow::Error>(ended) };
                ended.push((i, self.run_one(row)?));
            }
        };
        let ended = thread::scope(|scope| {
            let workers: Vec<_> = (0..n.max(1)).map(|_| scope.spawn(worker)).collect();
            let join = |worker: ScopedJoinHandle<'_, _>| worker.join();
            workers.into_iter().map(join).collect::<Vec<_>>()
        });
        let mut all = Vec::new();
        for ended in ended {
            all.extend(ended.unwrap_or_else(|why| panic::resume_unwind(why))?);
        }
        all.sort_by_key(|&(i, _)| i);
        Ok(Report(all.into_iter().map(|(_, ended)| ended).collect()))
    }

    /// Runs one; the few tests that fail run once more, by themselves.
    fn run_one(&self, row: &Row) -> Result<Ended> {
        let ended = self.boot(row, &row.name(), &row.arguments())?;
        if ended.suspects().is_empty() {
            return Ok(ended);
        }
        println!("{}: once more: {}", row.name(), ended.suspects().join(", "));
        let arguments = row.arguments_for(ended.suspects());
        let again = self.boot(row, &format!("{}-again", row.name()), &arguments)?;
        let ended = ended.after(&again);
        println!("{ended}");
        Ok(ended)
    }

    /// Runs a machine and says how it ended.
    fn boot(&self, row: &Row, name: &str, arguments: &[String]) -> Result<Ended> {
        let log = self.logs.join(name);
        let file =
            fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let start = Instant::now();
        let status = Command::new(&self.boot)
            .args([row.kernel.as_ref(), self.folder.path()])
            .args(arguments)
            .envs([("VM_ADD", PROGRAMS), ("VM_MODULES", MODULES), ("VM_TIMEOUT", TIMEOUT)])
            .env("VM_APPEND", row.kernel_arguments())
            .stdin(Stdio::null())
            .stderr(file.try_clone()?)
            .stdout(file)
            .status()
            .with_context(|| format!("cannot start {}", self.boot.display()))?;
        let text = String::from_utf8_lossy(&sh::read(&log)?).into_owned();
        let ended = Ended::new(*row, status.code(), &text, start.elapsed());
        println!("{ended}");
        if let Outcome::Failed(_) = ended.outcome {
            println!("{}", tail(&text));
        }
        Ok(ended)
    }
}

/// What a person needs of a failed run: what the failed tests said, or its end.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|&line| line == "failures:");
    lines[first.unwrap_or(lines.len().saturating_sub(25))..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_by_the_name_of_their_target() {
        let message = r#"{"target":{"name":"kernel"},"executable":"/t/kernel-1"}"#;
        assert_eq!(executable(message, "kernel"), Some("/t/kernel-1".into()));
        assert_eq!(executable(message, "backlogd"), None);
        let library = r#"{"target":{"name":"backlogd"},"executable":null}"#;
        assert_eq!(executable(library, "backlogd"), None);
        assert_eq!(executable("warning: text", "kernel"), None);
    }

    #[track_caller]
    fn check_chosen(only: Option<&str>, tier: Option<Tier>, expected: usize) {
        let arguments = Arguments { only: only.map(str::to_owned), tier, ..Arguments::all() };
        assert_eq!(ROWS.iter().filter(|row| arguments.choose(row)).count(), expected);
    }

    #[test]
    fn machines_are_chosen_by_kernel_and_tier() {
        check_chosen(None, None, ROWS.len());
        check_chosen(Some("6.1"), None, 5);
        check_chosen(Some("6.1"), Some(Tier::Kprobe), 1);
        check_chosen(Some("6"), None, 0);
        check_chosen(None, Some(Tier::Sampled), 1);
    }

    #[test]
    fn a_failure_is_shown_from_its_reasons_on() {
        assert_eq!(tail("test a ... FAILED\nfailures:\n\nwhy\n"), "failures:\n\nwhy");
        assert_eq!(tail("boot: no\n"), "boot: no");
    }
}
