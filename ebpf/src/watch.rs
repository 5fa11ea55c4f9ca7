//! Events for somebody who watches. With no watcher each program asks one word and goes on.

use core::ptr;

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use backlogd_abi::{
    Record, WATCHED, cell,
    event::{Event, Filter, UNKNOWN},
};

use crate::{
    maps::{EVENTS, FILTER, count_cell, now},
    probe::{self, Peer},
    sock::{self, Sock},
};

/// Whether what the current task is has to do with the event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// The task called for it.
    Task,
    /// It interrupted whatever task there is.
    Interrupt,
}

/// What is special about one event.
#[derive(Clone, Copy)]
pub(crate) struct Detail {
    pub(crate) context: Context,
    /// As [`Event::span`].
    pub(crate) span: u64,
    /// As [`Event::errno`].
    pub(crate) errno: u32,
    /// As [`Event::reason`].
    pub(crate) reason: u16,
    pub(crate) peer: Peer,
}

impl Detail {
    pub(crate) const TASK: Self = Self {
        context: Context::Task,
        span: UNKNOWN,
        errno: 0,
        reason: 0,
        peer: Peer { family: 0, port: 0, addr: [0; 2] },
    };
    pub(crate) const INTERRUPT: Self = Self { context: Context::Interrupt, ..Self::TASK };
}

/// What somebody wants to see, if it can be events of `kind`.
#[inline(always)]
pub(crate) fn watcher(kind: u16) -> Option<*const Filter> {
    let filter = FILTER.get_ptr(0)?;
    // SAFETY: a map value; volatile, since the agent writes it.
    let kinds = unsafe { (&raw const (*filter).kinds).read_volatile() };
    (kinds & 1 << kind != 0).then_some(filter)
}

/// The other end of a socket of known type.
#[inline(always)]
pub(crate) fn peer_of(sk: Sock) -> Peer {
    Peer { family: sock::family(sk), port: sock::peer_port(sk), addr: sock::peer(sk) }
}

/// Sends an event of a listener, if somebody wants it; whether somebody did. `detail` is asked only
/// then.
#[inline(always)]
pub(crate) fn tell(kind: u16, record: *const Record, detail: impl FnOnce() -> Detail) -> bool {
    let Some(filter) = watcher(kind) else { return false };
    let detail = detail();
    // SAFETY: map values.
    unsafe {
        let watched = (&raw const (*record).marks).read_volatile() & WATCHED != 0;
        if !passes(filter, (*record).netns, (*record).port, watched, detail.context) {
            return false;
        }
    }
    // SAFETY: a map value.
    send(kind, record, detail, unsafe { (*record).netns });
    true
}

/// Sends an event of the current task that belongs to no listener, if somebody wants it. A filter by
/// port does not let it pass.
#[inline(always)]
pub(crate) fn tell_alone(kind: u16, detail: impl FnOnce() -> Detail) {
    let Some(filter) = watcher(kind) else { return };
    let detail = detail();
    let netns = if probe::is_allowed() { probe::netns() } else { None };
    let netns = netns.unwrap_or(0);
    if passes(filter, netns, 0, false, detail.context) {
        send(kind, ptr::null(), detail, netns);
    }
}

#[inline(always)]
fn passes(filter: *const Filter, netns: u32, port: u16, watched: bool, context: Context) -> bool {
    // SAFETY: a map value, throughout.
    let wanted = unsafe { ((*filter).netns, (*filter).port, (*filter).by_owner) };
    if wanted.0 != 0 && netns != 0 && wanted.0 != netns || wanted.1 != 0 && wanted.1 != port {
        return false;
    }
    if wanted.2 == 0 || watched {
        return true;
    }
    if context == Context::Interrupt {
        return false;
    }
    // SAFETY: as above.
    let (pid, comm) = unsafe { ((*filter).pid, (&raw const (*filter).comm).cast::<u64>()) };
    if pid != 0 && pid != current_pid() {
        return false;
    }
    // SAFETY: 16 bytes, aligned to 4 at least; BPF loads need no more.
    let (high, low) = unsafe { (comm.read_unaligned(), comm.add(1).read_unaligned()) };
    if high == 0 {
        return true;
    }
    let Ok(current) = bpf_get_current_comm() else { return false };
    let current = current.as_ptr().cast::<u64>();
    // SAFETY: as above.
    unsafe { current.read_unaligned() == high && current.add(1).read_unaligned() == low }
}

#[inline(always)]
fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

#[inline(always)]
fn send(kind: u16, record: *const Record, detail: Detail, netns: u32) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count_cell(cell::EVENTS_LOST);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the ring buffer's memory, as long as an Event; the record is a map value or null.
    unsafe {
        ptr::write_bytes(event.cast::<u64>(), 0, size_of::<Event>() / 8);
        (*event).time = now();
        (*event).span = detail.span;
        (*event).kind = kind;
        (*event).reason = detail.reason;
        (*event).errno = detail.errno;
        (*event).family = detail.peer.family;
        (*event).peer_port = detail.peer.port;
        (&raw mut (*event).peer).cast::<[u64; 2]>().write(detail.peer.addr);
        (*event).netns = netns;
        if !record.is_null() {
            (*event).cookie = (*record).cookie;
            (*event).family = (*record).family;
            (*event).port = (*record).port;
            let addr = (&raw const (*record).addr).cast::<[u64; 2]>().read();
            (&raw mut (*event).addr).cast::<[u64; 2]>().write(addr);
        }
        if detail.context == Context::Task {
            (*event).pid = current_pid();
            if let Ok(comm) = bpf_get_current_comm() {
                (*event).comm = comm;
            }
        }
    }
    entry.submit(0);
}
