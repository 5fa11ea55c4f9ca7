//! UDP with several sockets at one address, and nothing that grows.
//!
//! The kernel spreads datagrams over the sockets by their source (SO_REUSEPORT), and each is read
//! and written in batches (recvmmsg(2), sendmmsg(2)). What is received lies in one of a fixed
//! number of buffers until its [`Datagram`] is dropped; without a free one it is dropped, and
//! counted. So is what is longer than a datagram may be, what comes from one source faster than it
//! may, and what the kernel has no buffer to send twice in a row.
//!
//! ```
//! use backlogd_shed::udp::{UdpConfig, UdpGroup};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let group = UdpGroup::bind("127.0.0.1:0".parse()?, UdpConfig::default())?;
//! let (address, handle) = (group.local_addr(), group.handle());
//! for mut member in group.into_members() {
//!     tokio::spawn(async move {
//!         let mut received = Vec::new();
//!         while member.recv(&mut received).await.is_ok() {
//!             let echoes: Vec<_> = received.iter().map(|it| (&it[..], it.peer())).collect();
//!             member.send(&echoes).await?;
//!             received.clear(); // gives the buffers back
//!         }
//!         std::io::Result::Ok(())
//!     });
//! }
//! let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
//! client.send_to(b"hello", address).await?;
//! let mut answer = [0; 5];
//! client.recv(&mut answer).await?;
//! assert_eq!((&answer, handle.stats().received), (b"hello", 1));
//! # Ok(())
//! # }
//! ```

use std::{
    io,
    net::{self, SocketAddr},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::Interest,
    net::UdpSocket,
    runtime,
    time::{self},
};

use crate::{
    socket::Reuse,
    sys::{self, Received},
};

mod buffer;
mod config;
mod sending;
mod source;
mod stats;
#[cfg(test)]
mod tests;

pub use buffer::Datagram;
use buffer::Slab;
pub use config::{SourceRate, UdpConfig, UdpError};
use sending::{Sending, Step};
use source::Sources;
use stats::Counters;
pub use stats::{Dropped, UdpStats};

/// Datagrams of one recvmmsg(2) or sendmmsg(2).
const BATCH: usize = sys::MESSAGES;

/// Sockets at one address.
#[derive(Debug)]
pub struct UdpGroup {
    members: Vec<UdpMember>,
    local: SocketAddr,
    shared: Arc<Shared>,
}

/// One socket of a group, for one task.
#[derive(Debug)]
pub struct UdpMember {
    socket: UdpSocket,
    /// What the next batch is received into; those that hold a datagram are exchanged for free ones
    /// of the slab.
    buffers: Vec<Box<[u8]>>,
    slab: Arc<Slab>,
    max_datagram: usize,
    shared: Arc<Shared>,
}

/// A group's counters, for any task or thread.
#[derive(Clone, Debug)]
pub struct UdpHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counters: Counters,
    since: Instant,
    sources: Option<Mutex<Sources>>,
}

impl UdpGroup {
    /// Opens the sockets at `address`. To be called within a runtime.
    ///
    /// # Errors
    /// The configuration cannot hold, there is no runtime, somebody else has the address, or the
    /// kernel refuses a socket.
    ///
    /// # Panics
    /// The runtime has no IO ([`enable_io`](tokio::runtime::Builder::enable_io)).
    pub fn bind(address: SocketAddr, config: UdpConfig) -> Result<Self, UdpError> {
        config.check()?;
        if runtime::Handle::try_current().is_err() {
            return Err(UdpError::NoRuntime);
        }
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            since: Instant::now(),
            sources: config.rate.map(|rate| Mutex::new(Sources::new(rate))),
        });
        let failed = |source| UdpError::at(address, source);
        let mut local = address;
        let mut reuse = if config.join_others { Reuse::Join } else { Reuse::Begin };
        let mut members = Vec::with_capacity(config.sockets);
        for _ in 0..config.sockets {
            let socket = open(local, reuse).map_err(failed)?;
            reuse = Reuse::Join;
            // the first one may choose the port
            local = socket.local_addr().map_err(failed)?;
            members.push(UdpMember {
                socket: UdpSocket::from_std(socket).map_err(failed)?,
                buffers: (0..BATCH).map(|_| buffer::new(config.max_datagram)).collect(),
                slab: Arc::new(Slab::new(config.buffers, config.max_datagram)),
                max_datagram: config.max_datagram,
                shared: Arc::clone(&shared),
            });
        }
        Ok(Self { members, local, shared })
    }

    /// The address of all.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The group's counters.
    #[must_use]
    pub fn handle(&self) -> UdpHandle {
        UdpHandle { shared: Arc::clone(&self.shared) }
    }

    /// The sockets, each for a task of its own.
    #[must_use]
    pub fn into_members(self) -> Vec<UdpMember> {
        self.members
    }
}

