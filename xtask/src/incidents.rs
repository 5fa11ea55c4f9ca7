//! `cargo xtask incidents`: records incidents that take their time, for the test that they are told early.
//!
//! xtask/health/incident.py plays them, but the one that concerns a whole machine: that is a guest's.
//! docs/incidents.md says what each is for; agent/tests/incidents.rs replays them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cases::{self, Case},
    packages, sh, vm,
};

/// All, how long they take, and whether calls that fail are seen by the tracepoints of system calls where no
/// better hook works.
const INCIDENTS: [(&str, u32, bool); 4] = [
    ("vanished_peers", 34, false),
    ("reset_and_lost", 18, false),
    ("files_not_closed", 18, true),
    ("ports_kept", 19, true),
];
/// The one that is played in a guest.
const HOST_FILES: &str = "host_files";
/// Snapshots are this far apart, so that the recordings stay small.
const INTERVAL: &str = "--interval=2s";
const NAMES: [&str; 5] =
    [INCIDENTS[0].0, INCIDENTS[1].0, INCIDENTS[2].0, INCIDENTS[3].0, HOST_FILES];

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Records the incidents, all at once; they take up to 34 minutes
    Record {
        /// The folder of the recordings; those of the same name are overwritten
        #[arg(long, default_value = "agent/tests/incidents")]
        into: PathBuf,
        /// Only these incidents
        #[arg(value_parser = NAMES)]
        incidents: Vec<String>,
    },
}

/// Builds and records.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Verb::Record { into, incidents } = &arguments.verb;
    let is_wanted = |name: &str| incidents.is_empty() || incidents.iter().any(|it| it == name);
    let wanted = INCIDENTS.iter().filter(|(name, ..)| is_wanted(name));
    let wanted = wanted.map(|&(name, minutes, tracepoints)| Case {
        name,
        player: "incident.py",
        minutes,
        arguments: if tracepoints { &[INTERVAL, "--accept-tracepoints"] } else { &[INTERVAL] },
    });
    let root = sh::root()?;
    let guest = is_wanted(HOST_FILES).then(|| Guest::start(&root)).transpose()?;
    cases::record(&wanted.collect::<Vec<_>>(), into)?;
    guest.map_or(Ok(()), |guest| guest.finish(&root.join(into)))
}

/// A machine whose limits nobody else needs.
struct Guest {
    machine: Child,
    /// What runs in it, and what it says.
    folder: tempfile::TempDir,
}

impl Guest {
    fn start(root: &Path) -> Result<Self> {
        packages::install(&packages::VM)?;
        let [backlogd] = vm::build(root, &["build", "--bin", "backlogd"], ["backlogd"])?;
        let folder = tempfile::tempdir()?;
        let inside = folder.path().join("inside");
        fs::create_dir(&inside)?;
        for (from, name) in
            [(&backlogd, "backlogd"), (&root.join("xtask/health/host_files"), "run")]
        {
            fs::copy(from, inside.join(name)).with_context(|| from.display().to_string())?;
        }
        let mut command = Command::new(root.join("xtask/vm/boot"));
        command.arg("6.12").arg(&inside).args([INTERVAL, "--for=20m"]).stdin(Stdio::null());
        // one CPU counts open files more exactly than two
        command.envs([("VM_CPUS", "1"), ("VM_ADD", "setpriv"), ("VM_TIMEOUT", "1800")]);
        command.stdout(fs::File::create(folder.path().join("said"))?);
        println!("{HOST_FILES}: recording for 20 minutes, in a guest");
        Ok(Self { machine: command.spawn().with_context(|| sh::show(&command))?, folder })
    }

    /// Waits until it ends, and takes the recording from what it said.
    fn finish(mut self, into: &Path) -> Result<()> {
        let status = self.machine.wait()?;
        let said = self.folder.path().join("said");
        let text = fs::read_to_string(&said)?;
        let recording = text.split_once("\nrecording:\n").map(|(_, recording)| recording);
        let recording = recording.filter(|_| status.success());
        let recording = recording.with_context(|| format!("{HOST_FILES}: {status}: {text}"))?;
        fs::write(&said, recording)?;
        let mut decode = Command::new("base64");
        let decoded = decode.arg("--decode").arg(&said).output().context("base64")?;
        ensure!(decoded.status.success(), "{}: {}", sh::show(&decode), decoded.status);
        fs::create_dir_all(into)?;
        fs::write(cases::file(into, HOST_FILES), &decoded.stdout)?;
        println!("{HOST_FILES}: {} bytes", decoded.stdout.len());
        Ok(())
    }
}
