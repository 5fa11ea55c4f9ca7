//! UDP sockets that are bound and not connected: receive queue, its limit, drops.
//!
//! In: sock_diag dumps of the calling thread's network namespace, IPv4 and IPv6, with SKMEMINFO
//! (`udp_dump`, net/ipv4/udp_diag.c). Out: [`UdpSocket`]. Cost: 22 µs without any, 0.47 ms with 1,000
//! (Linux 6.18 on two virtual cores).
//! Connected ones are left out: they hear one peer alone and are mostly a client's, one for each
//! question it asks, so that nobody would know them by their port; what they drop is in the
//! namespace's `UdpRcvbufErrors`. The kernel passes them over: only they are ESTABLISHED.

use netlink_packet_sock_diag::{
    constants::{AF_INET, AF_INET6, INET_DIAG_SKMEMINFO, IPPROTO_UDP},
    inet::StateFlags,
};
use rustix::net::netlink::SOCK_DIAG;

use crate::{
    input::{Absent, UdpSocket},
    sources::sock_diag::{DROPS, RCVBUF, RMEM_ALLOC, Row, SockDiagError, dump, number, request},
    sys::netlink::Netlink,
};

/// The sockets of the calling thread's network namespace. Keeps nothing open.
///
/// # Errors
/// See [`SockDiagError`]; without the module `udp_diag`, [`SockDiagError::NoModule`].
pub fn read() -> Result<Vec<UdpSocket>, SockDiagError> {
    let mut netlink = Netlink::open(SOCK_DIAG).map_err(SockDiagError::Open)?;
    let mut sockets = Vec::new();
    for (of, family) in [("IPv4 UDP sockets", AF_INET), ("IPv6 UDP sockets", AF_INET6)] {
        let mut request = request(family, IPPROTO_UDP, StateFlags::CLOSE);
        dump(&mut netlink, of, "udp_diag", &mut request, &mut sockets, parse)?;
    }
    sockets.sort_unstable_by_key(|socket: &UdpSocket| socket.cookie);
    sockets.dedup_by_key(|socket| socket.cookie);
    Ok(sockets)
}

fn parse(payload: &[u8]) -> Result<UdpSocket, SockDiagError> {
    let row = Row::parse(payload)?;
    let (addr, port) = row.local();
    let mut socket = UdpSocket {
        cookie: row.cookie(),
        inode: row.inode(),
        addr,
        port,
        queue_bytes: row.rqueue(),
        limit_bytes: 0,
        drops: Err(Absent::NotOnThisKernel),
    };
    for attribute in row.attributes() {
        let (kind, memory) = attribute?;
        if kind == INET_DIAG_SKMEMINFO {
            socket.queue_bytes = number(memory, RMEM_ALLOC).unwrap_or(socket.queue_bytes);
            socket.limit_bytes = number(memory, RCVBUF).unwrap_or(0);
            socket.drops = number(memory, DROPS).ok_or(Absent::NotOnThisKernel);
        }
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket as Socket};

    use proptest::prelude::*;
    use rustix::net::sockopt;

    use super::*;

    fn bound(addr: &str) -> (Socket, SocketAddr) {
        let socket = Socket::bind(addr).unwrap();
        let addr = socket.local_addr().unwrap();
        (socket, addr)
    }

    fn row(addr: SocketAddr) -> Option<UdpSocket> {
        let sockets = read().unwrap();
        sockets.into_iter().find(|socket| (socket.addr, socket.port) == (addr.ip(), addr.port()))
    }

    #[test]
    fn shows_a_queue_that_nobody_reads_until_the_socket_connects_or_closes() {
        #[track_caller]
        fn check(addr: &str) {
            let (socket, addr) = bound(addr);
            let empty = row(addr).unwrap();
            assert_eq!(empty.cookie, crate::id::Cookie(sockopt::socket_cookie(&socket).unwrap()));
            assert_eq!((empty.queue_bytes, empty.drops), (0, Ok(0)));
            let limit = sockopt::socket_recv_buffer_size(&socket).unwrap();
            assert_eq!(usize::try_from(empty.limit_bytes).unwrap(), limit);

            socket.send_to(&[0; 100], addr).unwrap();
            assert!(100 < row(addr).unwrap().queue_bytes);
            socket.connect(addr).unwrap();
            assert_eq!(row(addr), None);
        }
        check("127.0.0.1:0");
        check("[::1]:0");
    }

    #[test]
    fn a_row_without_memory_is_understood() {
        let mut bytes = [0; 72];
        bytes[0] = AF_INET;
        bytes[56] = 5;
        let socket = parse(&bytes).unwrap();
        assert_eq!(socket.drops, Err(Absent::NotOnThisKernel));
        assert!(parse(&bytes[1..]).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            _ = parse(&bytes);
            bytes.first_mut().into_iter().for_each(|family| *family = AF_INET6);
            _ = parse(&bytes);
        }
    }
}
