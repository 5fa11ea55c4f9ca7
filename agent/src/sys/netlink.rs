//! A netlink socket and the dumps it gives.
//!
//! In: a request. Out: the reply's messages, lent one by one from one buffer. Cost: one system
//! call per 32 KiB of reply, no allocation. Not here: what a message means.

use std::{io, ops::ControlFlow, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect,
        netlink::SocketAddrNetlink, recv, send, socket_with, sockopt,
    },
};

/// `sizeof(struct nlmsghdr)`
const HEADER_LEN: usize = 16;
/// `sizeof(struct nlattr)`
const ATTRIBUTE_HEADER_LEN: usize = 4;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Without the flags in the two high bits (`NLA_TYPE_MASK`, include/uapi/linux/netlink.h).
const ATTRIBUTE_KIND: u16 = 0x3fff;

/// A dump fills at most 32 KiB per read (`netlink_recvmsg`, net/netlink/af_netlink.c).
const BUFFER_LEN: usize = 64 * 1024;
/// The kernel answers a dump from within send(2) and recv(2), so that only a lost reply waits.
const TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 3;

/// A netlink socket in the network namespace in which it was opened, wherever its thread goes.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    buffer: Box<[u8]>,
    /// Of the newest request; a reply to an older one is passed over.
    sequence: u32,
    /// The newest dump was not read to its end. The kernel runs one dump per socket at a time
    /// (`EBUSY`, `__netlink_dump_start`, net/netlink/af_netlink.c).
    unfinished: bool,
}

/// What a dump tells its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// An attempt begins: forget the rows of the one before.
    Begin,
    /// One message.
    Row {
        /// `nlmsg_type`
        kind: u16,
        /// What follows the message's header.
        payload: &'a [u8],
    },
}

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call failed.
    #[error("netlink: {call} failed")]
    Syscall {
        /// Which one.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No reply in time.
    #[error("netlink: no reply within {TIMEOUT:?}")]
    Timeout,
    /// The kernel answered with an error.
    #[error("netlink: the kernel refused the request")]
    Refused(#[source] io::Error),
    /// A datagram did not fit into the buffer.
    #[error("netlink: datagram of {got} bytes, expected at most {expected}")]
    Oversized {
        /// Its length.
        got: usize,
        /// The buffer's.
        expected: usize,
    },
    /// Fewer bytes than the part needs or its length field says.
    #[error("netlink {part} at byte {at}: {got} bytes, expected {expected}")]
    Truncated {
        /// `message`, `request`, …
        part: &'static str,
        /// Where it begins in the bytes around it.
        at: usize,
        /// What there is.
        got: usize,
        /// What there should be.
        expected: usize,
    },
    /// The table changed during each attempt.
    #[error("netlink: the table changed during each of {ATTEMPTS} dumps")]
    Interrupted,
}

impl NetlinkError {
    /// The error number that the kernel gave, if it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Syscall { source, .. } | Self::Refused(source) => Errno::from_io_error(source),
            Self::Timeout | Self::Oversized { .. } | Self::Truncated { .. } | Self::Interrupted => {
                None
            }
        }
    }
}

