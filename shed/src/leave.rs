//! How one listening socket is closed so that nobody who finished a handshake is reset.
//!
//! close(2) resets what is in its accept queue (`inet_csk_listen_stop`,
//! net/ipv4/inet_connection_sock.c). So handshakes go elsewhere first, or begin no more; what CPUs
//! were at work on when that was said is waited for; handshakes that go on end; the queue is
//! emptied; and only then it is closed.

use std::{
    collections::HashSet,
    io,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{SockFilter, Socket};
use tokio::time;

use crate::{diag, drain::Queued, life::Life, page::Held, sys};

/// A handshake that takes longer is not waited for.
pub(crate) const LONGEST: Duration = Duration::from_millis(500);

/// How often the queue, and then the handshakes, are looked at.
const LOOK: Duration = Duration::from_millis(3);

/// Looks in a row that find nothing: by the first, the handshakes ended, maybe after the queue was
/// looked at; by the second, nothing is queued after that.
const QUIET_LOOKS: u32 = 2;

/// Where nobody says when CPUs are done with what they were at work on: so long. Hypervisors let
/// one wait for milliseconds.
const UNKNOWN: Duration = Duration::from_millis(50);

/// What happens to those that would come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// They are not answered, and find by their next SYN, a second later, who is there then.
    Filter { queued: Queued },
    /// They go to the first members of the SO_REUSEPORT group, so many.
    Steer { members: u32 },
    /// They are left to another generation that has the socket, too.
    Hand,
    /// It does not matter any more.
    Now,
}

impl Exit {
    /// As it is at the moment of the exit, for who has `held` of the socket: where another
    /// generation goes on with it, it is left as it is, be that one the next, the one before, which
    /// does not hand over after all, or one that is about to end later. A next one that starts may
    /// never accept: it is left nothing.
    pub(crate) fn settle(self, life: &Life, held: Option<&mut Held>) -> Self {
        match self {
            Self::Filter { .. } if !life.is_lent() && held.is_some_and(Held::leave) => Self::Hand,
            Self::Filter { .. } | Self::Steer { .. } | Self::Hand | Self::Now => self,
        }
    }
}

/// A socket that is about to be closed.
#[derive(Debug)]
pub(crate) struct Leave {
    exit: Exit,
    until: Instant,
    /// Ends when no CPU is at work on a SYN that was not kept away: it is in no table meanwhile.
    settling: Option<JoinHandle<()>>,
    is_settled: bool,
    /// Handshakes that went on after that.
    awaited: Option<HashSet<[u8; 40]>>,
    quiet_looks: u32,
    /// The next look is not before.
    rests_until: Instant,
}

impl Leave {
    /// Keeps others away.
    pub(crate) fn begin(exit: Exit, socket: &Socket, at: Instant) -> Self {
        // where it fails, the rest is as good as it can be without
        drop(match exit {
            Exit::Filter { .. } => refuse(socket),
            Exit::Steer { members } => steer(socket, members),
            Exit::Hand | Exit::Now => Ok(()),
        });
        let mut it = Self {
            exit,
            until: at + LONGEST,
            settling: None,
            is_settled: false,
            awaited: None,
            quiet_looks: 0,
            rests_until: at,
        };
        if !it.is_free() {
            let settling = thread::Builder::new().name("shed-leave".to_owned()).spawn(settle);
            // there are no threads: it is waited for here
            it.settling = settling.inspect_err(|_| settle()).ok();
        }
        it
    }

