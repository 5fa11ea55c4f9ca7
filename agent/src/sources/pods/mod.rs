//! Where a process belongs: systemd unit, container, pod.
//!
//! In: `/proc/PID/cgroup`, and the files that kubelet and container runtimes keep on the node. Out:
//! a [`Workload`]. Cost: 15 µs per call, of which 14 are the kernel's for `/proc/PID/cgroup` with ten
//! hierarchies. On top of that, for a container that is asked for the first time: 0.5–1.5 ms for
//! the directories of 250 pods, at most every 10 s, which name all of them; else 20 µs for its
//! configuration of 14 kB, or 20–40 µs to learn that there is none, likewise (Linux 6.18 on two
//! virtual cores). Memory: 1.5 MiB for 4,096 containers.
//! Not here: who owns a socket (`owners.rs`); the Kubernetes API, which is not asked.

pub mod cgroup;
mod files;
mod names;

use std::{fs, io::ErrorKind, path::Path, sync::Arc};

use crate::{
    id::Pid,
    input::{Absent, Known, Workload},
    sources::pods::names::Names,
    time::Monotonic,
};

/// Attributes processes; remembers the names it found.
#[derive(Debug)]
pub struct Pods {
    names: Names,
}

impl Pods {
    /// `root` is where the host's files are: `/` on the host, `/host` or `/proc/1/root` in a
    /// container that sees them there. Links in it are followed as the host would, and never lead
    /// out of it.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { names: Names::new(root) }
    }

    /// Where a process belongs. Processes of one container share their names.
    ///
    /// # Errors
    /// [`Absent::NotPermitted`], or [`Absent::Unreadable`] for a process that is gone.
    pub fn of(&mut self, pid: Pid, at: Monotonic) -> Known<Workload> {
        let text = fs::read(format!("/proc/{pid}/cgroup")).map_err(|err| match err.kind() {
            ErrorKind::PermissionDenied => Absent::NotPermitted,
            _ => Absent::Unreadable,
        })?;
        Ok(self.workload(&String::from_utf8_lossy(&text), at))
    }

    /// The same for the text of a `/proc/PID/cgroup`.
    pub fn workload(&mut self, cgroup: &str, at: Monotonic) -> Workload {
        let mut workload = cgroup::parse(cgroup).map(cgroup::identify).unwrap_or_default();
        self.names.complete(&mut workload, at);
        workload
    }
}

/// A name as runtimes allow them for containers, and Kubernetes for all it names
/// (`RestrictedNameChars`, moby daemon/names/names.go; RFC 1123); none where `text` is anything
/// else, so that each name can be a label.
fn name(text: &str) -> Option<Arc<str>> {
    /// Of a Kubernetes object (`DNS1123SubdomainMaxLength`, apimachinery).
    const LONGEST: usize = 253;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    ((1..=LONGEST).contains(&text.len()) && text.bytes().all(is_plain)).then(|| text.into())
}

#[cfg(test)]
mod tests;
