//! The right of one connection to be open.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::net::TcpStream;

use crate::{
    budget::Budget,
    close,
    deadline::{
        Deadline, TimedOut,
        cell::{Cell, Loan},
        ticker::Watcher,
        wheel::Tick,
    },
    decide::{Closed, Refusal},
    peer_map::Place,
    reason::{Cause, Stage},
    shared::Shared,
};
#[cfg(feature = "tls")]
use crate::{close::Answer, reason::Reason};

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
    /// What it takes of what its peer may have.
    peer: Option<Place>,
    bytes: Moved,
    /// As much as was added to the listener's counters.
    folded: Moved,
    /// When its lifetime began; `None`: the listener has no deadlines.
    admitted: Option<Tick>,
    /// What its deadlines see of it.
    cell: Option<Arc<Cell>>,
}

/// Bytes of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// That were read.
    pub bytes_in: u64,
    /// That were written.
    pub bytes_out: u64,
}

/// So many bytes that were read are added to the listener's counters at once, if nothing else has
/// them added before.
const FOLD: u64 = 64 * 1_024;

impl Permit {
    /// For a connection that took its places already: one of the hard limit and, unless it is
    /// exempt, one of the soft limit.
    pub(crate) fn new(shared: Arc<Shared>, is_exempt: bool) -> Self {
        shared.counters.admitted(is_exempt);
        let since = Instant::now();
        let admitted = shared.watcher.as_ref().map(|watcher| watcher.admit(since));
        Self {
            shared,
            since,
            is_exempt,
            cause: Cause::Handler,
            peer: None,
            bytes: Moved::default(),
            folded: Moved::default(),
            admitted,
            cell: None,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Says why the connection ends; unsaid, it is [`Cause::Handler`]. A panic counts as such
    /// whatever is said.
    pub fn ends_by(&mut self, cause: Cause) {
        self.cause = cause;
    }

    /// Says that the connection ends for a deadline that whoever serves it watches, such as
    /// [`Deadline::HalfClose`], which is counted. What ended already by one of the listener's, or
    /// by a drain, is theirs.
    pub fn ends_by_deadline(&mut self, deadline: Deadline) {
        if self.timed_out().is_none() && !self.shared.life.is_over() {
            self.cause = Cause::Deadline;
            self.shared.counters.timed_out(deadline);
        }
    }

    /// Says how long a request on this connection took, for an [adaptive](crate::adaptive) limit.
    pub fn sample(&self, took: Duration) {
        if let Some(adaptive) = &self.shared.adaptive {
            adaptive.sample(took);
        }
    }

    /// Counts the connection as shed for `reason` after it was admitted; the caller resets it. What
    /// a deadline or a drain ended already is theirs.
    #[cfg(feature = "tls")]
    pub(crate) fn counts_as_shed(&mut self, reason: Reason) {
        if self.timed_out().is_some() || self.shared.life.is_over() {
            return;
        }
        self.cause = Cause::Shed;
        self.shared.counters.shed(reason, Stage::Handshake);
        self.shared.counters.answered(Answer::Rst, false);
    }

    /// Why the connection ends, as far as is known.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
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

    /// Gives the place of its peer back when it ends.
    pub(crate) fn hold(&mut self, peer: Option<Place>) {
        self.peer = peer;
    }

    /// Gives the place of its peer back as if it had not been taken.
    pub(crate) fn undo_peer(&mut self) {
        if let Some(place) = self.peer.take() {
            self.shared.policy.undo_peer(place);
        }
    }

    pub(crate) fn moved(&self) -> Moved {
        self.bytes
    }

    /// What is left of its lifetime.
    pub(crate) fn lifetime(&self) -> Budget {
        let lifetime = self.shared.watcher.as_ref().and_then(Watcher::lifetime);
        lifetime.map_or(Budget::ENDLESS, |lifetime| Budget::until(self.since + lifetime))
    }

    pub(crate) fn max_request(&self) -> u64 {
        self.shared.max_request
    }

    pub(crate) fn oversized(&mut self) {
        self.cause = Cause::Error;
        self.shared.counters.oversized();
    }

    /// Puts the connection under the listener's deadlines, if it has some. Its lifetime goes on
    /// since its admission; all others begin.
    pub(crate) fn watch(&mut self, stream: &TcpStream) -> Option<Loan> {
        let (cell, loan) = self.shared.watcher.as_ref()?.watch(stream, self.admitted?);
        self.cell = Some(cell);
        Some(loan)
    }

    /// Takes it from under them.
    pub(crate) fn unwatch(&mut self) {
        // who is shed is counted as such already
        if self.cause != Cause::Shed
            && self.watched().and_then(|(_, cell)| cell.ended_by()).is_some()
        {
            self.cause = Cause::Deadline;
        }
        self.cell = None;
    }

    /// What its deadlines see of it, for who tells them of it and has not got it.
    #[cfg(feature = "tls")]
    pub(crate) fn cell(&self) -> Option<Arc<Cell>> {
        self.cell.clone()
    }

    /// What watches its deadlines.
    pub(crate) fn watched(&self) -> Option<(&Watcher, &Cell)> {
        Some((self.shared.watcher.as_ref()?, self.cell.as_ref()?))
    }

    /// The deadline that ended it.
    pub(crate) fn timed_out(&self) -> Option<TimedOut> {
        let (watcher, cell) = self.watched()?;
        cell.ended_by().map(|deadline| watcher.timed_out(deadline))
    }

    /// A read or a write failed.
    pub(crate) fn failed(&mut self, err: &io::Error) {
        self.cause = Cause::Error;
        if err.raw_os_error() == Some(libc::ETIMEDOUT)
            && self.watched().is_some_and(|(watcher, cell)| watcher.stalled(cell))
        {
            self.shared.counters.timed_out(Deadline::WriteStall);
        }
    }

    /// Ends the connection, which was not served.
    pub(crate) fn shed(mut self, stream: TcpStream, (reason, answer): Refusal, turn: u64) {
        self.shared.counters.shed(reason, Stage::Handshake);
        self.cause = Cause::Shed;
        // where it fails, the runtime is gone and the socket closed
        if let Ok(stream) = stream.into_std() {
            let answer = answer.as_ref().unwrap_or_else(|| self.shared.answers.of(reason));
            close::shed(Socket::from(stream), answer, turn, &self.shared);
        }
    }

    pub(crate) fn read(&mut self, n: usize) {
        self.bytes.bytes_in += n as u64;
        if let Some((watcher, cell)) = self.watched() {
            cell.read(self.bytes.bytes_in, watcher.now());
        }
        self.fold_above(FOLD);
    }

    pub(crate) fn wrote(&mut self, n: usize) {
        self.bytes.bytes_out += n as u64;
        if let Some((watcher, cell)) = self.watched() {
            cell.wrote(self.bytes.bytes_out, watcher.now());
        }
        self.fold();
    }

    /// Adds all to the listener's counters.
    pub(crate) fn fold(&mut self) {
        self.fold_above(0);
    }

    fn fold_above(&mut self, least: u64) {
        let bytes_in = self.bytes.bytes_in - self.folded.bytes_in;
        let bytes_out = self.bytes.bytes_out - self.folded.bytes_out;
        if least < bytes_in + bytes_out {
            self.shared.counters.moved(bytes_in, bytes_out);
            self.folded = self.bytes;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.unwatch();
        let cause = match self.cause {
            _ if thread::panicking() => Cause::Panic,
            // shed by a listener that ends, with its own answer
            Cause::Shed => Cause::Shed,
            _ if self.shared.life.is_over() => Cause::Drain,
            cause => cause,
        };
        self.fold_above(0);
        if let Some(place) = self.peer.take() {
            self.shared.policy.give_back_peer(place);
        }
        let after = self.since.elapsed();
        self.shared.counters.closed(cause, self.is_exempt, after);
        if !self.is_exempt {
            self.shared.gate.give_back_soft();
        }
        self.shared.gate.give_back_hard();
        // last, since it is the user's, and may panic
        if let Some(decide) = &self.shared.decide {
            let tell = || decide.closed(&Closed { after, cause });
            if thread::panicking() {
                // a second panic on the way out of one ends the process
                drop(panic::catch_unwind(AssertUnwindSafe(tell)));
            } else {
                tell();
            }
        }
    }
}
