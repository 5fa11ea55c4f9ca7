//! The tools that a checkout needs beside the toolchain, each of one pinned version, in target/.

use std::{env, ffi::OsString, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::sh;

/// The compiler of everything; the same as in rust-toolchain.toml, which a test checks.
pub(crate) const TOOLCHAIN: &str = "1.95.0";

/// A program that `cargo install` builds.
pub(crate) struct Tool {
    name: &'static str,
    pub(crate) version: &'static str,
    /// Where it is installed, below target/.
    folder: &'static str,
    features: &'static [&'static str],
}

/// Links eBPF with the LLVM of [`TOOLCHAIN`]: later versions look for one of the system.
pub(crate) const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.10.4",
    folder: "bpf-tools",
    features: &["--no-default-features", "--features", "rust-llvm-22"],
};

/// Checks licences and sources of the dependencies.
pub(crate) const CARGO_DENY: Tool =
    Tool { name: "cargo-deny", version: "0.20.2", folder: "tools", features: &[] };

impl Tool {
    /// Installs the tool unless it is there in this version; gives the path of its folder.
    pub(crate) fn install(&self, root: &Path) -> Result<OsString> {
        let folder = root.join("target").join(self.folder);
        let bin = folder.join("bin");
        let expected = format!("{} {}", self.name, self.version);
        let program = bin.join(self.name);
        let is_there = program.is_file()
            && sh::output(Command::new(&program).arg("--version")).is_ok_and(|v| v == expected);
        if !is_there {
            println!("{expected} is missing: cargo install takes one to three minutes");
            sh::run(
                cargo()
                    .args(["install", self.name, "--version", self.version, "--locked", "--force"])
                    .args(self.features)
                    .arg("--root")
                    .arg(&folder),
            )?;
        }
        Ok(bin.into())
    }
}

/// Cargo of the pinned toolchain, without what the outer cargo run says about its own package.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.arg(format!("+{TOOLCHAIN}"));
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

/// One line from the pinned compiler.
pub(crate) fn rustc(argument: &[&str]) -> Result<String> {
    sh::output(Command::new("rustc").arg(format!("+{TOOLCHAIN}")).args(argument))
}

/// Adds components or targets of the pinned toolchain; does nothing for those that are there.
pub(crate) fn rustup_add(kind: &str, name: &str) -> Result<()> {
    ensure!(sh::is_installed("rustup"), "rustup is missing: it installs the {kind} {name}");
    let installed = Command::new("rustup")
        .args([kind, "list", "--installed", "--toolchain", TOOLCHAIN])
        .output()?;
    if String::from_utf8_lossy(&installed.stdout).lines().any(|line| line == name) {
        return Ok(());
    }
    sh::run(Command::new("rustup").args([kind, "add", name, "--toolchain", TOOLCHAIN]))
}

/// PATH with `folder` in front.
pub(crate) fn path_with(folder: OsString) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(std::iter::once(folder.into()).chain(env::split_paths(&path)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_toolchain_toml_names_the_same_toolchain() {
        let text = sh::read(&sh::root().unwrap().join("rust-toolchain.toml")).unwrap();
        let line = format!("channel = \"{TOOLCHAIN}\"");
        assert!(String::from_utf8(text).unwrap().lines().any(|l| l == line));
    }
}