impl Netlink {
    /// A socket that speaks `protocol` with the kernel alone.
    ///
    /// # Errors
    /// When the kernel has no such protocol, or a seccomp filter forbids `AF_NETLINK`.
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::RAW, flags, Some(protocol))
            .map_err(syscall("socket"))?;
        // Connected to port 0, the kernel, it takes nothing from another process
        // (`netlink_getsockbyportid`, net/netlink/af_netlink.c).
        connect(&socket, &SocketAddrNetlink::new(0, 0)).map_err(syscall("connect"))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))
            .map_err(syscall("setsockopt"))?;
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        Ok(Self { socket, buffer, sequence: 0, unfinished: false })
    }

    /// Sends `request`, a whole message with `NLM_F_DUMP` whose sequence number is set here, and
    /// gives `step` each message of the reply. A dump during which the table changed is repeated.
    ///
    /// # Errors
    /// See [`NetlinkError`]. The socket stays usable.
    pub fn dump(
        &mut self,
        request: &mut [u8],
        mut step: impl FnMut(Step<'_>),
    ) -> Result<(), NetlinkError> {
        self.dump_while(request, |it| {
            step(it);
            ControlFlow::Continue(())
        })
    }

    /// The same, until `step` breaks off. Drop the socket then: that ends the dump, while a further
    /// one would first receive what is left of it.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn dump_while(
        &mut self,
        request: &mut [u8],
        mut step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<(), NetlinkError> {
        for _ in 0..ATTEMPTS {
            if step(Step::Begin).is_break() || self.attempt(request, &mut step)? {
                return Ok(());
            }
        }
        Err(NetlinkError::Interrupted)
    }

    /// False when the table changed meanwhile.
    fn attempt(
        &mut self,
        request: &mut [u8],
        step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<bool, NetlinkError> {
        self.drain()?;
        self.sequence = self.sequence.wrapping_add(1);
        let (got, expected) = (request.len(), HEADER_LEN);
        let Some(sequence) = request.get_mut(8..12).filter(|_| expected <= got) else {
            return Err(NetlinkError::Truncated { part: "request", at: 0, got, expected });
        };
        sequence.copy_from_slice(&self.sequence.to_ne_bytes());
        retry_on_intr(|| send(&self.socket, request, SendFlags::empty()))
            .map_err(syscall("send"))?;
        self.unfinished = true;

        let mut consistent = true;
        loop {
            for message in messages(receive(&self.socket, &mut self.buffer)?) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_DONE | NLMSG_ERROR => {
                        self.unfinished = false;
                        return status(&message).map(|()| consistent);
                    }
                    kind => {
                        if step(Step::Row { kind, payload: message.payload }).is_break() {
                            return Ok(true);
                        }
                    }
                }
            }
        }
    }

    /// Receives what is left of a dump that an error cut short: the kernel goes on with a dump
    /// only while its reader receives.
    fn drain(&mut self) -> Result<(), NetlinkError> {
        while self.unfinished {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match retry_on_intr(|| recv(&self.socket, &mut self.buffer[..], flags)) {
                Ok(_) => {}
                Err(Errno::AGAIN) => self.unfinished = false,
                Err(errno) => return Err(syscall("recv")(errno)),
            }
        }
        Ok(())
    }
}

/// One datagram.
fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Result<&'a [u8], NetlinkError> {
    // With MSG_TRUNC the returned length is the datagram's, also when it did not fit.
    match retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::TRUNC)) {
        Ok((_, got)) => {
            let expected = buffer.len();
            buffer.get(..got).ok_or(NetlinkError::Oversized { got, expected })
        }
        Err(Errno::AGAIN) => Err(NetlinkError::Timeout),
        Err(errno) => Err(syscall("recv")(errno)),
    }
}

fn syscall(call: &'static str) -> impl Fn(Errno) -> NetlinkError {
    move |errno| NetlinkError::Syscall { call, source: errno.into() }
}

/// How a dump ended. `NLMSG_DONE` carries an error number too, or nothing: an error of the dump
/// itself arrives there (`netlink_dump_done`, net/netlink/af_netlink.c).
fn status(message: &Message<'_>) -> Result<(), NetlinkError> {
    match message.payload.first_chunk() {
        Some(&bytes) => match i32::from_ne_bytes(bytes) {
            0 => Ok(()),
            negated => Err(NetlinkError::Refused(io::Error::from_raw_os_error(
                negated.checked_neg().unwrap_or(i32::MAX),
            ))),
        },
        None if message.kind == NLMSG_DONE => Ok(()),
        None => {
            let got = message.payload.len();
            Err(NetlinkError::Truncated { part: "error number", at: HEADER_LEN, got, expected: 4 })
        }
    }
}

/// `struct nlmsghdr` and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages of one datagram. Ends after the first error.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, NetlinkError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = datagram.get(at..).filter(|rest| !rest.is_empty())?;
        let message = message(rest, at);
        at = match &message {
            Ok(message) => at.saturating_add(align(HEADER_LEN + message.payload.len())),
            Err(_) => datagram.len(),
        };
        Some(message)
    })
}

