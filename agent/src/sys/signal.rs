//! Signals that somebody waits for, beside other descriptors.

use std::{
    io, mem,
    os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

/// SIGINT and SIGTERM as a descriptor: readable once one of them came.
#[derive(Debug)]
pub struct Stop {
    fd: OwnedFd,
}

impl Stop {
    /// From here on the two do not end the process. For the calling thread and those that it
    /// starts: others would still take them.
    ///
    /// # Errors
    /// What pthread_sigmask(3) and signalfd(2) answer: no descriptor is free.
    pub fn take() -> io::Result<Self> {
        let set = stop_signals();
        // SAFETY: `set` is a live local, and no old mask is asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } {
            0 => {}
            number => return Err(io::Error::from_raw_os_error(number)),
        }
        // SAFETY: `set` is a live local; -1 asks for a new descriptor.
        match unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
            fd => Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } }),
        }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn stop_signals() -> libc::sigset_t {
    // SAFETY: a set of signals is plain integers.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: `set` is a live local. It fails for signals that do not exist.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

#[cfg(test)]
mod tests {
    use std::{slice, thread};

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::Signal,
        thread::gettid,
    };

    use super::*;

    #[test]
    fn a_signal_makes_it_readable_and_ends_nothing() {
        let is_readable = |stop: &Stop| {
            let mut fd = PollFd::new(stop, PollFlags::IN);
            poll(slice::from_mut(&mut fd), Some(&Timespec::default())).unwrap() == 1
        };
        // a thread of its own: its mask goes with it
        let came = thread::spawn(move || {
            let stop = Stop::take().unwrap();
            let before = is_readable(&stop);
            let tid = gettid().as_raw_nonzero().get();
            // SAFETY: it takes two numbers; the thread is this one.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    libc::c_long::from(rustix::process::getpid().as_raw_nonzero().get()),
                    libc::c_long::from(tid),
                    libc::c_long::from(Signal::INT.as_raw()),
                )
            };
            assert_eq!(0, sent);
            (before, is_readable(&stop))
        });
        assert_eq!((false, true), came.join().unwrap());
    }
}
