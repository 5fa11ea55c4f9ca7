//! Sockets that listen: queue length, limit, drops, cookie, inode.
//!
//! In: sock_diag dumps of one network namespace, IPv4 and IPv6, restricted to LISTEN, for which the
//! kernel walks its table of listeners and no other (`inet_diag_dump_icsk`, net/ipv4/inet_diag.c).
//! Out: [`ListenSocket`]. Cost: 27 µs with 20 listeners, beside no or 9,000 connections;
//! 0.51 ms with 1,000, all but 12 µs of it in the kernel (Linux 6.18 on two virtual cores).
//! netlink-packet-sock-diag writes the requests but does not read the rows: its parser, which boxes
//! each row and copies attributes, takes 156 µs for 1,000 rows where `parse` takes 11. The tests
//! hold the two against each other.
//! Not here: SYN queues (no row has them), owners (process.rs). What a row of any dump is made of is
//! here, for `sockets.rs` and `udp.rs`, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, INET_DIAG_SKMEMINFO, INET_DIAG_SKV6ONLY, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use rustix::{io::Errno, net::netlink::SOCK_DIAG};

use crate::{
    id::{Cookie, Inode},
    input::{Absent, ListenSocket},
    sys::netlink::{Netlink, NetlinkError, Step, attributes},
};

/// `sizeof(struct inet_diag_msg)`
const ROW_LEN: usize = 72;
/// What SKMEMINFO consists of, `u32`s by index (`sk_get_meminfo`, net/core/sock.c): memory of what
/// is queued for the reader.
pub(super) const RMEM_ALLOC: usize = 0;
/// How much of it there may be.
pub(super) const RCVBUF: usize = 1;
/// `sk_drops`; since 4.6.
pub(super) const DROPS: usize = 8;

/// A sock_diag socket of one network namespace.
#[derive(Debug)]
pub struct SockDiag {
    netlink: Netlink,
    inet: Vec<u8>,
    inet6: Vec<u8>,
}