fn open(address: SocketAddr, reuse: Reuse) -> io::Result<net::UdpSocket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if reuse == Reuse::Join {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    // only after bind(2), which refuses then where others are, be it with SO_REUSEPORT; the group
    // is made when the second one joins (`reuseport_add_sock`, net/core/sock_reuseport.c)
    if reuse == Reuse::Begin {
        socket.set_reuse_port(true)?;
    }
    Ok(socket.into())
}

impl UdpHandle {
    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> UdpStats {
        self.shared.counters.snapshot()
    }
}

impl UdpMember {
    /// The socket itself, for options.
    #[must_use]
    pub fn get_ref(&self) -> &UdpSocket {
        &self.socket
    }

    /// Waits until there is a datagram, and adds all that are there, up to 32, to `received`. It
    /// may be cancelled: nothing is lost.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn recv(&mut self, received: &mut Vec<Datagram>) -> io::Result<()> {
        let before = received.len();
        let mut batch = [Received::default(); BATCH];
        while received.len() == before {
            let Self { socket, buffers, .. } = &mut *self;
            let receive = || sys::receive(socket, buffers, &mut batch);
            let n = socket.async_io(Interest::READABLE, receive).await?;
            self.take(&batch[..n], received);
        }
        Ok(())
    }

    /// Moves what was received out of the buffers, or drops it.
    fn take(&mut self, batch: &[Received], received: &mut Vec<Datagram>) {
        let counters = &self.shared.counters;
        let now = self.shared.since.elapsed();
        let sources = self.shared.sources.as_ref();
        let mut sources = sources.map(|it| it.lock().unwrap_or_else(PoisonError::into_inner));
        for (buffer, &Received { len, from }) in self.buffers.iter_mut().zip(batch) {
            counters.received.fetch_add(1, Ordering::Relaxed);
            let Some(peer) = from else { continue };
            if self.max_datagram < len {
                counters.dropped(Dropped::Oversize);
            } else if sources.as_mut().is_some_and(|it| !it.admits(peer.ip(), now)) {
                counters.dropped(Dropped::Rate);
            } else if let Some(datagram) = self.slab.exchange(buffer, len, peer) {
                received.push(datagram);
            } else {
                counters.dropped(Dropped::Queue);
            }
        }
    }

    /// Sends `datagrams` in their order, and gives how many went. One for which the kernel has no
    /// buffer is tried once more, after 50 µs, which the runtime's timer may make a millisecond.
    /// What is dropped is counted; a datagram that was handed to the kernel may be lost all the
    /// same.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn send(&self, datagrams: &[(&[u8], SocketAddr)]) -> io::Result<usize> {
        let counters = &self.shared.counters;
        let mut sending = Sending::new(datagrams.len());
        let mut n = 0;
        loop {
            let left = &datagrams[sending.next()..];
            let left = &left[..left.len().min(BATCH)];
            let result = match left {
                [] => return Ok(n),
                [(bytes, _), ..] if self.max_datagram < bytes.len() => {
                    Err(io::Error::from_raw_os_error(libc::EMSGSIZE))
                }
                _ => {
                    let fits = left.iter().take_while(|(it, _)| it.len() <= self.max_datagram);
                    let left = &left[..fits.count()];
                    let send = || sys::send(&self.socket, left);
                    self.socket.async_io(Interest::WRITABLE, send).await
                }
            };
            match sending.after(result)? {
                Step::Sent(some) => {
                    n += some;
                    counters.sent.fetch_add(some as u64, Ordering::Relaxed);
                }
                Step::Wait(pause) => time::sleep(pause).await,
                Step::Drop(why) => counters.dropped(why),
                Step::Again => {}
            }
        }
    }
}

/// The pause before the second attempt.
const PAUSE: Duration = Duration::from_micros(50);