    /// Whether it has the socket answer no SYN, until that is [undone](answer).
    pub(crate) fn refuses(&self) -> bool {
        matches!(self.exit, Exit::Filter { .. })
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
    pub(crate) fn is_over(&mut self, socket: &Socket, port: u16, at: Instant) -> bool {
        if self.is_free() {
            return true;
        }
        // first: it may give more time
        let is_settled = self.is_settled(socket, at);
        if self.is_late(at) || !is_settled {
            return self.until <= at;
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

    /// Whether all handshakes that are to end here are in the kernel's table, or, where nobody says
    /// so, should be. From then on, they have their time.
    fn is_settled(&mut self, socket: &Socket, at: Instant) -> bool {
        if self.is_settled {
            return true;
        }
        if self.settling.as_ref().is_some_and(|it| !it.is_finished()) && at < self.until {
            return false;
        }
        self.is_settled = true;
        self.until = at + LONGEST;
        if let Exit::Steer { .. } = self.exit {
            // for a moment of its close it is in no group, yet found, by IPv4 before the others
            // (`inet_unhash`, net/ipv4/inet_hashtables.c): a SYN goes there, past the program.
            // Lost, it is sent again
            drop(refuse(socket));
        }
        true
    }
}

/// Returns when no CPU is at work on what it had received before: they are readers of RCU, and
/// membarrier(2) waits until all who read have ended.
fn settle() {
    if sys::membarrier().is_err() {
        // by a sandbox, or where there are CPUs without a tick
        thread::sleep(UNKNOWN);
    }
}

/// Has `socket` answer no SYN.
fn refuse(socket: &Socket) -> io::Result<()> {
    socket.attach_filter(&SYN_FILTER.map(|it| SockFilter::new(it.code, it.jt, it.jf, it.k)))
}

/// Has `socket` answer again, for somebody else who has it.
pub(crate) fn answer(socket: &Socket) {
    // where it fails, there is no filter
    drop(socket.detach_filter());
}

/// Has the first `members` of the group of `member` get what comes, evenly, by chance: not every
/// network card gives a hash.
pub(crate) fn steer(member: &Socket, members: u32) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpStream},
        sync::mpsc,
    };

    use socket2::{Domain, Type};

    use super::*;
    use crate::socket::{self, Reuse};

    /// Two members, and their address.
    fn group() -> (Socket, Socket, SocketAddr) {
        let begin = socket::parse("127.0.0.1:0").expect("an address");
        let member = |address| {
            let member = socket::bind(address, Reuse::Join).expect("a port");
            socket::listen(&member, Some(16)).expect("it is bound");
            member
        };
        let first = member(begin);
        let address = socket::local_addr(&first).expect("bound");
        (first, member(address), address)
    }

    /// Has the second one get what comes.
    fn steer_to_second(member: &Socket) {
        sys::steer(member, &mut [statement(RETURN, 1)]).expect("a program");
    }

    fn accept(member: &Socket) -> TcpStream {
        member.set_nonblocking(false).expect("a socket");
        member.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
        member.accept().expect("queued").0.into()
    }

    #[tokio::test]
    async fn who_is_sent_to_it_while_it_closes_is_served_by_another() {
        let (first, second, address) = group();
        let mut leave = Leave::begin(Exit::Steer { members: 1 }, &second, Instant::now());
        while !leave.is_over(&second, address.port(), Instant::now()) {
            leave.rest().await;
        }
        // as the kernel does it for a moment
        steer_to_second(&second);
        let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
        // its SYN is sent; whether it is answered, is not waited for
        drop(client.connect(&address.into()));
        drop(second);
        accept(&first).write_all(b"y").expect("connected");
        client.set_nonblocking(false).expect("a socket");
        assert_eq!(TcpStream::from(client).read(&mut [0]).expect("served"), 1);
    }

    #[test]
    fn a_handshake_that_a_cpu_was_at_work_on_is_awaited() {
        let (_first, second, address) = group();
        let (port, at) = (address.port(), Instant::now());
        let mut leave = Leave::begin(Exit::Steer { members: 1 }, &second, at);
        let (done, work) = mpsc::channel::<()>();
        leave.settling = Some(thread::spawn(move || work.recv().expect("it ends")));
        assert!((0..10).all(|_| !leave.is_over(&second, port, at)), "it may come yet");
        // it comes, and the ACK that would end it is lost
        let only_syns = SYN_FILTER.map(|it| match it.code {
            RETURN => SockFilter::new(it.code, it.jt, it.jf, !it.k),
            _ => SockFilter::new(it.code, it.jt, it.jf, it.k),
        });
        second.attach_filter(&only_syns).expect("a filter");
        steer_to_second(&second);
        let mut client = TcpStream::connect(address).expect("connected, as the client sees it");
        steer(&second, 1).expect("a program");
        done.send(()).expect("somebody waits");
        while !leave.settling.as_ref().is_some_and(JoinHandle::is_finished) {
            thread::yield_now();
        }
        assert!((0..10).all(|_| !leave.is_over(&second, port, at)), "it goes on");
        client.write_all(b"x").expect("connected");
        accept(&second);
        assert!((0..1_000).any(|_| leave.is_over(&second, port, at)), "nothing goes on");
    }
}