/// Why there is no list of sockets.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// No socket.
    #[error("cannot open a sock_diag socket")]
    Open(#[source] NetlinkError),
    /// This kernel cannot dump these sockets: a module is missing.
    #[error("sock_diag dump of {of}: this kernel has no {module}")]
    NoModule {
        /// Which sockets: `IPv4 listeners`, …
        of: &'static str,
        /// `tcp_diag` or `udp_diag`.
        module: &'static str,
    },
    /// The dump failed.
    #[error("sock_diag dump of {of} failed")]
    Dump {
        /// Which sockets: `IPv4 listeners`, …
        of: &'static str,
        /// Why.
        source: NetlinkError,
    },
    /// A row is shorter than its fixed part.
    #[error("sock_diag row: {got} bytes, expected at least {ROW_LEN}")]
    Truncated {
        /// Its length.
        got: usize,
    },
    /// A row of neither IPv4 nor IPv6.
    #[error("sock_diag row: address family {got}, expected {AF_INET} or {AF_INET6}")]
    Family {
        /// `idiag_family`
        got: u8,
    },
    /// A row's attributes do not fit into it.
    #[error("sock_diag row: malformed attributes")]
    Attributes(#[source] NetlinkError),
}

impl SockDiagError {
    /// The same, as a sample says it.
    #[must_use]
    pub fn absent(&self) -> Absent {
        match self {
            Self::NoModule { .. } => Absent::NotOnThisKernel,
            Self::Open(error) | Self::Dump { source: error, .. } => match error.errno() {
                // Each kernel has AF_NETLINK: EAFNOSUPPORT is what systemd's
                // RestrictAddressFamilies= answers.
                Some(Errno::PERM | Errno::ACCESS | Errno::AFNOSUPPORT) => Absent::NotPermitted,
                Some(Errno::PROTONOSUPPORT) => Absent::NotOnThisKernel,
                _ => Absent::Unreadable,
            },
            Self::Truncated { .. } | Self::Family { .. } | Self::Attributes(_) => {
                Absent::Unreadable
            }
        }
    }

    /// What it means that a dump of these sockets failed.
    pub(super) fn dump(of: &'static str, module: &'static str, source: NetlinkError) -> Self {
        // `inet_diag_lock_handler`, net/ipv4/inet_diag.c
        if source.errno() == Some(Errno::NOENT) {
            Self::NoModule { of, module }
        } else {
            Self::Dump { of, source }
        }
    }
}

impl SockDiag {
    /// For the calling thread's network namespace. Needs no privilege.
    ///
    /// # Errors
    /// When the kernel has no sock_diag, or a seccomp filter forbids `AF_NETLINK`.
    pub fn open() -> Result<Self, SockDiagError> {
        let netlink = Netlink::open(SOCK_DIAG).map_err(SockDiagError::Open)?;
        let request = |family| request(family, IPPROTO_TCP, StateFlags::LISTEN);
        let (inet, inet6) = (request(AF_INET), request(AF_INET6));
        Ok(Self { netlink, inet, inet6 })
    }

    /// Adds each listening TCP socket to `into`, by cookie.
    ///
    /// The kernel drops its lock between two datagrams and finds its place by counting, so that of
    /// sockets which begin or end to listen meanwhile, or share a hash bucket with one that does,
    /// one may be missing this time (`inet_diag_dump_icsk`). None comes twice.
    ///
    /// # Errors
    /// See [`SockDiagError`]; `into` may have got some of the sockets.
    pub fn listen(&mut self, into: &mut Vec<ListenSocket>) -> Result<(), SockDiagError> {
        let before = into.len();
        for (of, request) in
            [("IPv4 listeners", &mut self.inet), ("IPv6 listeners", &mut self.inet6)]
        {
            dump(&mut self.netlink, of, "tcp_diag", request, into, parse)?;
        }
        into[before..].sort_unstable_by_key(|socket| socket.cookie);
        into.dedup_by_key(|socket| socket.cookie);
        Ok(())
    }
}

/// A request for all sockets of `family` and `protocol` in `states`, with SKMEMINFO. SKV6ONLY comes
/// unasked with an IPv6 listener (`inet_diag_msg_attrs_fill`, net/ipv4/inet_diag.c).
pub(super) fn request(family: u8, protocol: u8, states: StateFlags) -> Vec<u8> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let extensions = ExtensionFlags::SKMEMINFO;
    let request = InetRequest { family, protocol, extensions, states, socket_id };
    let mut message =
        NetlinkMessage::new(NetlinkHeader::default(), SockDiagMessage::InetRequest(request).into());
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Adds each row of a dump to `into`, as `parse` understands it.
pub(super) fn dump<T>(
    netlink: &mut Netlink,
    of: &'static str,
    module: &'static str,
    request: &mut [u8],
    into: &mut Vec<T>,
    parse: fn(&[u8]) -> Result<T, SockDiagError>,
) -> Result<(), SockDiagError> {
    let before = into.len();
    let mut outcome = Ok(());
    let dumped = netlink.dump(request, |step| match step {
        Step::Begin => into.truncate(before),
        Step::Row { payload, .. } => match parse(payload) {
            Ok(socket) => into.push(socket),
            Err(error) => outcome = Err(error),
        },
    });
    match dumped {
        Ok(()) => outcome,
        Err(source) => Err(SockDiagError::dump(of, module, source)),
    }
}

/// A listener's row. A v4-mapped address stays the IPv6 address that it is bound as.
fn parse(payload: &[u8]) -> Result<ListenSocket, SockDiagError> {
    let row = Row::parse(payload)?;
    let (mut v6only, mut drops) = (false, Err(Absent::NotOnThisKernel));
    for attribute in row.attributes() {
        match attribute? {
            (INET_DIAG_SKV6ONLY, value) => v6only = value.first().is_some_and(|&byte| byte != 0),
            (INET_DIAG_SKMEMINFO, value) => {
                if let Some(n) = number(value, DROPS) {
                    drops = Ok(n);
                }
            }
            _ => {}
        }
    }
    let (addr, port) = row.local();
    Ok(ListenSocket {
        cookie: row.cookie(),
        inode: row.inode(),
        addr,
        port,
        v6only,
        length: row.rqueue(),
        limit: row.wqueue(),
        drops,
    })
}

/// The `u32` of SKMEMINFO with this index, if the kernel has it.
pub(super) fn number(memory: &[u8], index: usize) -> Option<u32> {
    let bytes = memory.get(4 * index..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// One row: `struct inet_diag_msg` (include/uapi/linux/inet_diag.h), then attributes.
pub(super) struct Row<'a> {
    fixed: &'a [u8; ROW_LEN],
    rest: &'a [u8],
    is_ipv6: bool,
}

impl<'a> Row<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Result<Self, SockDiagError> {
        let Some((fixed, rest)) = payload.split_first_chunk::<ROW_LEN>() else {
            return Err(SockDiagError::Truncated { got: payload.len() });
        };
        let is_ipv6 = match fixed[0] {
            AF_INET => false,
            AF_INET6 => true,
            got => return Err(SockDiagError::Family { got }),
        };
        Ok(Self { fixed, rest, is_ipv6 })
    }

    pub(super) fn state(&self) -> u8 {
        self.fixed[1]
    }

    pub(super) fn local(&self) -> (IpAddr, u16) {
        (self.addr(8), u16::from_be_bytes(*self.part(4)))
    }

    pub(super) fn remote(&self) -> (IpAddr, u16) {
        (self.addr(24), u16::from_be_bytes(*self.part(6)))
    }

    /// `sock_diag_save_cookie`, net/core/sock_diag.c
    pub(super) fn cookie(&self) -> Cookie {
        Cookie(u64::from(self.u32_at(44)) | u64::from(self.u32_at(48)) << 32)
    }

    /// Milliseconds until the socket's timer runs out.
    pub(super) fn expires(&self) -> u32 {
        self.u32_at(52)
    }

    pub(super) fn rqueue(&self) -> u32 {
        self.u32_at(56)
    }

    pub(super) fn wqueue(&self) -> u32 {
        self.u32_at(60)
    }

    pub(super) fn inode(&self) -> Inode {
        Inode(u64::from(self.u32_at(68)))
    }

    pub(super) fn attributes(
        &self,
    ) -> impl Iterator<Item = Result<(u16, &'a [u8]), SockDiagError>> + use<'a> {
        attributes(self.rest).map(|attribute| attribute.map_err(SockDiagError::Attributes))
    }

    fn addr(&self, at: usize) -> IpAddr {
        if self.is_ipv6 {
            Ipv6Addr::from(*self.part::<16>(at)).into()
        } else {
            Ipv4Addr::from(*self.part::<4>(at)).into()
        }
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_ne_bytes(*self.part(at))
    }

    fn part<const N: usize>(&self, at: usize) -> &[u8; N] {
        self.fixed[at..].first_chunk().expect("each field lies within the row")
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use netlink_packet_core::Parseable;
    use netlink_packet_sock_diag::inet::{InetResponse, nlas::Nla};
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};

    use super::*;
    use crate::sources::process::{Held, Pass, owners};

    /// A socket that listens on a free port of `addr`, and its row.
    fn listener(addr: &str, backlog: i32, v6only: bool) -> (std::net::TcpListener, SocketAddr) {
        let addr: SocketAddr = addr.parse().unwrap();
        let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::STREAM, None).unwrap();
        if addr.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, v6only).unwrap();
        }
        bind(&socket, &addr).unwrap();
        listen(&socket, backlog).unwrap();
        let listener = std::net::TcpListener::from(socket);
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    fn row(addr: SocketAddr) -> Option<ListenSocket> {
        let mut sockets = Vec::new();
        SockDiag::open().unwrap().listen(&mut sockets).unwrap();
        sockets.into_iter().find(|socket| (socket.addr, socket.port) == (addr.ip(), addr.port()))
    }

    #[test]
    fn shows_length_limit_and_owner_of_a_listener() {
        let (listener, addr) = listener("127.0.0.1:0", 5, false);
        let socket = row(addr).unwrap();
        assert_eq!((socket.length, socket.limit, socket.drops), (0, 5, Ok(0)));
        assert_eq!(socket.cookie, Cookie(sockopt::socket_cookie(&listener).unwrap()));
        let (wanted, mut held) = ([socket.inode].into(), Held::default());
        let owners = owners(&wanted, Pass::Full, &mut held).unwrap().owners;
        let me = crate::id::Pid(std::process::id());
        assert!(owners[&socket.inode].contains(&me), "{owners:?}");

        let _clients: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
        assert_eq!(row(addr).unwrap().length, 3);
        drop(listener);
        assert_eq!(row(addr), None);
    }

    #[test]
    fn tells_kinds_of_ipv6_listeners() {
        #[track_caller]
        fn check(addr: &str, v6only: bool, expected: bool) {
            let (_listener, addr) = listener(addr, 1, v6only);
            let socket = row(addr).unwrap();
            assert_eq!((socket.v6only, socket.limit), (expected, 1), "{addr}");
        }
        check("[::]:0", false, false);
        check("[::]:0", true, true);
        check("[::ffff:127.0.0.1]:0", false, false);
        // bind(2) sets it for any other address (`__inet6_bind`, net/ipv6/af_inet6.c).
        check("[::1]:0", false, true);
    }

    #[test]
    fn appends_and_gives_each_socket_once() {
        let (_listener, addr) = listener("127.0.0.1:0", 5, false);
        let first = row(addr).unwrap();
        let (mut diag, mut sockets) = (SockDiag::open().unwrap(), vec![first]);
        diag.listen(&mut sockets).unwrap();
        assert_eq!(sockets[0], first);
        assert!(sockets[1..].is_sorted_by(|a, b| a.cookie < b.cookie));
    }

    #[test]
    fn an_error_names_the_family_and_what_is_missing() {
        let mut request = request(AF_INET, 250, StateFlags::LISTEN);
        let mut netlink = Netlink::open(SOCK_DIAG).unwrap();
        let mut into = Vec::new();
        let error =
            dump(&mut netlink, "IPv4 listeners", "tcp_diag", &mut request, &mut into, parse)
                .unwrap_err();
        assert_eq!(
            error.to_string(),
            "sock_diag dump of IPv4 listeners: this kernel has no tcp_diag"
        );
        assert_eq!(error.absent(), Absent::NotOnThisKernel);
        let refused = NetlinkError::Refused(Errno::PERM.into());
        let error = SockDiagError::dump("IPv4 listeners", "tcp_diag", refused);
        assert_eq!(error.absent(), Absent::NotPermitted);
    }

    /// A row as the kernel would write it.
    fn encode(header: [u8; ROW_LEN], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        for (kind, value) in attributes {
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    /// The same fields by netlink-packet-sock-diag.
    fn oracle(bytes: &[u8]) -> ListenSocket {
        let InetResponse { header, nlas } = InetResponse::parse(bytes).unwrap();
        let memory = nlas.iter().rev().find_map(|nla| match nla {
            Nla::MemInfo(memory) => Some(memory.drops),
            _ => None,
        });
        let v6only = nlas.iter().rev().find_map(|nla| match nla {
            Nla::SkV6Only(v6only) => Some(*v6only),
            _ => None,
        });
        ListenSocket {
            cookie: Cookie(u64::from_le_bytes(header.socket_id.cookie)),
            inode: Inode(header.inode.into()),
            addr: header.socket_id.source_address,
            port: header.socket_id.source_port,
            v6only: v6only.unwrap_or(false),
            length: header.recv_queue,
            limit: header.send_queue,
            drops: memory.ok_or(Absent::NotOnThisKernel),
        }
    }

    #[test]
    fn a_short_row_is_an_error_and_an_old_one_has_no_drops() {
        let mut header = [0; ROW_LEN];
        assert_eq!(
            parse(&header[..71]).unwrap_err().to_string(),
            "sock_diag row: 71 bytes, expected at least 72"
        );
        assert_eq!(
            parse(&header).unwrap_err().to_string(),
            "sock_diag row: address family 0, expected 2 or 10"
        );
        header[0] = AF_INET;
        let old = encode(header, &[(INET_DIAG_SKMEMINFO, vec![0; 4 * DROPS])]);
        assert_eq!(parse(&old).unwrap().drops, Err(Absent::NotOnThisKernel));
        let malformed = [&header[..], &[1, 0, 7, 0]].concat();
        assert!(matches!(parse(&malformed), Err(SockDiagError::Attributes(_))));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            _ = parse(&bytes);
            bytes.first_mut().into_iter().for_each(|family| *family = AF_INET6);
            _ = parse(&bytes);
        }

        #[test]
        fn agrees_with_netlink_packet_sock_diag(
            ipv6 in any::<bool>(),
            header in prop::array::uniform32(any::<u8>()),
            numbers in prop::array::uniform32(any::<u8>()),
            attributes in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 36).prop_map(|v| (INET_DIAG_SKMEMINFO, v)),
                    any::<u8>().prop_map(|v| (INET_DIAG_SKV6ONLY, vec![v])),
                    any::<u8>().prop_map(|v| (8, vec![v])),
                    (100..200_u16, prop::collection::vec(any::<u8>(), 0..20)),
                ],
                0..6,
            ),
        ) {
            let mut row = [0; ROW_LEN];
            row[..32].copy_from_slice(&header);
            row[40..].copy_from_slice(&numbers);
            row[0] = if ipv6 { AF_INET6 } else { AF_INET };
            let bytes = encode(row, &attributes);
            if cfg!(target_endian = "little") {
                prop_assert_eq!(parse(&bytes).unwrap(), oracle(&bytes));
            }
        }
    }
}
