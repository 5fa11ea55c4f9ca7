//! `cargo xtask ebpf`: the eBPF object, the same bytes on every machine.
//!
//! In: ebpf/ (sources, Cargo.lock), the pinned compiler and linker. Out: ebpf/prebuilt, an object
//! and a lock that says what it was made of. Cost: 20 s, and once 60 s for the linker.
//! The object is committed, so that to build backlogd takes a stable compiler and nothing else.

mod atomics;
mod diff;
mod lock;

use std::{env, ffi::OsString, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use self::lock::Lock;
use crate::{sh, tools};

/// The processor of the kernels that load the object: aya-ebpf takes register layouts from it.
const ARCH: &str = "x86_64";
const TARGET: &str = "bpfel-unknown-none";
/// The object, from the workspace's folder.
const OBJECT: &str = "ebpf/prebuilt/backlogd.x86_64.bpf.o";
/// What the object was made of, from the workspace's folder.
const LOCK: &str = "ebpf/prebuilt/backlogd.x86_64.lock";
/// What brings both up to date.
const REFRESH: &str = "cargo xtask ebpf";

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Writes nothing; fails when the committed object is not what the sources give
    #[arg(long)]
    check: bool,
}

/// Builds the object and writes it, or compares it with the committed one.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = sh::root()?;
    let object = build(&root)?;
    atomics::check(&object)?;
    let lock = Lock {
        rustc: tools::rustc(&["--version"])?,
        linker: format!("bpf-linker {}", tools::BPF_LINKER.version),
        sources: lock::hash_sources(&root.join("ebpf"))?,
        object: sh::sha256(&object),
    };
    if arguments.check {
        return check(&root, &object, &lock);
    }
    fs::create_dir_all(root.join("ebpf/prebuilt"))?;
    sh::write(&root.join(OBJECT), &object)?;
    sh::write(&root.join(LOCK), lock.to_string().as_bytes())?;
    println!("{OBJECT}: {} bytes\n{lock}", object.len());
    Ok(())
}

/// `cargo xtask ebpf --check`, as a step of other verbs.
pub(crate) fn check_committed() -> Result<()> {
    run(&Arguments { check: true })
}

/// Compares bytes; prints what differs and how to refresh.
fn check(root: &Path, built: &[u8], lock: &Lock) -> Result<()> {
    let committed = sh::read(&root.join(OBJECT)).context(format!("run `{REFRESH}`"))?;
    let committed_lock = sh::read(&root.join(LOCK)).context(format!("run `{REFRESH}`"))?;
    if committed != built {
        println!("{OBJECT} is not what the sources give:");
        for line in diff::lines(&committed, built)? {
            println!("  {line}");
        }
        bail!("the committed object is out of date: run `{REFRESH}` and commit ebpf/prebuilt");
    }
    if committed_lock != lock.to_string().as_bytes() {
        println!("{LOCK}, expected:\n{lock}");
        bail!("the committed lock is out of date: run `{REFRESH}` and commit ebpf/prebuilt");
    }
    println!("{OBJECT}: {} bytes, as the sources give", built.len());
    Ok(())
}

/// The stripped object, built outside of the source tree.
fn build(root: &Path) -> Result<Vec<u8>> {
    tools::rustup_add("component", "rust-src")?;
    let path = tools::path_with(tools::BPF_LINKER.install(root)?)?;
    let (ebpf, target) = (root.join("ebpf"), root.join("target/ebpf"));
    let sysroot = tools::rustc(&["--print", "sysroot"])?;
    sh::run(tools::cargo().current_dir(&ebpf).args(["fetch", "--locked"]))?;
    sh::run(
        tools::cargo()
            .current_dir(&ebpf)
            .args(["build", "--release", "--locked", "--target", TARGET, "-Zbuild-std=core"])
            .arg("--target-dir")
            .arg(&target)
            .env("PATH", path)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&ebpf, &target, &sysroot)?)
            .env("CARGO_INCREMENTAL", "0")
            // build-std and the compiler's intrinsics, for this one build
            .env("RUSTC_BOOTSTRAP", "1"),
    )?;
    strip(&target.join(TARGET).join("release/backlogd"), &sysroot)
}

/// The compiler's flags, in cargo's encoded form.
///
/// Each folder that can differ between machines is replaced in debug information, of which BTF is
/// made, and in the texts of panics.
fn flags(ebpf: &Path, target: &Path, sysroot: &str) -> Result<OsString> {
    let mut flags: Vec<OsString> = vec![
        // atomics that give a value back: kernels from 5.12 on
        "-Ctarget-cpu=v3".into(),
        // BTF is made of it
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // otherwise aya-ebpf takes the building machine's
        format!("--cfg=bpf_target_arch=\"{ARCH}\"").into(),
    ];
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push(format!("={to}"));
        flags.push(flag);
    };
    remap(ebpf, "/ebpf");
    remap(target, "/target");
    remap(Path::new(sysroot), "/rust");
    let sources = cargo_home()?.join("registry/src");
    let folders = fs::read_dir(&sources).with_context(|| format!("{}", sources.display()))?;
    for folder in folders {
        // its name says which mirror the crate came from
        remap(&folder?.path(), "/registry");
    }
    Ok(flags.join("\x1f".as_ref()))
}

fn cargo_home() -> Result<std::path::PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

/// Takes debug information out, which leaves BTF; GNU strip does not know the format.
fn strip(linked: &Path, sysroot: &str) -> Result<Vec<u8>> {
    let stripped = linked.with_extension("bpf.o");
    let host = tools::rustc(&["--print", "host-tuple"])?;
    sh::run(
        Command::new(format!("{sysroot}/lib/rustlib/{host}/bin/rust-objcopy"))
            .env("LD_LIBRARY_PATH", format!("{sysroot}/lib"))
            .arg("--strip-debug")
            .args([linked, &stripped]),
    )?;
    sh::read(&stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_of_these_sources() {
        let root = sh::root().unwrap();
        let text = String::from_utf8(sh::read(&root.join(LOCK)).unwrap()).unwrap();
        let lock: Lock = text.parse().unwrap();
        let sources = lock::hash_sources(&root.join("ebpf")).unwrap();
        let object = sh::sha256(&sh::read(&root.join(OBJECT)).unwrap());
        assert_eq!(lock.sources, sources, "ebpf/ has changed: run {REFRESH}");
        assert_eq!(lock.object, object, "{OBJECT} is another than {LOCK} says: run {REFRESH}");
        let rustc = format!("rustc {} ", tools::TOOLCHAIN);
        assert!(lock.rustc.starts_with(&rustc), "{}: run {REFRESH}", lock.rustc);
    }
}
