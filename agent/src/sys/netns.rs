//! Which network namespace a thread is in, and how it gets into another.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::stat,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::id::NetnsId;

/// The calling thread's network namespace.
///
/// # Errors
/// When `/proc` is not mounted or hides the thread's `ns` directory.
pub fn current() -> io::Result<NetnsId> {
    of(Path::new("/proc/thread-self/ns/net"))
}

/// The network namespace behind a file of nsfs.
///
/// # Errors
/// When there is no such file, or it may not be looked at.
pub fn of(path: &Path) -> io::Result<NetnsId> {
    let inode = stat(path)?.st_ino;
    // `proc_alloc_inum` (fs/proc/generic.c) gives 32 bits.
    u32::try_from(inode).map(NetnsId).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: inode {inode}, expected one below 2^32", path.display()),
        )
    })
}

/// Moves the calling thread, for good, into the network namespace behind a file of nsfs:
/// `/proc/PID/ns/net`, or what `ip netns` keeps in `/run/netns`.
///
/// # Errors
/// `ENOENT`; `EINVAL` for another file; `EPERM` without `CAP_SYS_ADMIN`, unless the thread is there
/// already.
pub fn enter(path: &Path) -> io::Result<NetnsId> {
    let target = of(path)?;
    if target != current()? {
        let file = File::open(path)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    current()
}

/// Does something in the network namespace behind a file of nsfs, see [`enter`], and goes back.
///
/// # Errors
/// Those of [`enter`]; and where there is no way back, before it goes.
///
/// # Panics
/// When the way back is cut off meanwhile: the thread would go on in the wrong namespace.
pub fn visit<T>(path: &Path, work: impl FnOnce(NetnsId) -> T) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/net")?;
    if of(path)? == current()? {
        return Ok(work(current()?));
    }
    back(&own)?;
    let _back = WayBack(own);
    enter(path).map(work)
}

/// Goes back when dropped.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        if let Err(err) = back(&self.0)
            && !thread::panicking()
        {
            panic!("no way back into the network namespace: {err}");
        }
    }
}

fn back(own: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// A file by which `netns` can be entered: that of a process in it, or one that `ip netns` keeps.
/// `None`: no process that may be looked at is in it.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn find(netns: NetnsId) -> io::Result<Option<PathBuf>> {
    let own = PathBuf::from("/proc/thread-self/ns/net");
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path().join("ns/net"));
    // most hosts have no such folder
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let all = [own].into_iter().chain(processes).chain(named.map(|entry| entry.path()));
    Ok(all.into_iter().find(|path| of(path).is_ok_and(|found| found == netns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_namespace_as_the_link_does() {
        let link = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(current().unwrap().to_string(), link.to_str().unwrap());
    }

    #[test]
    fn the_own_namespace_is_found_and_entered_without_a_privilege() {
        let own = current().unwrap();
        let path = find(own).unwrap().expect("we are in it");
        assert_eq!(own, enter(&path).unwrap());
        assert_eq!(None, find(NetnsId(1)).unwrap());
    }

    #[test]
    fn a_visit_to_where_the_thread_is_needs_no_privilege() {
        let own = current().unwrap();
        assert_eq!(own, visit(Path::new("/proc/thread-self/ns/net"), |here| here).unwrap());
        assert!(visit(Path::new("/nonexistent"), |here| here).is_err());
        assert_eq!(own, current().unwrap());
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let err = enter(file.path()).unwrap_err();
        assert_eq!(Some(libc::EINVAL), err.raw_os_error(), "{err}");
        assert_eq!(io::ErrorKind::NotFound, enter(Path::new("/nonexistent")).unwrap_err().kind());
    }
}
