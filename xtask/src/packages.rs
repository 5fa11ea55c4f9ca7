//! Programs that others run, and the Debian packages that bring them.

use std::process::Command;

use anyhow::{Result, bail};

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
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
        command
    };
    sh::output(apt_get().arg("update"))?;
    let install = ["install", "--yes", "--no-install-recommends"];
    sh::output(apt_get().args(install).args(&packages)).map(drop)
}
