//! Clients, in crowds; they know how many of them are connected.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::wait_for;

/// Connections as their clients see them.
pub(crate) struct Clients(Vec<Socket>);

impl Clients {
    /// Starts `n` connections and waits for none.
    pub(crate) fn start(n: usize, addr: SocketAddr) -> Self {
        Self::prepared(n, addr, |_| {})
    }

    /// Starts `n` connections by Multipath TCP.
    pub(crate) fn multipath(n: usize, addr: SocketAddr) -> Self {
        Self::by(Some(Protocol::MPTCP), n, addr, |_| {})
    }

    /// Sends one byte with the SYN (TCP Fast Open).
    pub(crate) fn fast_open(addr: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("socket");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let sent = socket.send_to_with_flags(b"x", &addr.into(), libc::MSG_FASTOPEN);
        assert_eq!(sent.expect("sendto"), 1);
        Self(vec![socket])
    }

    /// Starts `n` connections with sockets to which `prepare` did something before.
    pub(crate) fn prepared(n: usize, addr: SocketAddr, prepare: fn(&Socket)) -> Self {
        Self::by(None, n, addr, prepare)
    }

    fn by(protocol: Option<Protocol>, n: usize, addr: SocketAddr, prepare: fn(&Socket)) -> Self {
        let target = SockAddr::from(addr);
        let connect = |_| {
            let socket =
                Socket::new(Domain::for_address(addr), Type::STREAM, protocol).expect("socket");
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            prepare(&socket);
            match socket.connect(&target) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                    // a listener that is just gone answers with a reset, and so does one that sheds,
                    // which may be quicker than connect(2)
                    let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
                    assert!(kinds.contains(&error.kind()), "{addr}: {error}");
                }
                Ok(()) | Err(_) => {}
            }
            socket
        };
        Self((0..n).map(connect).collect())
    }

    /// Makes `n` connections; returns when the clients think that they are established.
    #[track_caller]
    pub(crate) fn connect(n: usize, addr: SocketAddr) -> Self {
        let clients = Self::start(n, addr);
        wait_for("clients to be connected", || clients.connected() == n);
        clients
    }

    /// Takes in `more`.
    pub(crate) fn join(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// How many of them are connected, as far as they know.
    pub(crate) fn connected(&self) -> usize {
        self.0.iter().filter(|socket| socket.peer_addr().is_ok()).count()
    }

    /// How many of them wait for a connection or for a byte: no others know what became of them.
    pub(crate) fn waiting(&self) -> usize {
        let waits = |socket: &&Socket| {
            let received = io::Read::read(&mut &**socket, &mut [0]);
            received.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        self.0.iter().filter(waits).count()
    }

    /// Each sends one byte.
    pub(crate) fn send(&self) {
        for socket in &self.0 {
            assert_eq!(socket.send(b"x").expect("send"), 1);
        }
    }

    /// Closes them all by RST.
    pub(crate) fn reset(self) {
        for socket in self.0 {
            socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        }
    }
}

/// A TCP socket that is bound, and neither listens nor is connected.
pub(crate) fn bind(addr: &str) -> Socket {
    let addr: SocketAddr = addr.parse().expect("address and port");
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("socket");
    socket.bind(&addr.into()).expect("bind");
    socket
}
