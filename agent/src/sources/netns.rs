//! Which network namespaces there are, and how to get at each.
//!
//! In: `/proc/PID/ns/net`, and the folders in which `ip netns` and container runtimes keep names of
//! namespaces. Out: [`Found`]. Cost: 2 µs per process. Nothing is kept open: a file of nsfs or below
//! `/proc/PID/net` would keep a namespace alive whose last process is gone.
//! Not here: threads that left their process's namespace, but for the one that is asked about.

use std::{
    collections::BTreeMap, fmt::Write as _, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf,
};

use rustix::{
    fs::{AtFlags, statat},
    io::Errno,
};

use super::process::{digits, open_dir};
use crate::{
    id::{NetnsId, Pid},
    sys::netns::of,
};

/// Ways to a namespace that are kept: the others stand in when one ends.
const WAYS: usize = 3;

/// Where names of namespaces are kept, as bind mounts of nsfs.
pub(super) const FOLDERS: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A way into a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A process that is in it.
    Process(Pid),
    /// A file that keeps it.
    Name(PathBuf),
}

impl Way {
    /// The file of nsfs to enter it by.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        match self {
            Self::Process(pid) => format!("/proc/{pid}/ns/net").into(),
            Self::Name(path) => path.clone(),
        }
    }

    /// The folder with its counters; `None` where it must be entered to read them.
    #[must_use]
    pub fn counters(&self) -> Option<PathBuf> {
        match self {
            Self::Process(pid) => Some(format!("/proc/{pid}/net").into()),
            Self::Name(_) => None,
        }
    }

    /// Whether it still leads to `netns`.
    #[must_use]
    pub fn leads_to(&self, netns: NetnsId) -> bool {
        of(&self.file()).is_ok_and(|found| found == netns)
    }
}

/// All namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Up to three ways to each.
    pub ways: BTreeMap<NetnsId, Vec<Way>>,
    /// Processes whose namespace could not be told: without `CAP_SYS_PTRACE`, those of other users.
    pub unreadable: u64,
}

/// Looks at every process and name. One that ends meanwhile is passed over.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn find() -> io::Result<Found> {
    let mut found = Found::default();
    let proc = open_dir(rustix::fs::CWD, "/proc")?;
    let mut path = String::new();
    for entry in rustix::fs::Dir::read_from(&proc)? {
        let Some(pid) = digits(entry?.file_name()).map(Pid) else { continue };
        path.clear();
        // writing to a string does not fail
        _ = write!(path, "{pid}/ns/net");
        match statat(&proc, &path, AtFlags::empty()) {
            Ok(stat) => found.add(stat.st_ino, Way::Process(pid)),
            // it ended, or is a zombie
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(_) => found.unreadable += 1,
        }
    }
    // what is no namespace there has another device
    let device = fs::metadata("/proc/thread-self/ns/net")?.dev();
    let folders = FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok());
    for path in folders.flatten().flatten().map(|entry| entry.path()) {
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.dev() == device
        {
            found.add(metadata.ino(), Way::Name(path));
        }
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, inode: u64, way: Way) {
        // `proc_alloc_inum` (fs/proc/generic.c) gives 32 bits
        let Ok(netns) = u32::try_from(inode) else { return };
        let ways = self.ways.entry(NetnsId(netns)).or_default();
        if ways.len() < WAYS {
            ways.push(way);
        }
    }
}

/// A way to `netns` by a process that is said to be in it, or one of whose threads is.
#[must_use]
pub fn by_process(netns: NetnsId, pid: Pid) -> Option<Way> {
    let way = Way::Process(pid);
    if way.leads_to(netns) {
        return Some(way);
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let files = threads.flatten().take(64).map(|entry| entry.path().join("ns/net"));
    files.into_iter().find(|path| of(path).is_ok_and(|found| found == netns)).map(Way::Name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::current;

    #[test]
    fn finds_the_own_namespace_by_this_process() {
        let (own, pid) = (current().unwrap(), Pid(std::process::id()));
        let found = find().unwrap();
        assert!(!found.ways[&own].is_empty(), "{found:?}");
        let way = by_process(own, pid).unwrap();
        assert_eq!(Way::Process(pid), way);
        assert!(way.leads_to(own) && !way.leads_to(NetnsId(1)));
        assert!(way.counters().unwrap().join("netstat").exists());
        assert_eq!(None, by_process(NetnsId(1), pid));
    }

    #[test]
    fn no_more_ways_are_kept_than_needed() {
        let mut found = Found::default();
        (1..10).for_each(|pid| found.add(7, Way::Process(Pid(pid))));
        found.add(u64::MAX, Way::Process(Pid(1)));
        let ways: Vec<_> = (1..4).map(|pid| Way::Process(Pid(pid))).collect();
        assert_eq!(BTreeMap::from([(NetnsId(7), ways)]), found.ways);
    }
}
