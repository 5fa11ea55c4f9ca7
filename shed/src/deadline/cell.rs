//! What a connection and its wheel have in common: counters that the connection alone writes, and
//! its socket, which the wheel may end.

use std::{
    io,
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use tokio::net::TcpStream;

use super::{
    Deadline,
    plan::{Phase, Seen},
    wheel::Tick,
};
use crate::sys;

/// One connection, as its deadlines see it.
#[derive(Debug)]
pub(crate) struct Cell {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    progress: AtomicU64,
    /// The tick of its begin, and in the lowest two bits which it is: one word, so that both are of
    /// the same.
    phase: AtomicU64,
    /// The place of the deadline that ended it, and 1; 0: none.
    ended_by: AtomicU8,
    socket: sys::Slot,
}

/// While it lives, the wheel may end the socket: it has to be dropped before that is closed.
#[derive(Debug)]
pub(crate) struct Loan(Arc<Cell>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.socket.take_back();
    }
}

impl Cell {
    pub(super) fn new(phase: Phase, at: Tick) -> Self {
        Self {
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            progress: AtomicU64::new(at),
            phase: AtomicU64::new(pack(phase, at)),
            ended_by: AtomicU8::new(0),
            socket: sys::Slot::default(),
        }
    }

    /// Lends it the socket.
    pub(super) fn lend(self: &Arc<Self>, stream: &TcpStream) -> Loan {
        self.socket.lend(stream);
        Loan(Arc::clone(self))
    }

    /// `bytes_in` were read so far, some of them at `at`.
    pub(crate) fn read(&self, bytes_in: u64, at: Tick) {
        self.bytes_in.store(bytes_in, Ordering::Relaxed);
        self.progress.store(at, Ordering::Relaxed);
        // whoever is done with a request and reads on has the next one
        if self.phase.load(Ordering::Relaxed) & 3 == Phase::Between as u64 {
            self.enter(Phase::Header, at);
        }
    }

    /// `bytes_out` were written so far, some of them at `at`.
    pub(crate) fn wrote(&self, bytes_out: u64, at: Tick) {
        self.bytes_out.store(bytes_out, Ordering::Relaxed);
        self.progress.store(at, Ordering::Relaxed);
    }

    pub(super) fn enter(&self, phase: Phase, at: Tick) {
        self.phase.store(pack(phase, at), Ordering::Relaxed);
    }

    /// The deadline that ended it.
    pub(crate) fn ended_by(&self) -> Option<Deadline> {
        let place = usize::from(self.ended_by.load(Ordering::Acquire)).checked_sub(1)?;
        Some(Deadline::ALL[place])
    }

    /// Notes that `deadline` ended it; whether it is the first to.
    pub(super) fn note_end(&self, deadline: Deadline) -> bool {
        let (relaxed, place) = (Ordering::Relaxed, deadline as u8 + 1);
        self.ended_by.compare_exchange(0, place, Ordering::Release, relaxed).is_ok()
    }

    pub(super) fn see(&self, at: Tick) -> Seen {
        let phase = self.phase.load(Ordering::Relaxed);
        Seen {
            at,
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            progress: self.progress.load(Ordering::Relaxed),
            phase: Phase::ALL[usize::try_from(phase & 3).expect("two bits")],
            since: phase >> 2,
        }
    }

    /// Bytes that its peer did not acknowledge so far.
    pub(super) fn unacked(&self) -> u64 {
        // where it cannot be told, nothing is said to stall
        self.socket.borrow(sys::unacked).and_then(Result::ok).unwrap_or(0)
    }

    /// Ends the connection for `deadline`; whoever waits for it wakes. `count` is called before it
    /// can be closed. `None`: its socket is not lent.
    pub(super) fn end(&self, deadline: Deadline, count: impl FnOnce()) -> Option<()> {
        let is_reset = match deadline {
            Deadline::WriteStall | Deadline::Handshake => true,
            Deadline::FirstByte
            | Deadline::Header
            | Deadline::Idle
            | Deadline::MinRate
            | Deadline::Lifetime
            | Deadline::HalfClose => self.bytes_out.load(Ordering::Relaxed) == 0,
        };
        self.socket.borrow(|socket| {
            if self.note_end(deadline) {
                count();
                // a socket that cannot be ended is at its end
                drop(end(socket, is_reset));
            }
        })
    }
}

fn end(socket: &socket2::Socket, is_reset: bool) -> io::Result<()> {
    if is_reset && sys::disconnect(socket).is_ok() {
        return Ok(());
    }
    socket.shutdown(Shutdown::Both)
}

fn pack(phase: Phase, at: Tick) -> u64 {
    at << 2 | phase as u64
}
