//! Who holds a listening socket, and how many descriptors the holder has.
//!
//! In: `/proc/PID/{comm,limits,fd}`. Out: [`OwnersFound`] and [`ProcessSample`]. Cost: 1.3 µs
//! for the number of descriptors, 11 µs for the limit, 17 µs for a whole [`ProcessSample`].
//! [`owners`] looks at each descriptor of the host: 2 ms of CPU for 500, 5 ms for 1,600, 175 ms for
//! 50,000, hence not for each sample; 1.3 µs for each process whose number of them has not changed
//! (Linux 6.18 on two virtual cores).
//! Not here: threads, which share their process's descriptors; namespaces: owners are found in all.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fmt::Write,
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, readlinkat_raw, stat, statat},
    io::Errno,
};

use crate::{
    id::{Inode, Pid},
    input::{Absent, FdKinds, Known, ProcessSample},
};

/// Descriptors counted one by one at most, where the kernel does not tell their number.
const MAX_COUNTED: u64 = 16_384;

/// Descriptors whose kind is looked at, at most: 10 ms.
const MAX_LOOKED_AT: u64 = 4_096;

/// The processes that hold the wanted sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnersFound {
    /// By socket, lowest pid first. A socket whose holder was not found is missing.
    pub owners: BTreeMap<Inode, Vec<Pid>>,
    /// Processes whose descriptors could not be looked at: without `CAP_SYS_PTRACE`, those of other
    /// users (`proc_fd_access_allowed`, fs/proc/base.c).
    pub unreadable: u64,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `/proc` cannot be listed.
    #[error("cannot list /proc")]
    List(#[source] io::Error),
}

/// What each process held when its descriptors were last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(BTreeMap<Pid, (u64, Vec<Inode>)>);

/// Which descriptors a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All.
    Full,
    /// Those of processes that have another number of them than when they were last looked at. Before
    /// Linux 6.2, which does not tell the number, all.
    Changed,
}

/// One pass over the descriptors of all processes; `held` is what the pass before found. A process
/// that ends meanwhile is passed over; with `hidepid`, so are those that `/proc` hides.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn owners(
    wanted: &BTreeSet<Inode>,
    pass: Pass,
    held: &mut Held,
) -> Result<OwnersFound, ProcessError> {
    let list = |errno: Errno| ProcessError::List(errno.into());
    let proc = open_dir(CWD, "/proc").map_err(list)?;
    let mut found = OwnersFound::default();
    let mut before = std::mem::take(held).0;
    let (mut pids, mut fds) = (Vec::with_capacity(32 * 1024), Vec::with_capacity(32 * 1024));
    let mut path = String::new();
    let mut entries = RawDir::new(&proc, pids.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let Some(pid) = digits(entry.map_err(list)?.file_name()).map(Pid) else { continue };
        path.clear();
        // Writing to a string does not fail.
        _ = write!(path, "{pid}/fd");
        let size = statat(&proc, &path, AtFlags::empty()).map_or(0, |stat| stat.st_size);
        let n_fds = u64::try_from(size).unwrap_or(0);
        let known =
            before.remove(&pid).filter(|it| pass == Pass::Changed && 0 < n_fds && it.0 == n_fds);
        let inodes = match known {
            Some((_, inodes)) => Ok(inodes),
            None => {
                open_dir(&proc, &path).and_then(|dir| scan(&dir, fds.spare_capacity_mut(), wanted))
            }
        };
        match inodes {
            Ok(inodes) => {
                for inode in inodes.iter().filter(|inode| wanted.contains(inode)) {
                    found.owners.entry(*inode).or_default().push(pid);
                }
                held.0.insert(pid, (n_fds, inodes));
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(_) => {
                // readlink of one that has ended is refused, too (`proc_fd_access_allowed`, fs/proc/base.c)
                path.truncate(path.len() - "/fd".len());
                found.unreadable += u64::from(statat(&proc, &path, AtFlags::empty()).is_ok());
            }
        }
    }
    found.owners.values_mut().for_each(|pids| pids.sort_unstable());
    Ok(found)
}

/// The wanted sockets that a process holds.
///
/// # Errors
/// `Unreadable` when it has ended; `NotPermitted` for other users' processes.
pub fn held_by(pid: Pid, wanted: &BTreeSet<Inode>) -> Known<Vec<Inode>> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    open_dir(CWD, &format!("/proc/{pid}/fd"))
        .and_then(|dir| scan(&dir, buffer.spare_capacity_mut(), wanted))
        .map_err(|errno| absent(&errno.into()))
}

