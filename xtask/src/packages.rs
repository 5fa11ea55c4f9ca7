//! Programs that others run, and the Debian packages that bring them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail, ensure};

use crate::sh;

/// Those that the tests run.
pub(crate) const TESTS: [(&str, &str); 4] =
    [("ss", "iproute2"), ("ip", "iproute2"), ("mount", "mount"), ("setpriv", "util-linux")];

/// Those that xtask/vm/boot runs, or puts into the guest.
pub(crate) const VM: [(&str, &str); 8] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("ss", "iproute2"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
];

/// Those that `cargo xtask bench events` measures against.
pub(crate) const PEERS: [(&str, &str); 2] = [("tcplife", "libbpf-tools"), ("bpftrace", "bpftrace")];

/// Those that check `deploy/`.
pub(crate) const DEPLOY: [(&str, &str); 5] = [
    ("systemd-analyze", "systemd"),
    ("systemd-socket-activate", "systemd"),
    ("systemd-sysusers", "systemd"),
    ("setpriv", "util-linux"),
    ("python3", "python3"),
];

/// A receiver of alerts, and Debian's package of it.
pub(crate) const ALERTMANAGER: &str = "prometheus-alertmanager";

/// What evaluates rules: `promtool` of it.
pub(crate) const PROMETHEUS: &str = "prometheus";

/// Installs the packages of those `programs` that are missing.
pub(crate) fn install(programs: &[(&str, &str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| !sh::is_installed(program));
    let mut packages: Vec<&str> = missing.map(|&(_, package)| package).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        eprintln!("{} programs, all installed", programs.len());
        return Ok(());
    }
    let wanted = packages.join(" ");
    if !sh::is_root()? || !sh::is_installed("apt-get") {
        bail!("missing, and only root installs them with apt-get: {wanted}");
    }
    eprintln!("missing, to be installed: {wanted}");
    sh::output(apt_get().arg("update"))?;
    let install = ["install", "--yes", "--no-install-recommends"];
    sh::output(apt_get().args(install).args(&packages)).map(drop)
}

/// The program `name` of Debian's package `name`: the installed one, or the package's unpacked below
/// target/, since installing it would start a service.
pub(crate) fn unpacked(root: &Path, name: &str) -> Result<PathBuf> {
    let folder = root.join("target/packages").join(name);
    let unpacked = folder.join("usr/bin").join(name);
    let installed = Path::new("/usr/bin").join(name);
    if let Some(there) = [installed, unpacked.clone()].into_iter().find(|path| path.is_file()) {
        return Ok(there);
    }
    unpack(&folder, &[name])?;
    ensure!(unpacked.is_file(), "{name}: no {}", unpacked.display());
    Ok(unpacked)
}

/// What `cargo xtask bench shed` measures against, and the libraries that not every machine has.
const SHEDDERS: [&str; 6] = [
    "haproxy",
    "liblua5.3-0",
    "libopentracing-c-wrapper0",
    "libopentracing1",
    "nginx",
    "libnginx-mod-stream",
];

/// The folder below target/ where [`SHEDDERS`] are unpacked.
pub(crate) fn shedders(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/packages/shedders");
    let needed =
        ["usr/sbin/haproxy", "usr/sbin/nginx", "usr/lib/nginx/modules/ngx_stream_module.so"];
    let are_there = || needed.iter().all(|file| folder.join(file).is_file());
    if !are_there() {
        unpack(&folder, &SHEDDERS)?;
        ensure!(are_there(), "{}: expected {}", folder.display(), needed.join(", "));
    }
    Ok(folder)
}

/// Brings Debian's packages and unpacks them in `folder`.
fn unpack(folder: &Path, names: &[&str]) -> Result<()> {
    let wanted = names.join(" ");
    ensure!(sh::is_installed("apt-get"), "missing, and only apt-get brings it: {wanted}");
    fs::create_dir_all(folder)?;
    sh::output(apt_get().arg("update"))?;
    // as the user `_apt` it may not write here
    let download = ["download", "--option", "APT::Sandbox::User=root"];
    sh::output(apt_get().current_dir(folder).args(download).args(names))?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let files = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    for package in files.filter(is_package) {
        sh::output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    command
}
