//! The lock: what an eBPF object was made of. It lets a test notice changed sources on a machine
//! without the eBPF toolchain.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Error, Result};

use crate::sh;

/// What decides the object's bytes, from the folder of the eBPF crate; folders with all they hold.
const SOURCES: [&str; 4] = ["Cargo.lock", "Cargo.toml", "abi", "src"];

/// The contents of a lock file.
#[derive(Debug, PartialEq)]
pub(crate) struct Lock {
    /// `rustc --version`.
    pub(crate) rustc: String,
    /// Name and version of the linker.
    pub(crate) linker: String,
    /// [`hash_sources`].
    pub(crate) sources: String,
    /// SHA-256 of the object.
    pub(crate) object: String,
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rustc: {}", self.rustc)?;
        writeln!(f, "linker: {}", self.linker)?;
        writeln!(f, "sources: {}", self.sources)?;
        writeln!(f, "object: {}", self.object)
    }
}

impl FromStr for Lock {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let value = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once(": "));
            let (_, value) = pairs.find(|pair| pair.0 == name).with_context(|| {
                format!("lock: no line `{name}: ...`, expected rustc, linker, sources, object")
            })?;
            Ok::<_, Error>(value.to_owned())
        };
        Ok(Self {
            rustc: value("rustc")?,
            linker: value("linker")?,
            sources: value("sources")?,
            object: value("object")?,
        })
    }
}

/// One SHA-256 over the names and contents of all sources below `ebpf`.
pub(crate) fn hash_sources(ebpf: &Path) -> Result<String> {
    let mut files = Vec::new();
    for name in SOURCES {
        collect(&ebpf.join(name), &mut files)?;
    }
    files.sort();
    let mut list = String::new();
    for file in &files {
        let name = file.strip_prefix(ebpf)?.display();
        list += &format!("{}  {name}\n", sh::sha256(&sh::read(file)?));
    }
    Ok(sh::sha256(list.as_bytes()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let lock = Lock {
            rustc: "rustc 1.95.0 (59807616e 2026-04-14)".into(),
            linker: "bpf-linker 0.10.4".into(),
            sources: "ab".into(),
            object: "cd".into(),
        };
        assert_eq!(lock.to_string().parse::<Lock>().unwrap(), lock);
        let refusal = "rustc: 1".parse::<Lock>().unwrap_err().to_string();
        assert_eq!(refusal, "lock: no line `linker: ...`, expected rustc, linker, sources, object");
    }

    #[test]
    fn a_changed_or_renamed_source_changes_the_hash() {
        let folder = tempfile::tempdir().unwrap();
        let ebpf = folder.path();
        for name in ["src", "abi"] {
            fs::create_dir(ebpf.join(name)).unwrap();
        }
        for name in ["Cargo.toml", "Cargo.lock", "src/main.rs", "abi/lib.rs"] {
            fs::write(ebpf.join(name), name).unwrap();
        }
        let mut hashes = vec![hash_sources(ebpf).unwrap()];
        fs::write(ebpf.join("src/main.rs"), "fn main() {}").unwrap();
        hashes.push(hash_sources(ebpf).unwrap());
        fs::rename(ebpf.join("abi/lib.rs"), ebpf.join("abi/other.rs")).unwrap();
        hashes.push(hash_sources(ebpf).unwrap());
        fs::write(ebpf.join("README.md"), "is no source").unwrap();
        assert_eq!(hash_sources(ebpf).unwrap(), hashes[2]);
        hashes.dedup();
        assert_eq!(hashes.len(), 3);
    }
}
