//! What to do after each attempt to send. Pure: the results of sendmmsg(2) are passed in.

use std::{io, time::Duration};

use super::{PAUSE, stats::Dropped};

/// How far a series of datagrams is sent.
#[derive(Debug)]
pub(super) struct Sending {
    next: usize,
    len: usize,
    /// The next one was refused once for want of a buffer.
    is_second: bool,
}

/// What an attempt came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many went.
    Sent(usize),
    /// Try again after a pause.
    Wait(Duration),
    /// Try again.
    Again,
    /// The next one was given up.
    Drop(Dropped),
}

impl Sending {
    pub(super) fn new(len: usize) -> Self {
        Self { next: 0, len, is_second: false }
    }

    /// The first one that is neither sent nor given up; as many as there are: the end.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Goes on after `result`: how many went, or why the next one did not. An error of one datagram
    /// gives up that one, so that the others go, and there is an end.
    ///
    /// # Errors
    /// The socket can send nothing.
    pub(super) fn after(&mut self, result: io::Result<usize>) -> io::Result<Step> {
        let err = match result {
            Ok(n) => {
                self.next = (self.next + n).min(self.len);
                self.is_second = false;
                return Ok(Step::Sent(n));
            }
            Err(err) => err,
        };
        let why = match err.raw_os_error() {
            Some(libc::EINTR) => return Ok(Step::Again),
            Some(libc::ENOBUFS) if !self.is_second => {
                self.is_second = true;
                return Ok(Step::Wait(PAUSE));
            }
            Some(libc::ENOBUFS) => Dropped::Enobufs,
            Some(libc::EMSGSIZE) => Dropped::Oversize,
            Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT) | None => return Err(err),
            Some(_) => Dropped::Error,
        };
        self.next += 1;
        self.is_second = false;
        Ok(Step::Drop(why))
    }
}
