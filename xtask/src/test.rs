//! `cargo xtask test`: every test and check, cheap ones first.
//!
//! In: the checkout; for the kernel tests root. Out: what each step says, then one table. Fails
//! when a step failed, and with CI=true when one was skipped; no failure hides another step.
//! Outside of target/ it changes nothing but the distribution's packages.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{counts::Counts, deploy, ebpf, packages, sh, tools, vm};

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leaves out the tests that need root
    #[arg(long)]
    no_kernel: bool,
    /// Checks licences and sources of the dependencies, as CI=true does
    #[arg(long)]
    deny: bool,
}

/// How a step ended that did not fail.
enum Outcome {
    Passed,
    /// Passed at the second try: what did not at the first.
    Flaky(String),
    /// Not run, and why.
    Skipped(String),
}

/// One line of the table.
struct Row {
    name: &'static str,
    outcome: Result<Outcome>,
    took: Duration,
}

/// The steps so far.
struct Session {
    root: PathBuf,
    is_ci: bool,
    rows: Vec<Row>,
    counts: Counts,
}

/// Runs all steps and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let is_ci = sh::is_ci();
    let counts = Counts::default();
    let mut session = Session { root: sh::root()?, is_ci, rows: Vec::new(), counts };
    session.step("packages", |session| packages(session));
    session.step("format", format);
    session.step("clippy", clippy);
    session.step("tests", tests);
    session.step("shed", shed);
    session.step("kernel tests", |session| kernel(session, arguments.no_kernel));
    session.step("alertmanager", alertmanager);
    session.step("deploy", deploy);
    session.step("rules", rules);
    session.step("dashboards", dashboards);
    session.step("other kernels", |session| other_kernels(session, arguments.no_kernel));
    session.step("ebpf object", |_| ebpf::check_committed().map(|()| Outcome::Passed));
    session.step("licences", |session| deny(session, arguments.deny));
    session.report()
}

impl Session {
    fn step(&mut self, name: &'static str, action: impl FnOnce(&mut Self) -> Result<Outcome>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = action(self);
        let row = Row { name, outcome, took: start.elapsed() };
        println!("=== {}", row.line());
        self.rows.push(row);
    }

    /// The cargo that runs this, in the workspace's folder.
    fn cargo(&self) -> Command {
        let mut cargo =
            Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        cargo.current_dir(&self.root);
        cargo
    }

    /// A program of Debian, or why the step is skipped without it.
    fn unpacked(&self, package: &str) -> Result<Result<PathBuf, String>> {
        match packages::unpacked(&self.root, package) {
            Ok(program) => Ok(Ok(program)),
            Err(err) if !self.is_ci => Ok(Err(format!("{err:#}"))),
            Err(err) => Err(err),
        }
    }

    /// Runs `cargo test`, showing what it says and adding up its counts.
    fn cargo_test(&mut self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = self.cargo();
        command.arg("test").args(arguments);
        self.run_test(command)
    }

    fn run_test(&mut self, mut command: Command) -> Result<Outcome> {
        let child = start_test(&mut command)?;
        self.finish_test(child)
    }

    /// Shows what a run of `cargo test` says, from its beginning on, and adds up its counts.
    fn finish_test(&mut self, mut child: Child) -> Result<Outcome> {
        for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
            let line = line?;
            println!("{line}");
            if let Some(counts) = Counts::parse(&line) {
                self.counts.add(counts);
            }
        }
        let status = child.wait()?;
        ensure!(status.success(), "cargo test: {status}");
        Ok(Outcome::Passed)
    }

    /// The table, then the counts on the last line.
    fn report(&self) -> Result<()> {
        println!("\n=== all steps");
        for row in &self.rows {
            println!("{}", row.line());
        }
        println!("{} passed, {} failed", self.counts.passed, self.counts.failed);
        let bad = self.rows.iter().filter(|row| match row.outcome {
            Ok(Outcome::Passed | Outcome::Flaky(_)) => false,
            Ok(Outcome::Skipped(_)) => self.is_ci,
            Err(_) => true,
        });
        let bad: Vec<&str> = bad.map(|row| row.name).collect();
        let rule = if self.is_ci { " (with CI=true a skip is an error)" } else { "" };
        ensure!(bad.is_empty(), "not passed: {}{rule}", bad.join(", "));
        Ok(())
    }
}

impl Row {
    fn line(&self) -> String {
        let (word, why) = match &self.outcome {
            Ok(Outcome::Passed) => ("passed", String::new()),
            Ok(Outcome::Flaky(tests)) => ("flaky", tests.clone()),
            Ok(Outcome::Skipped(why)) => ("skipped", why.clone()),
            Err(err) => ("failed", format!("{err:#}")),
        };
        let took = self.took.as_secs_f64();
        format!("{:<13} {word:<8} {took:>6.1} s  {why}", self.name).trim_end().to_owned()
    }
}

