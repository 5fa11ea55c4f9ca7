//! What sock_diag(7) says of the sockets of a port: who listens there, which handshakes go on, and
//! who has it for UDP.
//!
//! In: one netlink dump. Cost: a walk over the kernel's table of connections, milliseconds. Nothing
//! of it is in the way of an accept.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// The bits of states (include/net/tcp_states.h).
const ESTABLISHED: u32 = 1 << 1;
const SYN_RECV: u32 = 1 << 3;
const NEW_SYN_RECV: u32 = 1 << 12;
/// That of a UDP socket that is not connected, too.
const CLOSE: u32 = 1 << 7;
const LISTEN: u32 = 1 << 10;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;

/// A row of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Ports, addresses and interface. Not the cookie: a handshake that gets it here may have left
    /// a copy without it to the connection in its place (`inet_csk_clone_lock`,
    /// net/ipv4/inet_connection_sock.c).
    pub(crate) id: [u8; 40],
    pub(crate) uid: u32,
    /// 0: it has none, as a handshake.
    pub(crate) inode: u32,
}

/// Sockets that listen on `port`, of both families.
pub(crate) fn listeners(port: u16) -> io::Result<Vec<Row>> {
    dump(TCP, port, LISTEN)
}

/// UDP sockets that are bound to `port`, of both families.
pub(crate) fn bound(port: u16) -> io::Result<Vec<Row>> {
    dump(UDP, port, CLOSE | ESTABLISHED)
}

/// Handshakes that go on with `port`, of both families.
pub(crate) fn handshakes(port: u16) -> io::Result<Vec<Row>> {
    dump(TCP, port, SYN_RECV | NEW_SYN_RECV)
}

fn dump(protocol: u8, port: u16, states: u32) -> io::Result<Vec<Row>> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut rows, mut buf) = (Vec::new(), vec![0; 32 * 1_024]);
    for family in [AF_INET, AF_INET6] {
        socket.send(&request(family, protocol, port, states))?;
        loop {
            let n = (&socket).read(&mut buf)?;
            if parse(&buf[..n], &mut rows)? {
                break;
            }
        }
    }
    Ok(rows)
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

fn request(family: u8, protocol: u8, port: u16, states: u32) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &72_u32.to_ne_bytes());
    put(4, &20_u16.to_ne_bytes()); // SOCK_DIAG_BY_FAMILY
    put(6, &0x301_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
    put(HEADER, &[family, protocol]);
    put(HEADER + 4, &states.to_ne_bytes());
    put(HEADER + 8, &port.to_be_bytes());
    bytes
}

/// Adds what one read of a dump has; whether it was the last one.
fn parse(mut bytes: &[u8], rows: &mut Vec<Row>) -> io::Result<bool> {
    let cut = || io::Error::from(io::ErrorKind::InvalidData);
    while !bytes.is_empty() {
        let len = usize::try_from(u32::from_ne_bytes(part(bytes, 0).ok_or_else(cut)?))
            .map_err(|_| cut())?;
        let message = bytes.get(..len.max(HEADER)).ok_or_else(cut)?;
        match u16::from_ne_bytes(part(message, 4).ok_or_else(cut)?) {
            3 => return Ok(true), // NLMSG_DONE
            2 => {
                let errno = i32::from_ne_bytes(part(message, HEADER).ok_or_else(cut)?);
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            _ => rows.push(row(&message[HEADER..]).ok_or_else(cut)?),
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct inet_diag_msg`.
fn row(message: &[u8]) -> Option<Row> {
    let uid = u32::from_ne_bytes(part(message, 64)?);
    let inode = u32::from_ne_bytes(part(message, 68)?);
    Some(Row { id: part(message, 4)?, uid, inode })
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_listener_of_ours_is_there_by_its_inode() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let rows = listeners(port).unwrap();
        let link = std::fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&listener)
        ));
        let expected = format!("socket:[{}]", rows[0].inode);
        assert_eq!((rows.len(), link.unwrap().to_str().unwrap()), (1, &*expected));
        assert_eq!(handshakes(port).unwrap(), []);
        drop(listener);
        assert_eq!(listeners(port).unwrap(), []);
    }

    #[test]
    fn an_error_is_one() {
        let mut message = vec![0; 36];
        message[0] = 36;
        message[4] = 2;
        message[HEADER..HEADER + 4].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let err = parse(&message, &mut Vec::new()).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes, &mut Vec::new()));
        }
    }
}
