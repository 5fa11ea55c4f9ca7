//! Descriptors that go from one program to the next over exec(2).

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

/// A descriptor that exec(2) left open for us; it is closed on the next one.
///
/// # Errors
/// It is not open, or it is closed on exec, so that somebody of this program has it.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it touches no memory.
    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
        -1 => return Err(io::Error::last_os_error()),
        flags if flags & libc::FD_CLOEXEC != 0 => return Err(io::ErrorKind::ResourceBusy.into()),
        _ => {}
    }
    // SAFETY: it touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, our environment says that it is for us, and whoever took it here before
    // would have set FD_CLOEXEC, as all that std, tokio and this crate open have.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has `command` give these descriptors to the program it starts, as 3 and the following.
pub(crate) fn pass(command: &mut Command, fds: &[&dyn AsFd]) -> io::Result<()> {
    let after = 3 + RawFd::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // above their places, so that none is put where another one is
    let moved = fds
        .iter()
        .map(|fd| duplicate(fd.as_fd().as_raw_fd(), after))
        .collect::<io::Result<Vec<_>>>()?;
    // with no place free, std has its socket elsewhere, by which the child tells that exec(2)
    // failed
    let reserved = fds.first().map(|fd| reserve(fd.as_fd().as_raw_fd(), after)).transpose()?;
    let place = move || {
        // kept as long as `command`: whatever std opens comes after
        let _ = &reserved;
        for (place, fd) in (3..).zip(&moved) {
            // SAFETY: it touches no memory, and may be called between fork(2) and exec(2).
            if unsafe { libc::dup2(fd.as_raw_fd(), place) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure calls dup2(2) and nothing that allocates or locks.
    unsafe { command.pre_exec(place) };
    Ok(())
}

/// Takes all numbers from 3 on, below `end`, that are free, for duplicates of `fd`.
fn reserve(fd: RawFd, end: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut reserved = Vec::new();
    loop {
        let next = duplicate(fd, 3)?;
        if end <= next.as_raw_fd() {
            return Ok(reserved);
        }
        reserved.push(next);
    }
}

fn duplicate(fd: RawFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it touches no memory.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it was just made, for us alone.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs::File};

    use super::*;

    /// Set in a process that has the test to itself.
    const ALONE: &str = "SHED_TEST_ALONE";

    #[test]
    fn a_program_that_is_missing_is_told_whatever_it_is_passed() {
        if env::var_os(ALONE).is_none() {
            // others open and close descriptors here
            let mut again = Command::new(env::current_exe().expect("a path"));
            let name =
                "sys::process::tests::a_program_that_is_missing_is_told_whatever_it_is_passed";
            let output = again.args(["--exact", name]).env(ALONE, "").output().expect("it runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            return assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
        let null = || File::open("/dev/null").expect("Linux has it");
        let fillers: Vec<_> = (0..64).map(|_| null()).collect();
        let passed = null();
        // the numbers that the program is to have are free
        drop(fillers);
        for n in 1..=20 {
            let mut command = Command::new("/nowhere");
            pass(&mut command, &vec![&passed as &dyn AsFd; n]).expect("room");
            let err = command.spawn().map(drop).expect_err("it is missing");
            assert_eq!(err.kind(), io::ErrorKind::NotFound, "{n}: {err}");
        }
    }
}
