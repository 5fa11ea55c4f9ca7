//! Which descriptors are open connections, so that a drain can end those that are left.
//!
//! A table by descriptor number, a byte each: no lock and, but for a chunk now and then, no
//! allocation. A connection leaves it before its close(2), so that a number that was given to
//! somebody else is never touched: while the drain ends one, its owner waits to close it.

use std::{
    hint,
    os::fd::{AsRawFd as _, RawFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use tokio::net::TcpStream;

use crate::{shared::Shared, sys};

const FREE: u8 = 0;
const OPEN: u8 = 1;
/// The drain has it for the moment.
const BUSY: u8 = 2;
const ENDED: u8 = 3;

const CHUNK: usize = 4_096;
/// Descriptors above these are not ended by a drain: fs.nr_open is 2^20 by default.
const CHUNKS: usize = 512;

/// The open connections of one listener.
pub(crate) struct Registry {
    chunks: Box<[OnceLock<Box<[AtomicU8]>>]>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    fn slot(&self, fd: RawFd) -> Option<&AtomicU8> {
        let fd = usize::try_from(fd).ok()?;
        let chunk = self.chunks.get(fd / CHUNK)?;
        let slots = chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU8::new(FREE)).collect());
        slots.get(fd % CHUNK)
    }

    fn insert(&self, fd: RawFd) {
        if let Some(slot) = self.slot(fd) {
            // SeqCst, as below: either the drain sees it, or it sees the drain's end
            slot.store(OPEN, Ordering::SeqCst);
        }
    }

    fn remove(&self, fd: RawFd) {
        let Some(slot) = self.slot(fd) else { return };
        let free = |it| (it != BUSY).then_some(FREE);
        let mut turns = 0_u32;
        while slot.try_update(Ordering::AcqRel, Ordering::Acquire, free).is_err() {
            turns += 1;
            if turns < 100 { hint::spin_loop() } else { thread::yield_now() }
        }
    }

    /// Resets all that are open; how many those were.
    pub(crate) fn end_all(&self) -> u64 {
        let chunks = (0..).zip(&self.chunks).filter_map(|(n, it)| it.get().map(|it| (n, it)));
        let slots = chunks.flat_map(|(n, slots)| (n * CHUNK_FDS..).zip(slots));
        slots.map(|(fd, slot)| u64::from(end(fd, slot))).sum()
    }
}

/// Resets one that is open; whether it was.
fn end(fd: RawFd, slot: &AtomicU8) -> bool {
    if slot.compare_exchange(OPEN, BUSY, Ordering::SeqCst, Ordering::Relaxed).is_err() {
        return false;
    }
    let reset = sys::disconnect(&fd);
    slot.store(ENDED, Ordering::Release);
    // where it failed, the peer was quicker
    reset.is_ok()
}

const CHUNK_FDS: RawFd = 4_096;

/// A connection is in its listener's registry, while it lives. To be dropped before the socket.
#[derive(Debug)]
pub(crate) struct Registered {
    shared: Arc<Shared>,
    fd: RawFd,
}

impl Registered {
    pub(crate) fn new(shared: &Arc<Shared>, stream: &TcpStream) -> Self {
        let fd = stream.as_raw_fd();
        shared.life.registry.insert(fd);
        if shared.life.is_over()
            && let Some(slot) = shared.life.registry.slot(fd)
        {
            end(fd, slot);
        }
        Self { shared: Arc::clone(shared), fd }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.life.registry.remove(self.fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_is_not_ended() {
        let registry = Registry::new();
        // numbers that no descriptor has
        for fd in [1_000_000, 1_000_001, 2_000_000] {
            registry.insert(fd);
        }
        registry.remove(1_000_001);
        assert_eq!(registry.end_all(), 0);
        let state = |fd| registry.slot(fd).unwrap().load(Ordering::Relaxed);
        assert_eq!([1_000_000, 1_000_001, 2_000_000].map(state), [ENDED, FREE, ENDED]);
        registry.remove(2_000_000);
        assert_eq!(state(2_000_000), FREE);
        assert!(registry.slot(-1).is_none() && registry.slot(RawFd::MAX).is_none());
    }
}
