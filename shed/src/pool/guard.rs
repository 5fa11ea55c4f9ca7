//! A connection of the pool while somebody uses it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Backend, BackendStream, Evicted, Slot};

/// A connection in use. Dropped, it is closed; only [`reuse`](Self::reuse) gives it back.
#[derive(Debug)]
#[must_use = "dropped at once, it was opened for nothing"]
pub struct Pooled {
    /// `None` only after it was given back.
    stream: Option<BackendStream>,
    backend: Backend,
    /// It failed, was closed, or was shut down.
    is_spent: bool,
    // after `stream`, so that close(2) comes before the next one in line
    slot: Slot,
}

impl Pooled {
    pub(super) fn new(stream: BackendStream, backend: Backend, slot: Slot) -> Self {
        Self { stream: Some(stream), backend, is_spent: false, slot }
    }

    /// Keeps the connection for the next one. To be called when the answer was read to its end:
    /// what is left of it would be the next one's. One that failed or was closed is not kept.
    pub fn reuse(mut self) {
        if !self.is_spent
            && let Some(stream) = self.stream.take()
        {
            self.slot.keep(self.backend.clone(), stream);
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The connection itself, for options.
    #[must_use]
    pub fn get_ref(&self) -> &BackendStream {
        self.stream.as_ref().expect("only reuse and drop take it, which end the guard")
    }

    fn stream(&mut self) -> Pin<&mut BackendStream> {
        Pin::new(self.stream.as_mut().expect("only reuse and drop take it, which end the guard"))
    }

    /// Remembers a failure, and passes the result on.
    fn seen<T>(&mut self, result: io::Result<T>) -> Poll<io::Result<T>> {
        self.is_spent |= result.is_err();
        Poll::Ready(result)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.slot.pool.state().evict(&stream, Evicted::Error);
        }
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let result = ready!(self.stream().poll_read(cx, buf));
        self.is_spent |= room != 0 && buf.filled().len() == before;
        self.seen(result)
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(self.stream().poll_write(cx, buf));
        self.seen(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(self.stream().poll_flush(cx));
        self.seen(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_spent = true;
        self.stream().poll_shutdown(cx)
    }
}
