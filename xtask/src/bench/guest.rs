//! `bench events` on another kernel, in a virtual machine.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::SCRIPTS;
use crate::{packages, sh, vm};

/// The peers, which are copied into the guest: bpftrace comes with 200 MiB of libraries.
const PROGRAMS: &str = "bpftrace tcplife tcpsynbl tcpaccept.bt";
const MEMORY_MIB: &str = "2048";
/// For the whole machine, in seconds.
const TIMEOUT: &str = "900";
const RUN: &str = "#!/bin/sh\nexec ./bench events-in-guest .\n";

/// Builds, boots and measures.
pub(super) fn measure(root: &Path, kernel: &str) -> Result<Value> {
    packages::install(&packages::VM)?;
    packages::install(&packages::PEERS)?;
    let [bench] = vm::build(root, &["build", "--example", "bench"], ["bench"])?;
    let folder = tempfile::tempdir()?;
    let run = folder.path().join("run");
    sh::write(&run, RUN.as_bytes())?;
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
    fs::copy(bench, folder.path().join("bench"))?;
    fs::create_dir_all(folder.path().join("include/sys"))?;
    for file in ["connections.bt", "include/sys/socket.h"] {
        let from = root.join(SCRIPTS).join(file);
        fs::copy(&from, folder.path().join(file))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let mut command = Command::new(root.join("xtask/vm/boot"));
    command.arg(kernel).arg(folder.path());
    command.envs([("VM_ADD", PROGRAMS), ("VM_MEM", MEMORY_MIB), ("VM_TIMEOUT", TIMEOUT)]);
    let said = sh::output(&mut command)?;
    let json = said.lines().rfind(|line| line.starts_with('{'));
    let mut document: Value =
        serde_json::from_str(json.with_context(|| format!("no numbers in {said:?}"))?)?;
    let machine = super::machine()?;
    document["machine"] = format!("a virtual machine with Linux {kernel} on {machine}").into();
    Ok(document)
}