fn message(bytes: &[u8], at: usize) -> Result<Message<'_>, NetlinkError> {
    let truncated = |expected| {
        let got = bytes.len();
        NetlinkError::Truncated { part: "message", at, got, expected }
    };
    let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or_else(|| truncated(HEADER_LEN))?;
    let &[l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let expected = length.max(HEADER_LEN);
    Ok(Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        payload: bytes.get(HEADER_LEN..length).ok_or_else(|| truncated(expected))?,
    })
}

/// The attributes in `bytes`, as kind and value. Ends after the first error.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), NetlinkError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        let attribute = attribute(rest, at);
        at = match &attribute {
            Ok((_, value)) => at.saturating_add(align(ATTRIBUTE_HEADER_LEN + value.len())),
            Err(_) => bytes.len(),
        };
        Some(attribute)
    })
}

fn attribute(bytes: &[u8], at: usize) -> Result<(u16, &[u8]), NetlinkError> {
    let truncated = |expected| {
        let got = bytes.len();
        NetlinkError::Truncated { part: "attribute", at, got, expected }
    };
    let Some(&[l0, l1, k0, k1]) = bytes.first_chunk() else {
        return Err(truncated(ATTRIBUTE_HEADER_LEN));
    };
    let length = usize::from(u16::from_ne_bytes([l0, l1]));
    let expected = length.max(ATTRIBUTE_HEADER_LEN);
    let value = bytes.get(ATTRIBUTE_HEADER_LEN..length).ok_or_else(|| truncated(expected))?;
    Ok((u16::from_ne_bytes([k0, k1]) & ATTRIBUTE_KIND, value))
}

