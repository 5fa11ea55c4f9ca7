//! `cargo xtask dist`: the static release binary in target/dist, with its checksum.
//!
//! musl, because the agent must run on any distribution; no musl-gcc, because the C of
//! ring, the only one, needs no libc (.cargo/config.toml).

use std::{fs, process::Command};

use anyhow::{Result, ensure};

use crate::{elf, sh, tools};

/// What the static binaries are built for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";
const SIZE_LIMIT: usize = 10 << 20;
/// Entry of a `.dynamic` section: a shared library that is needed to start.
const DT_NEEDED: u64 = 1;

/// Builds, checks and places the binary.
pub(crate) fn run() -> Result<()> {
    let root = sh::root()?;
    tools::rustup_add("target", TARGET)?;
    let build = ["build", "--release", "--locked", "--package", "backlogd", "--bin", "backlogd"];
    let target = root.join("target");
    sh::run(
        tools::cargo()
            .current_dir(&root)
            .args(build)
            .args(["--target", TARGET, "--target-dir"])
            .arg(&target),
    )?;

    let binary = sh::read(&target.join(TARGET).join("release/backlogd"))?;
    check(&binary)?;

    let dist = target.join("dist");
    fs::create_dir_all(&dist)?;
    let name = format!("backlogd-{}-{TARGET}", env!("CARGO_PKG_VERSION"));
    let (placed, sum) = (dist.join(&name), sh::sha256(&binary));
    fs::copy(target.join(TARGET).join("release/backlogd"), &placed)?;
    sh::write(&dist.join(format!("{name}.sha256")), format!("{sum}  {name}\n").as_bytes())?;
    sh::run(Command::new(&placed).arg("--version"))?;
    println!("target/dist/{name}: {}, static, stripped\nsha256 {sum}", size(binary.len()));
    Ok(())
}

/// Refuses a binary that needs a library, carries symbols or is too large.
fn check(binary: &[u8]) -> Result<()> {
    let sections = elf::sections(binary)?;
    let section = |name: &str| sections.iter().find(|section| section.name == name);
    ensure!(section(".interp").is_none(), "the binary is not static: it names an interpreter");
    let dynamic = section(".dynamic").map_or(&[][..], |section| section.data);
    let needs_library = dynamic.chunks_exact(16).any(|entry| entry[..8] == DT_NEEDED.to_le_bytes());
    ensure!(!needs_library, "the binary is not static: it needs shared libraries");
    let symbols = [".symtab", ".debug_info"].into_iter().find(|name| section(name).is_some());
    ensure!(symbols.is_none(), "the binary is not stripped: it has {symbols:?}");
    let (got, limit) = (size(binary.len()), size(SIZE_LIMIT));
    ensure!(binary.len() <= SIZE_LIMIT, "the binary has {got}, expected at most {limit}");
    Ok(())
}

/// Bytes for people.
fn size(bytes: usize) -> String {
    let hundredths = bytes * 100 / (1 << 20);
    format!("{bytes} bytes ({}.{:02} MiB)", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_dynamic_binary() {
        let this_test = sh::read(&std::env::current_exe().unwrap()).unwrap();
        let refusal = check(&this_test).unwrap_err().to_string();
        assert_eq!(refusal, "the binary is not static: it names an interpreter");
    }

    #[test]
    fn refuses_what_is_not_elf() {
        let refusal = check(b"#!/bin/sh\n").unwrap_err().to_string();
        assert_eq!(refusal, "not a little-endian 64-bit ELF file");
    }

    #[test]
    fn sizes_are_in_mebibytes() {
        assert_eq!(size(10 << 20), "10485760 bytes (10.00 MiB)");
        assert_eq!(size(3_933_408), "3933408 bytes (3.75 MiB)");
    }
}
