//! Plays cases in network namespaces of their own, all at once, while `backlogd record` looks on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{packages, sh, tools};

/// What players below xtask/health run.
const PROGRAMS: [(&str, &str); 3] =
    [("ip", "iproute2"), ("unshare", "util-linux"), ("python3", "python3")];

/// One recording.
pub(crate) struct Case {
    /// Of the function that plays it, and of the recording.
    pub(crate) name: &'static str,
    /// The file below xtask/health that has this function.
    pub(crate) player: &'static str,
    pub(crate) minutes: u32,
    /// More of `backlogd record`.
    pub(crate) arguments: &'static [&'static str],
}

/// Builds the agent, plays the cases and records them into a folder.
pub(crate) fn record(cases: &[Case], into: &Path) -> Result<()> {
    ensure!(sh::is_root()?, "only root can make a network namespace and load eBPF programs");
    let root = sh::root()?;
    packages::install(&PROGRAMS)?;
    let build = ["build", "--release", "--locked", "--package", "backlogd", "--bin", "backlogd"];
    sh::run(tools::cargo().current_dir(&root).args(build).args(["--target-dir", "target"]))?;
    let into = root.join(into);
    fs::create_dir_all(&into)?;
    let start = |case| {
        let mut command = play(&root, case, &into);
        println!("{}: recording for {} minutes", case.name, case.minutes);
        Ok((case, command.spawn().with_context(|| sh::show(&command))?))
    };
    let running: Result<Vec<(&Case, Child)>> = cases.iter().map(start).collect();
    for (case, mut child) in running? {
        let status = child.wait()?;
        ensure!(status.success(), "{}: {status}", case.name);
        let bytes = fs::metadata(file(&into, case.name)).context(case.name)?.len();
        println!("{}: {bytes} bytes", case.name);
    }
    Ok(())
}

/// Plays a case and records it. All processes end with the one that is started here, and that ends
/// with the recorder.
fn play(root: &Path, case: &Case, into: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).arg(root.join("xtask/health").join(case.player));
    command.arg(case.name).arg(root.join("target/release/backlogd"));
    command.args(["record", "--own-netns-only", "--config", "/dev/null", "--force"]);
    command.args(["--for", &format!("{}m", case.minutes)]).args(case.arguments);
    command.arg(file(into, case.name)).stdin(Stdio::null());
    command
}

/// The recording of a case.
pub(crate) fn file(into: &Path, case: &str) -> PathBuf {
    into.join(case).with_extension("backlogd")
}