/// The wanted sockets among the descriptors in `dir`, each once.
fn scan(
    dir: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    wanted: &BTreeSet<Inode>,
) -> rustix::io::Result<Vec<Inode>> {
    let mut inodes = Vec::new();
    let mut entries = RawDir::new(dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if digits(entry.file_name()).is_none() {
            continue;
        }
        let mut target = [MaybeUninit::uninit(); 40];
        let target = match readlinkat_raw(dir, entry.file_name(), &mut target) {
            Ok((target, _)) => target,
            // The descriptor was closed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        inodes.extend(socket(target).filter(|inode| wanted.contains(inode)));
    }
    // A process may hold one socket under several numbers.
    inodes.sort_unstable();
    inodes.dedup();
    Ok(inodes)
}

pub(super) fn open_dir(at: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A whole number of decimal digits.
pub(super) fn digits(name: &CStr) -> Option<u32> {
    let bytes = name.to_bytes();
    bytes.first().filter(|byte| byte.is_ascii_digit())?;
    str::from_utf8(bytes).ok()?.parse().ok()
}

/// The inode in `socket:[N]` (`sockfs_dname`, net/socket.c).
fn socket(target: &[u8]) -> Option<Inode> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    str::from_utf8(number).ok()?.parse().ok().map(Inode)
}

/// A process's name, descriptors and limit, not where it belongs. Needs no privilege.
///
/// # Errors
/// `Unreadable` when it has ended.
pub fn read(pid: Pid) -> Known<ProcessSample> {
    let comm = comm(pid)?;
    let workload = Arc::default();
    let (open_fds, max_fds) = (open_fds(pid), max_fds(pid));
    let is_half_full = open_fds.is_ok_and(|open| max_fds.is_ok_and(|max| max / 2 <= open));
    let fd_kinds = if is_half_full { fd_kinds(pid).ok() } else { None };
    Ok(ProcessSample { comm, workload, open_fds, max_fds, fd_kinds })
}

/// A process's name. Needs no privilege.
///
/// # Errors
/// `Unreadable` when it has ended.
pub fn comm(pid: Pid) -> Known<Arc<str>> {
    let comm = fs::read(format!("/proc/{pid}/comm")).map_err(|error| absent(&error))?;
    Ok(String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into())
}

/// How many descriptors a process has open.
///
/// # Errors
/// `Unreadable` when it has ended. On kernels before 6.2, `NotPermitted` for other users'
/// processes, and `NotOnThisKernel` for more than 16,384 descriptors, which are not counted.
pub fn open_fds(pid: Pid) -> Known<u64> {
    let path = format!("/proc/{pid}/fd");
    let size = stat(&path).map_err(|errno| absent(&errno.into()))?.st_size;
    // 6.2 made the size the number of open descriptors (`proc_fd_getattr`, fs/proc/fd.c); it is 0
    // before, and also in a process that has none.
    match u64::try_from(size) {
        Ok(n) if 0 < n => Ok(n),
        Ok(_) | Err(_) => count(&path),
    }
}

fn count(path: &str) -> Known<u64> {
    let dir = open_dir(CWD, path).map_err(|errno| absent(&errno.into()))?;
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    let mut n_fds = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|errno| absent(&errno.into()))?;
        n_fds += u64::from(digits(entry.file_name()).is_some());
        if MAX_COUNTED < n_fds {
            return Err(Absent::NotOnThisKernel);
        }
    }
    Ok(n_fds)
}

/// What the descriptors of a process refer to, of the first 4,096.
///
/// # Errors
/// `Unreadable` when it has ended; `NotPermitted` for other users' processes.
pub fn fd_kinds(pid: Pid) -> Known<FdKinds> {
    let absent = |errno: Errno| absent(&errno.into());
    let dir = open_dir(CWD, &format!("/proc/{pid}/fd")).map_err(absent)?;
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    let mut kinds = FdKinds::default();
    let mut n_fds = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(absent)?;
        if digits(entry.file_name()).is_none() {
            continue;
        }
        if n_fds == MAX_LOOKED_AT {
            kinds.is_partial = true;
            break;
        }
        n_fds += 1;
        let mut target = [MaybeUninit::uninit(); 40];
        match readlinkat_raw(&dir, entry.file_name(), &mut target) {
            Ok((target, _)) => kinds.add(target),
            // the descriptor was closed meanwhile
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(absent(errno)),
        }
    }
    Ok(kinds)
}