/// `NLMSG_ALIGN` and `NLA_ALIGN`.
const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::net::netlink::SOCK_DIAG;

    use super::*;

    /// A request for TCP sockets in LISTEN: header, then `struct inet_diag_req_v2`.
    fn request(family: u8, protocol: u8) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN + 56];
        bytes[..4].copy_from_slice(&72_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&20_u16.to_ne_bytes());
        bytes[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        (bytes[16], bytes[17]) = (family, protocol);
        bytes[20..24].copy_from_slice(&(1_u32 << 10).to_ne_bytes());
        bytes
    }

    fn rows(netlink: &mut Netlink) -> Result<usize, NetlinkError> {
        let mut n_rows = 0;
        netlink.dump(&mut request(2, 6), |step| match step {
            Step::Begin => n_rows = 0,
            Step::Row { .. } => n_rows += 1,
        })?;
        Ok(n_rows)
    }

    #[test]
    fn names_the_kernels_refusal_and_stays_usable() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut netlink = Netlink::open(SOCK_DIAG).unwrap();
        let no_such_protocol = netlink.dump(&mut request(2, 250), |_| {}).unwrap_err();
        assert_eq!(no_such_protocol.errno(), Some(Errno::NOENT), "{no_such_protocol:?}");
        let no_such_family = netlink.dump(&mut request(250, 6), |_| {}).unwrap_err();
        assert_eq!(no_such_family.errno(), Some(Errno::INVAL), "{no_such_family:?}");
        assert!(0 < rows(&mut netlink).unwrap());
    }

    #[test]
    fn a_dump_that_is_broken_off_leaves_nothing_for_the_next() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut netlink = Netlink::open(SOCK_DIAG).unwrap();
        let mut n_rows = 0;
        let until_first = |step: Step<'_>| match step {
            Step::Begin => ControlFlow::Continue(()),
            Step::Row { .. } => {
                n_rows += 1;
                ControlFlow::Break(())
            }
        };
        netlink.dump_while(&mut request(2, 6), until_first).unwrap();
        assert_eq!(n_rows, 1);
        assert!(0 < rows(&mut netlink).unwrap());
    }

    #[test]
    fn recovers_from_a_datagram_that_does_not_fit() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut netlink = Netlink::open(SOCK_DIAG).unwrap();
        let buffer = std::mem::replace(&mut netlink.buffer, vec![0; 64].into_boxed_slice());
        let error = rows(&mut netlink).unwrap_err();
        assert!(
            matches!(error, NetlinkError::Oversized { got, expected: 64 } if 64 < got),
            "{error}"
        );
        netlink.buffer = buffer;
        assert!(0 < rows(&mut netlink).unwrap());
    }

    #[test]
    fn a_reply_that_never_comes_times_out() {
        let mut netlink = Netlink::open(SOCK_DIAG).unwrap();
        let error = receive(&netlink.socket, &mut netlink.buffer).unwrap_err();
        assert_eq!(error.to_string(), "netlink: no reply within 1s");
    }

    #[test]
    fn a_request_without_a_header_is_an_error() {
        let error = Netlink::open(SOCK_DIAG).unwrap().dump(&mut [0; 15], |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "netlink request at byte 0: 15 bytes, expected 16");
    }

    fn encode(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LEN + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    #[test]
    fn the_end_carries_an_error_number_or_nothing() {
        #[track_caller]
        fn check(kind: u16, payload: &[u8], expected: Result<(), &str>) {
            let message = Message { kind, flags: 0, sequence: 0, payload };
            let got = status(&message).map_err(|error| match error.errno() {
                Some(errno) => io::Error::from(errno).to_string(),
                None => error.to_string(),
            });
            assert_eq!(got, expected.map_err(Into::into));
        }
        check(NLMSG_DONE, &[], Ok(()));
        check(NLMSG_DONE, &0_i32.to_ne_bytes(), Ok(()));
        check(NLMSG_ERROR, &0_i32.to_ne_bytes(), Ok(()));
        check(NLMSG_DONE, &(-2_i32).to_ne_bytes(), Err("No such file or directory (os error 2)"));
        check(NLMSG_ERROR, &(-1_i32).to_ne_bytes(), Err("Operation not permitted (os error 1)"));
        check(NLMSG_ERROR, &[1, 2], Err("netlink error number at byte 16: 2 bytes, expected 4"));
        let lowest =
            Message { kind: NLMSG_DONE, flags: 0, sequence: 0, payload: &i32::MIN.to_ne_bytes() };
        assert!(status(&lowest).is_err());
    }

    #[test]
    fn names_what_is_cut_off_and_where() {
        #[track_caller]
        fn check(bytes: &[u8], expected: &str) {
            let errors: Vec<_> =
                messages(bytes).filter_map(Result::err).map(|error| error.to_string()).collect();
            assert_eq!(errors, [expected]);
        }
        check(&[1, 2, 3], "netlink message at byte 0: 3 bytes, expected 16");
        check(&[0; 20], "netlink message at byte 0: 20 bytes, expected 16");
        let mut bytes = encode(20, 0, 7, b"abcd");
        bytes.extend(&encode(20, 0, 7, b"efgh")[..18]);
        check(&bytes, "netlink message at byte 20: 18 bytes, expected 20");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let parsed: Vec<_> = messages(&bytes).filter_map(Result::ok).collect();
            let n_messages = parsed.len();
            parsed.iter().for_each(|message| _ = status(message));
            let n_attributes = attributes(&bytes).filter(Result::is_ok).count();
            prop_assert!(n_messages * HEADER_LEN <= bytes.len());
            prop_assert!(n_attributes * ATTRIBUTE_HEADER_LEN <= bytes.len());
        }

        #[test]
        fn messages_come_out_as_they_went_in(
            parts in prop::collection::vec(
                (any::<u16>(), any::<u16>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)),
                0..8,
            ),
        ) {
            let bytes: Vec<u8> =
                parts.iter().flat_map(|(kind, flags, seq, p)| encode(*kind, *flags, *seq, p)).collect();
            let got: Vec<_> = messages(&bytes)
                .map(|m| m.map(|m| (m.kind, m.flags, m.sequence, m.payload.to_vec())).unwrap())
                .collect();
            prop_assert_eq!(got, parts);
        }
    }
}
