//! Events for somebody who watches.
//!
//! In: the ring buffer EVENTS. Out: [`Event`]. Cost: none while nobody watches; else one copy of
//! 96 bytes per event, and no system call while there are more. What the ring buffer has no room
//! for is lost and counted by the programs. Not here: who owns a listener.

use std::{
    ffi::CStr,
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use aya::maps::{Array, Map, MapData, MapError, RingBuf};
use backlogd_abi::event as abi;
use thiserror::Error;

use crate::{
    errno::Errno,
    event::{Comm, Event, EventKind, Filter, Reason, Task},
    id::{Cookie, NetnsId, Pid},
    time::{Monotonic, Nanos},
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

const _: () = assert!(EventKind::ALL.len() == abi::kind::COUNT as usize);
const _: () = assert!(EventKind::Syn as u16 == abi::kind::SYN);
const _: () = assert!(EventKind::Accept as u16 == abi::kind::ACCEPT);
const _: () = assert!(EventKind::Close as u16 == abi::kind::CLOSE);
const _: () = assert!(EventKind::ConnectError as u16 == abi::kind::CONNECT_ERROR);

/// Why nobody can watch.
#[derive(Debug, Error)]
pub enum WatchError {
    /// No program runs.
    #[error("no eBPF program runs: {0}")]
    NoPrograms(String),
    /// A map is missing, taken already, or of another kind.
    #[error("the eBPF object has no map {0} of the expected kind")]
    Map(&'static str),
    /// The ring buffer cannot be mapped into memory.
    #[error("the eBPF ring buffer cannot be read")]
    RingBuffer(#[source] MapError),
    /// The filter cannot be set.
    #[error("the filter cannot be set")]
    Filter(#[source] MapError),
}

/// What a program sent that is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Fewer bytes than an event has.
    #[error("event of {got} bytes, expected {}", size_of::<abi::Event>())]
    Truncated {
        /// How many there are.
        got: usize,
    },
    /// A kind that nobody knows.
    #[error("event of kind {got}, expected one below {}", abi::kind::COUNT)]
    Kind {
        /// Its number.
        got: u16,
    },
}

/// The reader's end of the ring buffer. Its descriptor is readable while there are events.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Maps EVENTS into memory.
    ///
    /// # Errors
    /// [`WatchError`]
    pub fn open(map: Map) -> Result<Self, WatchError> {
        match map {
            Map::RingBuf(_) => {
                RingBuf::try_from(map).map(|ring| Self { ring }).map_err(WatchError::RingBuffer)
            }
            _ => Err(WatchError::Map("EVENTS")),
        }
    }
}

/// The oldest event first; `None` when there is none at the moment.
impl Iterator for Events {
    type Item = Result<Event, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.ring.next().map(|bytes| decode(&bytes))
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// What the programs let through: nothing, until a filter is set.
pub struct Watch {
    filter: Array<MapData, [u8; size_of::<abi::Filter>()]>,
}

impl Watch {
    /// Takes FILTER.
    ///
    /// # Errors
    /// [`WatchError::Map`]
    pub fn open(map: Map) -> Result<Self, WatchError> {
        let filter = Array::try_from(map).map_err(|_| WatchError::Map("FILTER"))?;
        Ok(Self { filter })
    }

    /// Lets through what `filter` takes.
    ///
    /// # Errors
    /// [`WatchError::Filter`]; then nothing, or what was let through before.
    pub fn set(&mut self, filter: &Filter) -> Result<(), WatchError> {
        let filter = encode(filter);
        // nobody sees one half of a filter and another half of the one before
        self.write(&abi::Filter { kinds: 0, ..filter })?;
        self.write(&filter)
    }

    /// Lets nothing through.
    ///
    /// # Errors
    /// [`WatchError::Filter`]
    pub fn stop(&mut self) -> Result<(), WatchError> {
        self.write(&abi::Filter::default())
    }

    fn write(&mut self, filter: &abi::Filter) -> Result<(), WatchError> {
        self.filter.set(0, bytes(filter), 0).map_err(WatchError::Filter)
    }
}

/// As the programs read it.
fn encode(filter: &Filter) -> abi::Filter {
    abi::Filter {
        kinds: filter.kinds.iter().fold(0, |bits, kind| bits | 1 << kind as u32),
        netns: filter.netns.map_or(0, |netns| netns.0),
        pid: filter.pid.map_or(0, |pid| pid.0),
        port: filter.port.unwrap_or(0),
        by_owner: filter.by_owner().into(),
        comm: filter.comm.map_or([0; 16], Comm::bytes),
    }
}

fn bytes(filter: &abi::Filter) -> [u8; size_of::<abi::Filter>()] {
    let mut bytes = [0; size_of::<abi::Filter>()];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(offset_of!(abi::Filter, kinds), &filter.kinds.to_ne_bytes());
    put(offset_of!(abi::Filter, netns), &filter.netns.to_ne_bytes());
    put(offset_of!(abi::Filter, pid), &filter.pid.to_ne_bytes());
    put(offset_of!(abi::Filter, port), &filter.port.to_ne_bytes());
    put(offset_of!(abi::Filter, by_owner), &filter.by_owner.to_ne_bytes());
    put(offset_of!(abi::Filter, comm), &filter.comm);
    bytes
}

/// One event from the bytes of a [`abi::Event`].
///
/// # Errors
/// [`DecodeError`]: the agent and its programs do not fit each other.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let Some((bytes, _)) = bytes.split_first_chunk::<{ size_of::<abi::Event>() }>() else {
        return Err(DecodeError::Truncated { got: bytes.len() });
    };
    let number = two(bytes, offset_of!(abi::Event, kind));
    let kind = EventKind::ALL.get(usize::from(number)).copied();
    let family = two(bytes, offset_of!(abi::Event, family));
    let addr = |addr, port| address(family, at(bytes, addr), two(bytes, port));
    let peer = addr(offset_of!(abi::Event, peer), offset_of!(abi::Event, peer_port));
    let (span, pid) =
        (eight(bytes, offset_of!(abi::Event, span)), four(bytes, offset_of!(abi::Event, pid)));
    let comm = at::<16>(bytes, offset_of!(abi::Event, comm));
    Ok(Event {
        at: Monotonic(eight(bytes, offset_of!(abi::Event, time))),
        kind: kind.ok_or(DecodeError::Kind { got: number })?,
        netns: known(four(bytes, offset_of!(abi::Event, netns))).map(NetnsId),
        cookie: known(eight(bytes, offset_of!(abi::Event, cookie))).map(Cookie),
        local: addr(offset_of!(abi::Event, addr), offset_of!(abi::Event, port)),
        // a connection has a port at both ends: without it the hook has seen no peer
        peer: peer.filter(|peer| peer.port() != 0),
        span: (span != abi::UNKNOWN).then_some(Nanos(span)),
        errno: known(four(bytes, offset_of!(abi::Event, errno))).map(Errno),
        reason: reason(two(bytes, offset_of!(abi::Event, reason))),
        task: known(pid).map(|pid| Task { pid: Pid(pid), comm: text(&comm) }),
    })
}

/// One that the agent does not know counts as none, as other drops do.
fn reason(number: u16) -> Option<Reason> {
    match number {
        abi::reason::ACCEPT_QUEUE_FULL_SYN => Some(Reason::AcceptQueueFullSyn),
        abi::reason::ACCEPT_QUEUE_FULL_ACK => Some(Reason::AcceptQueueFullAck),
        abi::reason::SYN_QUEUE_FULL => Some(Reason::SynQueueFull),
        _ => None,
    }
}

fn address(family: u16, addr: [u8; 16], port: u16) -> Option<SocketAddr> {
    let ip = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::new(addr[0], addr[1], addr[2], addr[3])),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(addr)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// What stands before the first zero.
fn text(comm: &[u8; 16]) -> String {
    let name = CStr::from_bytes_until_nul(comm).map_or(&comm[..], CStr::to_bytes);
    String::from_utf8_lossy(name).into_owned()
}

/// 0 stands for what is not known.
fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn at<const N: usize>(bytes: &[u8; size_of::<abi::Event>()], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

fn two(bytes: &[u8; size_of::<abi::Event>()], offset: usize) -> u16 {
    u16::from_ne_bytes(at(bytes, offset))
}

fn four(bytes: &[u8; size_of::<abi::Event>()], offset: usize) -> u32 {
    u32::from_ne_bytes(at(bytes, offset))
}

fn eight(bytes: &[u8; size_of::<abi::Event>()], offset: usize) -> u64 {
    u64::from_ne_bytes(at(bytes, offset))
}

#[cfg(test)]
mod tests;
