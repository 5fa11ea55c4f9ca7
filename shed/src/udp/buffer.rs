//! A fixed number of buffers, and the guards that give them back.

use std::{
    fmt, mem,
    net::SocketAddr,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

/// A buffer for a datagram of `size` bytes at most.
pub(super) fn new(size: usize) -> Box<[u8]> {
    vec![0; size].into_boxed_slice()
}

/// Free buffers. There are never more than at first.
#[derive(Debug)]
pub(super) struct Slab {
    free: Mutex<Vec<Box<[u8]>>>,
}

impl Slab {
    pub(super) fn new(n: usize, size: usize) -> Self {
        Self { free: Mutex::new((0..n).map(|_| new(size)).collect()) }
    }

    /// Takes what was received in `buffer`, which becomes a free one; `None`: there is none.
    pub(super) fn exchange(
        self: &Arc<Self>,
        buffer: &mut Box<[u8]>,
        len: usize,
        peer: SocketAddr,
    ) -> Option<Datagram> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        let bytes = mem::replace(buffer, free);
        Some(Datagram { bytes, len, peer, slab: Arc::clone(self) })
    }

    #[cfg(test)]
    pub(super) fn n_free(&self) -> (usize, usize) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        (free.len(), free.capacity())
    }
}

/// A datagram that was received. It holds one of the buffers until it is dropped.
pub struct Datagram {
    bytes: Box<[u8]>,
    len: usize,
    peer: SocketAddr,
    slab: Arc<Slab>,
}

impl Datagram {
    /// Whose it is.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Deref for Datagram {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram").field("len", &self.len).field("peer", &self.peer).finish()
    }
}

impl Drop for Datagram {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        self.slab.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}