fn start_test(command: &mut Command) -> Result<Child> {
    println!("$ {}", sh::show(command));
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

/// Installs what the steps run.
fn packages(session: &Session) -> Result<Outcome> {
    packages::install(&packages::TESTS)?;
    if session.is_ci {
        packages::install(&packages::VM)?;
    }
    Ok(Outcome::Passed)
}

/// The workspace and the eBPF crate, which is none of its members.
fn format(session: &mut Session) -> Result<Outcome> {
    sh::run(session.cargo().args(["fmt", "--all", "--check"]))?;
    let ebpf = ["fmt", "--manifest-path", "ebpf/Cargo.toml", "--check"];
    sh::run(session.cargo().args(ebpf))?;
    Ok(Outcome::Passed)
}

fn clippy(session: &mut Session) -> Result<Outcome> {
    let all = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    sh::run(session.cargo().args(all))?;
    let clippy = ["clippy", "--all-targets"];
    sh::run(session.cargo().args(clippy).args(SHED).args(["--", "-D", "warnings"]))?;
    Ok(Outcome::Passed)
}

/// The crate with features that nobody in the workspace turns on.
const SHED: [&str; 3] = ["-p", "backlogd-shed", "--all-features"];

fn tests(session: &mut Session) -> Result<Outcome> {
    let all = session.cargo_test(&["--workspace", "--no-fail-fast"]);
    let shed = session.cargo_test(&[&SHED[..], &["--no-fail-fast"]].concat());
    // no failure hides the other run
    all.and(shed)
}

/// What is ignored there and is not for this step: programs that tests start, and a measurement that
/// needs a release build and an idle machine.
const SHED_LEFT_OUT: [&str; 5] = [
    "clients",
    "inheritor",
    "server",
    "starving",
    "deadline::ticker::tests::a_hundred_thousand_connections_at_rest_cost_a_hundredth_of_a_core",
];

/// The slow tests of the crate, and those that make network namespaces, one after the other, as most
/// are under load: two minutes.
fn shed(session: &mut Session) -> Result<Outcome> {
    if !sh::is_root()? {
        return Ok(Outcome::Skipped("not root".into()));
    }
    let run = ["--lib", "--tests", "--no-fail-fast", "--", "--ignored", "--exact"];
    let left_out = SHED_LEFT_OUT.iter().flat_map(|name| ["--skip", name]);
    let arguments = SHED.into_iter().chain(run).chain(["--test-threads=1"]).chain(left_out);
    let arguments = arguments.collect::<Vec<_>>();
    // they are about races: one that is lost now and then is named, and does not hide the rest
    let Err(first) = session.cargo_test(&arguments) else { return Ok(Outcome::Passed) };
    session.cargo_test(&arguments)?;
    Ok(Outcome::Flaky(format!("{first:#}")))
}

/// The tests that attach programs and make network namespaces, one after the other; then those of
/// the tracepoints of system calls, which are off unless asked for.
fn kernel(session: &mut Session, left_out: bool) -> Result<Outcome> {
    if left_out {
        return Ok(Outcome::Skipped("--no-kernel".into()));
    }
    if !sh::is_root()? {
        return Ok(Outcome::Skipped("not root".into()));
    }
    let arguments = ["-p", "backlogd", "--test", "kernel", "--", "--ignored", "--test-threads=1"];
    let all = session.cargo_test(&arguments);
    let mut command = session.cargo();
    command.arg("test").args(arguments).args(["waits::", "failures::", "trace::"]);
    command.env("BACKLOGD_TEST_TIER", "syscalls");
    // no failure hides another run
    session.run_test(command).and(all)
}

/// Debian's Alertmanager takes what the agent tells it.
fn alertmanager(session: &mut Session) -> Result<Outcome> {
    if !sh::is_root()? {
        return Ok(Outcome::Skipped("not root".into()));
    }
    let program = match session.unpacked(packages::ALERTMANAGER)? {
        Ok(program) => program,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let mut command = session.cargo();
    command.args(["test", "-p", "backlogd", "--test", "alertmanager", "--", "--ignored"]);
    command.env("BACKLOGD_ALERTMANAGER", program);
    session.run_test(command)
}

/// Units, objects of Kubernetes and the image are what they are made for, and the agent works so.
fn deploy(session: &mut Session) -> Result<Outcome> {
    deploy::check(&session.root)?;
    if !sh::is_root()? {
        return Ok(Outcome::Skipped("not root".into()));
    }
    let [program] = vm::build(&session.root, &["build", "--bin", "backlogd"], ["backlogd"])?;
    let mut command = session.cargo();
    command.args(["test", "-p", "backlogd", "--test", "deploy", "--", "--ignored"]);
    command.env("BACKLOGD_STATIC", program);
    session.run_test(command)
}

/// Debian's Prometheus and Alertmanager, or why they cannot be had.
fn monitoring(session: &Session) -> Result<Result<(PathBuf, PathBuf), String>> {
    let prometheus = session.unpacked(packages::PROMETHEUS)?;
    let alertmanager = session.unpacked(packages::ALERTMANAGER)?;
    Ok(prometheus.and_then(|prometheus| Ok((prometheus, alertmanager?))))
}

/// Prometheus and Alertmanager take the files of dashboards/, and the rules raise what they are tested
/// for: series by hand, recorded incidents, healthy servers.
fn rules(session: &mut Session) -> Result<Outcome> {
    let (prometheus, alertmanager) = match monitoring(session)? {
        Ok(programs) => programs,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let (promtool, amtool) =
        (prometheus.with_file_name("promtool"), alertmanager.with_file_name("amtool"));
    let folder = session.root.join("dashboards");
    let check = ["check", "rules", "alerts.yaml", "recording.yaml"];
    sh::run(Command::new(&promtool).current_dir(&folder).args(check))?;
    let config = ["check", "config", "provisioning/prometheus.yaml"];
    sh::run(Command::new(&promtool).current_dir(&folder).args(config))?;
    let test = ["test", "rules", "alerts_test.yaml"];
    sh::run(Command::new(&promtool).current_dir(&folder).args(test))?;
    let config = ["check-config", "alertmanager.yaml"];
    sh::run(Command::new(amtool).current_dir(&folder).args(config))?;
    let mut command = session.cargo();
    command.args(["test", "-p", "backlogd", "--test", "promtool", "--", "--ignored"]);
    command.env("BACKLOGD_PROMTOOL", promtool);
    session.run_test(command)
}

/// Every query of dashboards and rules is asked of a Prometheus that scrapes the agent under load, and at
/// the same time, elsewhere, incidents are told by it and by the agent.
fn dashboards(session: &mut Session) -> Result<Outcome> {
    if !sh::is_root()? {
        return Ok(Outcome::Skipped("not root".into()));
    }
    let (prometheus, alertmanager) = match monitoring(session)? {
        Ok(programs) => programs,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let in_own_netns = |test: &str| {
        let mut command = Command::new("unshare");
        let own = "ip link set lo up && mount -t tracefs tracefs /sys/kernel/tracing && \
                   exec \"$0\" \"$@\"";
        command.current_dir(&session.root).args(["--net", "--mount", "sh", "-c", own]);
        command.arg(session.cargo().get_program());
        command.args(["test", "-p", "backlogd", "--test", test, "--", "--ignored"]);
        command.env("BACKLOGD_PROMETHEUS", &prometheus);
        command.env("BACKLOGD_ALERTMANAGER", &alertmanager);
        command
    };
    let (mut live, queries) = (in_own_netns("live"), in_own_netns("prometheus"));
    let live = start_test(&mut live)?;
    let queries = session.run_test(queries);
    // no failure hides the other run
    session.finish_test(live).and(queries)
}

/// The same tests on other kernels, in virtual machines.
fn other_kernels(session: &mut Session, left_out: bool) -> Result<Outcome> {
    if left_out {
        return Ok(Outcome::Skipped("--no-kernel".into()));
    }
    if !session.is_ci {
        return Ok(Outcome::Skipped("only with CI=true, or by cargo xtask vm".into()));
    }
    let report = vm::run_matrix(&vm::Arguments::all())?;
    session.counts.add(report.counts());
    report.check(session.is_ci)?;
    let flaky = report.flaky();
    Ok(if flaky.is_empty() { Outcome::Passed } else { Outcome::Flaky(flaky.join("; ")) })
}

/// Licences, sources and doubled versions, of the workspace and of the eBPF crate.
fn deny(session: &mut Session, wanted: bool) -> Result<Outcome> {
    if !wanted && !session.is_ci {
        let why = "only with CI=true or --deny, as cargo-deny takes minutes to install";
        return Ok(Outcome::Skipped(why.into()));
    }
    let path = tools::path_with(tools::CARGO_DENY.install(&session.root)?)?;
    for manifest in ["Cargo.toml", "ebpf/Cargo.toml"] {
        let mut deny = session.cargo();
        deny.env("PATH", &path).args(["deny", "--config", "deny.toml"]);
        deny.args(["--manifest-path", manifest, "check", "licenses", "bans", "sources"]);
        sh::run(&mut deny)?;
    }
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_step_says_why() {
        let outcome = Ok(Outcome::Skipped("not root".into()));
        let row = Row { name: "kernel tests", outcome, took: Duration::from_millis(40) };
        assert_eq!(row.line(), "kernel tests  skipped     0.0 s  not root");
    }

    #[test]
    fn a_failed_step_says_what_happened() {
        let row = Row {
            name: "clippy",
            outcome: Err(anyhow::anyhow!("exit status: 101")),
            took: Duration::ZERO,
        };
        assert_eq!(row.line(), "clippy        failed      0.0 s  exit status: 101");
    }

    #[test]
    fn a_skip_is_an_error_in_ci_only() {
        for is_ci in [false, true] {
            let outcome = Ok(Outcome::Skipped("--no-kernel".into()));
            let rows = vec![Row { name: "kernel tests", outcome, took: Duration::ZERO }];
            let session = Session { root: PathBuf::new(), is_ci, rows, counts: Counts::default() };
            assert_eq!(session.report().is_err(), is_ci);
        }
    }
}
