//! `cargo xtask test`: every test and check, cheap ones first.
//!
//! In: the checkout; for the kernel tests root. Out: what each step says, then one table. Fails
//! when a step failed, and with CI=true when one was skipped; no failure hides another step.
//! Outside of target/ it changes nothing but the distribution's packages.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    counts::Counts,
    deploy, ebpf, packages,
    runs::{self, Said},
    sh, tools, vm,
};

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

    /// Runs `cargo test` for `what`, with `filters` for the test programs.
    fn cargo_test(&mut self, what: &[&str], filters: &[&str]) -> Result<Outcome> {
        let test = |filters: &[&str]| {
            let mut command = self.cargo();
            command.arg("test").args(what).arg("--").args(filters);
            command
        };
        let (outcome, counts) = twice(test, filters);
        self.counts.add(counts);
        outcome
    }

    fn run_test(&mut self, command: &mut Command) -> Result<Outcome> {
        self.finish_test(runs::start(command)?)
    }

    fn finish_test(&mut self, child: Child) -> Result<Outcome> {
        let mut said = Said::default();
        let outcome = runs::finish(child, &mut said);
        self.counts.add(said.counts);
        outcome.map(|()| Outcome::Passed)
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

/// Runs `test` with `filters`. The few tests that fail run once more, by themselves: with sockets,
/// processes and deadlines, what else the machine does is a part of it.
fn twice(test: impl Fn(&[&str]) -> Command, filters: &[&str]) -> (Result<Outcome>, Counts) {
    let (mut first, mut again) = (Said::default(), Said::default());
    let outcome = runs::run(&mut test(filters), &mut first);
    let (suspects, counts) = (first.suspects(), first.counts);
    if outcome.is_ok() || suspects.is_empty() {
        return (outcome.map(|()| Outcome::Passed), counts);
    }
    println!("once more: {}", suspects.join(", "));
    let is_ignored = filters.contains(&"--ignored");
    let filters = ["--exact", "--test-threads=1"].into_iter();
    let filters = filters.chain(is_ignored.then_some("--ignored"));
    let filters: Vec<_> = filters.chain(suspects.iter().map(String::as_str)).collect();
    let outcome = runs::run(&mut test(&filters), &mut again).and_then(|()| {
        ensure!(counts.failed <= again.counts.passed, "cargo test: not all of them ran again");
        Ok(Outcome::Flaky(suspects.join(", ")))
    });
    if outcome.is_err() {
        return (outcome, counts);
    }
    let passed = counts.passed + counts.failed;
    (outcome, Counts { passed, failed: 0, ..counts })
}

/// Of two runs of which none hides the other.
fn both(one: Result<Outcome>, other: Result<Outcome>) -> Result<Outcome> {
    Ok(match (one?, other?) {
        (Outcome::Flaky(tests), Outcome::Flaky(more)) => Outcome::Flaky(format!("{tests}, {more}")),
        (Outcome::Passed, outcome) | (outcome, _) => outcome,
    })
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
    let all = session.cargo_test(&["--workspace", "--no-fail-fast"], &[]);
    let shed = session.cargo_test(&[&SHED[..], &["--no-fail-fast"]].concat(), &[]);
    both(all, shed)
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
    let what = [&SHED[..], &["--lib", "--tests", "--no-fail-fast"]].concat();
    let filters = ["--ignored", "--exact", "--test-threads=1"].into_iter();
    let left_out = SHED_LEFT_OUT.iter().flat_map(|name| ["--skip", name]);
    session.cargo_test(&what, &filters.chain(left_out).collect::<Vec<_>>())
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
    let what = ["-p", "backlogd", "--test", "kernel"];
    let filters = ["--ignored", "--test-threads=1"];
    let all = session.cargo_test(&what, &filters);
    let calls = [&filters[..], &["waits::", "failures::", "trace::"]].concat();
    let test = |filters: &[&str]| {
        let mut command = session.cargo();
        command.arg("test").args(what).arg("--").args(filters);
        command.env("BACKLOGD_TEST_TIER", "syscalls");
        command
    };
    let (calls, counts) = twice(test, &calls);
    session.counts.add(counts);
    both(all, calls)
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
    session.run_test(&mut command)
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
    session.run_test(&mut command)
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
    session.run_test(&mut command)
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
    let (mut live, mut queries) = (in_own_netns("live"), in_own_netns("prometheus"));
    let live = runs::start(&mut live)?;
    let queries = session.run_test(&mut queries);
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

    /// Tests of which `n` fail at the first run, and `again` says what the second one does.
    #[track_caller]
    fn check_twice(n: usize, again: &str, expected: Result<&str, &str>, counts: [u64; 2]) {
        let names: String = (0..n).map(|i| format!("    a::t{i}\n")).collect();
        let first = format!(
            "running 9 tests\nfailures:\n{names}\n\
             test result: FAILED. 5 passed; {n} failed; 0 filtered out"
        );
        let script =
            format!("case \"$*\" in *--exact*) {again} ;; *) echo '{first}'; exit 101 ;; esac");
        let test = |filters: &[&str]| {
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).args(filters);
            command
        };
        let (outcome, got) = twice(test, &["--ignored"]);
        let outcome = match &outcome {
            Ok(Outcome::Flaky(tests)) => Ok(tests.clone()),
            Ok(_) => Ok(String::new()),
            Err(err) => Err(err.to_string()),
        };
        let outcome = outcome.as_ref().map(String::as_str).map_err(String::as_str);
        assert_eq!((outcome, [got.passed, got.failed]), (expected, counts));
    }

    #[test]
    fn what_fails_once_is_flaky_and_what_fails_twice_has_failed() {
        let passes = "[ \"$*\" = '--exact --test-threads=1 --ignored a::t0 a::t1' ] && \
                      echo 'test result: ok. 2 passed; 0 failed; 7 filtered out'";
        check_twice(2, passes, Ok("a::t0, a::t1"), [7, 0]);
        check_twice(2, "exit 101", Err("cargo test: exit status: 101"), [5, 2]);
        let nothing = "echo 'test result: ok. 0 passed; 0 failed; 9 filtered out'";
        check_twice(2, nothing, Err("cargo test: not all of them ran again"), [5, 2]);
        // more than a few are no flake
        check_twice(4, "exit 0", Err("cargo test: exit status: 101"), [5, 4]);
    }

    #[test]
    fn of_two_runs_none_hides_the_other() {
        let flaky = |name: &str| Ok(Outcome::Flaky(name.to_owned()));
        let failed = || Err(anyhow::anyhow!("exit status: 101"));
        assert!(matches!(both(flaky("a"), flaky("b")), Ok(Outcome::Flaky(it)) if it == "a, b"));
        assert!(matches!(both(flaky("a"), Ok(Outcome::Passed)), Ok(Outcome::Flaky(_))));
        assert!(matches!(both(Ok(Outcome::Passed), flaky("a")), Ok(Outcome::Flaky(_))));
        assert!(both(failed(), flaky("a")).is_err() && both(flaky("a"), failed()).is_err());
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