impl FdKinds {
    /// By the name of what it refers to: a path, or its kind (`d_path`, fs/d_path.c).
    fn add(&mut self, target: &[u8]) {
        let kind = match target {
            [b'/', ..] => &mut self.files,
            _ if target.starts_with(b"socket:[") => &mut self.sockets,
            _ if target.starts_with(b"pipe:[") => &mut self.pipes,
            _ => &mut self.others,
        };
        *kind += 1;
    }
}

/// The soft limit of a process's descriptors, `RLIMIT_NOFILE`; `u64::MAX` is unlimited.
///
/// # Errors
/// `Unreadable` when it has ended.
pub fn max_fds(pid: Pid) -> Known<u64> {
    let text = fs::read(format!("/proc/{pid}/limits")).map_err(|error| absent(&error))?;
    parse_limit(&String::from_utf8_lossy(&text)).ok_or(Absent::Unreadable)
}

/// `proc_pid_limits` (fs/proc/base.c). Not with procfs-core's parser, which subtracts from the
/// number of words in a line without looking, and fails when any other limit is missing.
fn parse_limit(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("Max open files "))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Why a file could not be read.
pub(super) fn absent(error: &io::Error) -> Absent {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Absent::NotPermitted,
        _ => Absent::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write as _},
        net::TcpListener,
        os::unix::fs::MetadataExt,
        process::{Child, Command, Stdio},
    };

    use procfs_core::{
        FromRead,
        process::{LimitValue, Limits},
    };
    use proptest::prelude::*;

    use super::*;

    /// A listener and its inode.
    fn listener() -> (TcpListener, Inode) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::File::from(OwnedFd::from(listener.try_clone().unwrap())).metadata();
        (listener, Inode(inode.unwrap().ino()))
    }

    /// A process that has begun to run its program, holds `stderr`, and ends with its input.
    fn child(stderr: Stdio) -> Child {
        let (stdin, stdout) = (Stdio::piped(), Stdio::piped());
        let mut child =
            Command::new("cat").stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    fn end(mut child: Child) {
        child.stdin = None;
        child.wait().unwrap();
    }

    fn me() -> Pid {
        Pid(std::process::id())
    }

    /// The holders of a socket that one pass finds. A child that another test starts at the same moment
    /// holds all that this process holds until it runs its program: only `expected` are looked for.
    #[track_caller]
    fn check_owners(inode: Inode, pass: Pass, held: &mut Held, expected: &[Pid]) {
        let found = owners(&[inode, Inode(u64::MAX)].into(), pass, held).unwrap();
        let owners = found.owners.get(&inode).map_or(&[][..], Vec::as_slice);
        let owners: Vec<Pid> =
            owners.iter().filter(|pid| expected.contains(pid)).copied().collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(expected, owners, "{pass:?}");
        assert_eq!(None, found.owners.get(&Inode(u64::MAX)));
    }

    #[test]
    fn a_pass_over_what_has_changed_finds_the_same_and_what_is_new() {
        let (listener, inode) = listener();
        let other = OwnedFd::from(listener.try_clone().unwrap());
        let first = child(OwnedFd::from(listener).into());
        let mut held = Held::default();
        for pass in [Pass::Full, Pass::Changed, Pass::Changed] {
            check_owners(inode, pass, &mut held, &[Pid(first.id())]);
        }
        // looked at once, with as many descriptors as it has now
        assert_eq!(Some(&vec![inode]), held.0.get(&Pid(first.id())).map(|it| &it.1));
        let second = child(other.into());
        check_owners(inode, Pass::Changed, &mut held, &[Pid(first.id()), Pid(second.id())]);
        let ended = Pid(first.id());
        end(first);
        check_owners(inode, Pass::Changed, &mut held, &[Pid(second.id())]);
        assert!(!held.0.contains_key(&ended), "{held:?}");
        end(second);
    }

    #[test]
    fn a_pass_over_what_has_changed_looks_again_at_another_number_of_descriptors() {
        let (listener, inode) = listener();
        let child = child(OwnedFd::from(listener).into());
        let pid = Pid(child.id());
        let n_fds = u64::try_from(stat(format!("/proc/{pid}/fd")).unwrap().st_size).unwrap();
        // before Linux 6.2 the number is not told
        let wrong = |n: u64| Held(BTreeMap::from([(pid, (n, Vec::new()))]));
        check_owners(inode, Pass::Changed, &mut wrong(n_fds + 1), &[pid]);
        check_owners(inode, Pass::Full, &mut wrong(n_fds), &[pid]);
        if n_fds != 0 {
            let found = owners(&[inode].into(), Pass::Changed, &mut wrong(n_fds)).unwrap();
            assert!(found.owners.get(&inode).is_none_or(|pids| !pids.contains(&pid)), "{found:?}");
        }
        end(child);
    }

    #[test]
    fn kinds_of_descriptors_are_told_by_their_names() {
        let mut kinds = FdKinds::default();
        for target in
            ["/dev/null", "/tmp/x (deleted)", "socket:[7]", "pipe:[8]", "anon_inode:[eventpoll]"]
        {
            kinds.add(target.as_bytes());
        }
        let expected = FdKinds { sockets: 1, pipes: 1, files: 2, others: 1, is_partial: false };
        assert_eq!(expected, kinds);
        let pid = Pid(std::process::id());
        let before = fd_kinds(pid).unwrap();
        let held: Vec<_> = (0..50).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let after = fd_kinds(pid).unwrap();
        // other tests of this process have sockets of their own
        assert!(before.sockets + 30 <= after.sockets, "{before:?} {after:?}");
        drop(held);
    }

    #[test]
    fn finds_each_holder_of_a_socket_once() {
        let (listener, inode) = listener();
        let _same_again = listener.try_clone().unwrap();
        check_owners(inode, Pass::Full, &mut Held::default(), &[me()]);
        let child = child(OwnedFd::from(listener).into());
        check_owners(inode, Pass::Full, &mut Held::default(), &[me(), Pid(child.id())]);
        end(child);
    }

    #[test]
    fn reads_a_process_until_it_ends() {
        let child = child(Stdio::null());
        let pid = Pid(child.id());
        let sample = read(pid).unwrap();
        assert_eq!(&*sample.comm, "cat");
        assert_eq!(sample.open_fds, count(&format!("/proc/{pid}/fd")));
        assert!(3 <= sample.open_fds.unwrap(), "{sample:?}");
        end(child);
        assert_eq!(read(pid), Err(Absent::Unreadable));
    }

    #[test]
    fn counts_many_descriptors() {
        let _many: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(100 < open_fds(me()).unwrap());
    }

    #[test]
    fn the_limit_is_this_process_s() {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        assert_eq!(max_fds(me()), Ok(limit.unwrap_or(u64::MAX)));
    }

    #[test]
    fn reads_the_soft_limit() {
        #[track_caller]
        fn check(text: &str, expected: Option<u64>) {
            assert_eq!(parse_limit(text), expected, "{text:?}");
        }
        let text = include_str!("../../tests/fixtures/proc/limits");
        let oracle = Limits::from_read(text.as_bytes()).unwrap().max_open_files.soft_limit;
        let LimitValue::Value(oracle) = oracle else { panic!("{oracle:?}") };
        check(text, Some(oracle));
        check("Max open files            unlimited            unlimited  files\n", Some(u64::MAX));
        check("Max open files            \n", None);
        check("Max processes             3 4 processes\n", None);
    }

    #[test]
    fn tells_sockets_from_other_files() {
        #[track_caller]
        fn check(target: &[u8], expected: Option<u64>) {
            assert_eq!(socket(target), expected.map(Inode));
        }
        check(b"socket:[4026]", Some(4026));
        check(b"socket:[18446744073709551615]", Some(u64::MAX));
        check(b"socket:[18446744073709551616]", None);
        check(b"socket:[]", None);
        check(b"socket:[12", None);
        check(b"pipe:[12]", None);
        check(b"/tmp/socket:[12]", None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            socket(&bytes);
            let text = format!("Max open files {}", String::from_utf8_lossy(&bytes));
            prop_assert!(parse_limit(&text).is_none_or(|n| text.contains(&n.to_string()) || n == u64::MAX));
        }

        #[test]
        fn limits_come_out_as_they_went_in(soft in any::<u64>(), hard in any::<u64>()) {
            let text = format!("Max open files            {soft:<20} {hard:<20} files     \n");
            prop_assert_eq!(parse_limit(&text), Some(soft));
        }
    }
}
