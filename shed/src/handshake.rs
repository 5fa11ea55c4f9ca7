//! What is read before a connection is served: the header of the PROXY protocol.
//!
//! Each connection from a proxy waits in a task of its own, never in the accept loop, and with a
//! permit: it counts towards both limits. How many wait is bounded, and so is how long. The header
//! is taken from the socket to its last byte and not further, so that what comes after it is read
//! by whoever serves.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{self, Instant},
};

use crate::{
    arrival::Arrival,
    conn::ShedStream,
    decide::Refusal,
    permit::Permit,
    proxy_protocol::{self, MAX_V1, Parsed},
    reason::Reason,
    shared::Shared,
};

/// The connections of one listener whose header is awaited. Dropped, it sheds them.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    tasks: JoinSet<Option<Named>>,
}

impl Handshakes {
    /// Serves `arrival`, where it has no header; `None`: that is awaited, or it was closed.
    pub(crate) fn take(&mut self, arrival: Arrival, shared: &Arc<Shared>) -> Option<ShedStream> {
        let Arrival { waited, has_header, turn, .. } = arrival;
        let conn = arrival.serve(shared)?;
        if !has_header {
            return Some(conn);
        }
        self.begin(Pending::new(conn, waited, turn, shared));
        None
    }

    /// Awaits the header of `pending`, unless as many are awaited as may.
    fn begin(&mut self, pending: Pending) {
        let Some(settings) = pending.shared.policy.proxy_protocol() else { return };
        if settings.max <= self.tasks.len() {
            return pending.shed((Reason::ProxyHeader, None));
        }
        let deadline = Instant::now() + settings.deadline;
        self.tasks.spawn(name(pending, deadline));
    }

    /// Sheds all whose header is still awaited.
    pub(crate) fn poll_shed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.tasks.abort_all();
        while ready!(self.tasks.poll_join_next(cx)).is_some() {}
        Poll::Ready(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The next connection whose header came; `None`: none is awaited. It may be cancelled.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Named>> {
        while let Some(ended) = ready!(self.tasks.poll_join_next(cx)) {
            // a task that was shed, or panicked, gives nothing
            if let Ok(Some(named)) = ended {
                return Poll::Ready(Some(named));
            }
        }
        Poll::Ready(None)
    }
}

/// A connection that was admitted and is not served so far. Dropped, it is shed: its listener
/// ended.
#[derive(Debug)]
pub(crate) struct Pending {
    parts: Option<(TcpStream, Permit)>,
    proxy: SocketAddr,
    waited: Option<Duration>,
    turn: u64,
    shared: Arc<Shared>,
}

impl Pending {
    /// For a connection from `proxy` that waited so long in the accept queue.
    pub(crate) fn new(
        conn: ShedStream,
        waited: Option<Duration>,
        turn: u64,
        shared: &Arc<Shared>,
    ) -> Self {
        let proxy = conn.raw_peer_addr();
        shared.counters.handshakes();
        Self { parts: Some(conn.into_parts()), proxy, waited, turn, shared: Arc::clone(shared) }
    }

    fn shed(mut self, refusal: Refusal) {
        self.end(refusal);
    }

    fn end(&mut self, (reason, answer): Refusal) {
        let Some((stream, permit)) = self.parts.take() else { return };
        self.shared.counters.handshaken();
        permit.shed(stream, (reason, answer), self.turn);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end((Reason::Draining, None));
    }
}

/// A connection whose header came.
#[derive(Debug)]
pub(crate) struct Named {
    pending: Pending,
    source: Option<SocketAddr>,
}

impl Named {
    /// Decides about it with the address that the header has; `None`: it was shed.
    pub(crate) fn admit(mut self) -> Option<ShedStream> {
        let shared = Arc::clone(&self.pending.shared);
        if let Err(refusal) = self.decide(&shared) {
            self.pending.shed(refusal);
            return None;
        }
        let (stream, permit) = self.pending.parts.take()?;
        shared.counters.handshaken();
        let proxy = self.pending.proxy;
        let conn = ShedStream::new(stream, proxy, permit);
        Some(conn.on_behalf_of(self.source.unwrap_or(proxy)))
    }

    fn decide(&mut self, shared: &Shared) -> Result<(), Refusal> {
        let Some((_, permit)) = &mut self.pending.parts else { return Ok(()) };
        let is_exempt = permit.is_exempt();
        let limited = self.source.map(|it| it.ip());
        if let Some(address) = limited.filter(|&it| !is_exempt && !shared.policy.is_exempt(it)) {
            permit.hold(shared.policy.take_peer(address).map_err(|reason| (reason, None))?);
        }
        let peer = self.source.unwrap_or(self.pending.proxy);
        shared.ask_user(peer, is_exempt, self.pending.waited).inspect_err(|_| permit.undo_peer())
    }
}

/// Awaits the header until `deadline`; `None`: the connection was shed.
async fn name(pending: Pending, deadline: Instant) -> Option<Named> {
    let Some((stream, _)) = &pending.parts else { return None };
    match time::timeout_at(deadline, read(stream)).await {
        Ok(Ok(source)) => Some(Named { pending, source }),
        Ok(Err(_)) | Err(_) => {
            pending.shed((Reason::ProxyHeader, None));
            None
        }
    }
}

/// Takes the header from `stream`; whose connection it is.
async fn read(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    // as much as any header needs until it is known how long it is
    let mut bytes = [0; MAX_V1];
    let mut n_read = 0;
    loop {
        let n = stream.peek(&mut bytes[n_read..]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match proxy_protocol::parse(&bytes[..n_read + n]).map_err(io::Error::other)? {
            Parsed::Partial => {
                // all of them are the header's
                skip(stream, n).await?;
                n_read += n;
            }
            Parsed::Header(header) => {
                skip(stream, header.len - n_read).await?;
                return Ok(header.source);
            }
        }
    }
}

/// Reads `n` bytes and throws them away.
async fn skip(stream: &TcpStream, mut n: usize) -> io::Result<()> {
    while n != 0 {
        stream.readable().await?;
        let mut scrap = [0; 512];
        let most = n.min(scrap.len());
        match stream.try_read(&mut scrap[..most]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n_read) => n -= n_read,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}
