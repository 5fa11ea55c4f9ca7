//! The right of one connection to be open.

use std::{mem, sync::Arc, thread, time::Instant};

#[cfg(feature = "tls")]
use crate::{
    close::Answer,
    reason::{Reason, Stage},
};
use crate::{decide::Closed, reason::Cause, shared::Shared};

/// Holds a connection's place in the limits, and gives it back when it is dropped: by return, by an
/// error, by a panic or when its task is aborted.
///
/// It has to live as long as the socket: a place is free only after close(2).
#[derive(Debug)]
#[must_use = "without it, the connection is not counted as open"]
pub struct Permit {
    shared: Arc<Shared>,
    since: Instant,
    is_exempt: bool,
    cause: Cause,
    /// Not added to the listener's counters so far.
    bytes_in: u64,
    bytes_out: u64,
}

/// So many bytes are added to the listener's counters at once.
const FOLD: u64 = 64 * 1_024;

impl Permit {
    /// For a connection that took its places already: one of the hard limit and, unless it is
    /// exempt, one of the soft limit.
    pub(crate) fn new(shared: Arc<Shared>, is_exempt: bool) -> Self {
        shared.counters.admitted(is_exempt);
        Self {
            shared,
            since: Instant::now(),
            is_exempt,
            cause: Cause::Handler,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Says why the connection ends; unsaid, it is [`Cause::Handler`]. A panic counts as such
    /// whatever is said.
    pub fn ends_by(&mut self, cause: Cause) {
        self.cause = cause;
    }

    /// Counts the connection as shed for `reason` after it was admitted; the caller resets it.
    #[cfg(feature = "tls")]
    pub(crate) fn shed(&mut self, reason: Reason) {
        self.cause = Cause::Shed;
        self.shared.counters.shed(reason, Stage::Handshake);
        self.shared.counters.answered(Answer::Rst, false);
    }

    /// When the connection was admitted.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it is exempt from the soft limit.
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.is_exempt
    }

    pub(crate) fn read(&mut self, n: usize) {
        self.bytes_in += n as u64;
        self.fold_above(FOLD);
    }

    pub(crate) fn wrote(&mut self, n: usize) {
        self.bytes_out += n as u64;
        self.fold_above(FOLD);
    }

    fn fold_above(&mut self, least: u64) {
        if least < self.bytes_in + self.bytes_out {
            self.shared
                .counters
                .moved(mem::take(&mut self.bytes_in), mem::take(&mut self.bytes_out));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let cause = if thread::panicking() { Cause::Panic } else { self.cause };
        if let Some(decide) = &self.shared.decide {
            decide.closed(&Closed { after: self.since.elapsed(), cause });
        }
        self.fold_above(0);
        self.shared.counters.closed(cause, self.is_exempt);
        if !self.is_exempt {
            self.shared.gate.give_back_soft();
        }
        self.shared.gate.give_back_hard();
    }
}
