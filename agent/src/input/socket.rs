//! Sockets as sock_diag shows them: those that listen, and those of UDP.

use std::net::IpAddr;

use super::Known;
use crate::id::{Cookie, Inode};

/// A socket in state LISTEN, as sock_diag shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenSocket {
    /// Names the socket for good.
    pub cookie: Cookie,
    /// Its inode; 0 for a socket that no descriptor refers to.
    pub inode: Inode,
    /// Local address.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// `IPV6_V6ONLY`; false on an IPv4 socket.
    pub v6only: bool,
    /// Connections that wait for accept(2): `idiag_rqueue` (`tcp_diag_get_info`,
    /// net/ipv4/tcp_diag.c). Range `0..=limit + 1`.
    pub length: u32,
    /// The accept-queue limit, `sk_max_ack_backlog`: `idiag_wqueue`.
    pub limit: u32,
    /// `sk_drops`, from SKMEMINFO. Wraps at 2^32.
    pub drops: Known<u32>,
}

/// A bound UDP socket that is not connected, as sock_diag shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    /// Names the socket for good.
    pub cookie: Cookie,
    /// Its inode; 0 for a socket that no descriptor refers to.
    pub inode: Inode,
    /// Local address.
    pub addr: IpAddr,
    /// Local port.
    pub port: u16,
    /// Memory of the datagrams that wait to be received, with the kernel's overhead:
    /// `SK_MEMINFO_RMEM_ALLOC`.
    pub queue_bytes: u32,
    /// How much of it there may be (`SO_RCVBUF` as the kernel doubles it): `SK_MEMINFO_RCVBUF`.
    pub limit_bytes: u32,
    /// `sk_drops`. Wraps at 2^32.
    pub drops: Known<u32>,
}
