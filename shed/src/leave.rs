//! How one listening socket is closed so that nobody who finished a handshake is reset.
//!
//! close(2) resets what is in its accept queue (`inet_csk_listen_stop`,
//! net/ipv4/inet_connection_sock.c). So handshakes go elsewhere first, or begin no more; those that
//! go on end; the queue is emptied; and only then it is closed.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use socket2::{SockFilter, Socket};
use tokio::time;

use crate::{diag, drain::Queued, sys};

/// A handshake that takes longer is not waited for.
pub(crate) const LONGEST: Duration = Duration::from_millis(500);

/// How often the queue, and then the handshakes, are looked at.
const LOOK: Duration = Duration::from_millis(3);

/// Looks in a row that find nothing: a handshake that began at another CPU, before it was kept from
/// it, may come after the first.
const QUIET_LOOKS: u32 = 2;

/// What happens to those that would come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// They are not answered, and find by their next SYN, a second later, who is there then.
    Filter { queued: Queued },
    /// They go to the first members of the SO_REUSEPORT group, so many.
    Steer { members: u32 },
    /// Another process has the socket, too.
    Hand,
    /// It does not matter any more.
    Now,
}

/// A socket that is about to be closed.
#[derive(Debug)]
pub(crate) struct Leave {
    exit: Exit,
    until: Instant,
    /// Handshakes that went on when others were steered away.
    awaited: Option<HashSet<[u8; 48]>>,
    quiet_looks: u32,
    /// The next look is not before.
    rests_until: Instant,
}

impl Leave {
    /// Keeps others away.
    pub(crate) fn begin(exit: Exit, socket: &Socket, at: Instant) -> Self {
        // where it fails, the rest is as good as it can be without
        drop(match exit {
            Exit::Filter { .. } => socket
                .attach_filter(&SYN_FILTER.map(|it| SockFilter::new(it.code, it.jt, it.jf, it.k))),
            Exit::Steer { members } => steer(socket, members),
            Exit::Hand | Exit::Now => Ok(()),
        });
        Self { exit, until: at + LONGEST, awaited: None, quiet_looks: 0, rests_until: at }
    }

    /// Lets others come again, for somebody else who has the socket.
    pub(crate) fn undo(&self, socket: &Socket) {
        if let Exit::Filter { .. } = self.exit {
            // where it fails, there is none
            drop(socket.detach_filter());
        }
    }

    /// Whether those that are still accepted are shed.
    pub(crate) fn sheds(&self) -> bool {
        self.exit == (Exit::Filter { queued: Queued::Shed })
    }

    /// Whether the socket may be closed at once, whatever is queued.
    pub(crate) fn is_free(&self) -> bool {
        matches!(self.exit, Exit::Hand | Exit::Now)
    }

    /// Waits for the time of the next look. It may be cancelled: that does not bring it forward.
    pub(crate) async fn rest(&self) {
        time::sleep_until(self.rests_until.into()).await;
    }

    /// Whether it was waited for long enough, after a look at `at`.
    pub(crate) fn is_late(&mut self, at: Instant) -> bool {
        self.rests_until = at + LOOK;
        self.until <= at
    }

    /// Whether it may be closed, after its queue was found empty.
    pub(crate) fn is_over(&mut self, port: u16, at: Instant) -> bool {
        if self.is_free() || self.is_late(at) {
            return true;
        }
        // unknown: the whole time is waited
        let Ok(rows) = diag::handshakes(port) else { return false };
        let is_quiet = match (&self.exit, &self.awaited) {
            (Exit::Steer { .. }, None) => {
                self.awaited = Some(rows.iter().map(|row| row.id).collect());
                rows.is_empty()
            }
            (Exit::Steer { .. }, Some(awaited)) => {
                !rows.iter().any(|row| awaited.contains(&row.id))
            }
            (Exit::Filter { .. } | Exit::Hand | Exit::Now, _) => rows.is_empty(),
        };
        self.quiet_looks = if is_quiet { self.quiet_looks + 1 } else { 0 };
        QUIET_LOOKS <= self.quiet_looks
    }
}

/// Has the first `members` of the group of `member` get what comes, evenly, by chance: not every
/// network card gives a hash.
pub(crate) fn steer(member: &Socket, members: u32) -> std::io::Result<()> {
    let mut program = [
        statement(LOAD_WORD, ANCILLARY + RANDOM),
        statement(MODULO, members),
        statement(RETURN_ACCUMULATOR, 0),
    ];
    sys::steer(member, &mut program)
}

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

// linux/filter.h, linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const MODULO: u16 = 0x94;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const RETURN_ACCUMULATOR: u16 = 0x16;
const ANCILLARY: u32 = 0xffff_f000;
const RANDOM: u32 = 56;

/// Drops segments with SYN and without ACK; a socket's filter sees the TCP header first
/// (`tcp_filter`, net/ipv4/tcp_ipv4.c).
const SYN_FILTER: [libc::sock_filter; 5] = [
    statement(LOAD_BYTE, 13),
    statement(AND, 0x12),
    libc::sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: 0x02 },
    statement(RETURN, 0),
    statement(RETURN, u32::MAX),
];
