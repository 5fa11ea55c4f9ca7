//! TLS handshakes, between accept and service.
//!
//! A handshake costs more than a connection, and a peer that says nothing would hold up whoever
//! waits for it. So each has a task of its own, there is a limit to them and one to those that
//! compute at once, and an absolute deadline. A connection has its permit before its handshake. Who
//! is shed here is reset: an answer would need the handshake first. Where rustls refuses what came,
//! its peer gets a TLS alert of 7 bytes before the reset.

use std::{
    error::Error, fmt, io, net::SocketAddr, num::NonZero, pin::Pin, sync::Arc, thread,
    time::Duration,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, InconsistentKeys, ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject as _},
        },
    },
    server::TlsStream,
};

use crate::{
    accept::AcceptError,
    conn::ShedStream,
    handle::Handle,
    limits::MAX_LIMIT,
    listener::ShedListener,
    reason::Reason,
    stage::{Staged, Tasks},
    thread::Accepted,
};

/// Bounds of handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshakes {
    /// How many go on at once, 1 to [`MAX_LIMIT`]; beyond it, connections are shed as
    /// [`Reason::TlsBusy`].
    pub max: usize,
    /// How many of them compute at the same moment, 1 to [`MAX_LIMIT`]; others wait for their turn,
    /// and who waits for its peer needs none. Default: one less than there are cores, and at least
    /// 1, so that handshakes leave one to the rest of the program.
    pub at_once: usize,
    /// How long after its admission a connection has to be done, 1 ms to 60 s; else it is shed as
    /// [`Reason::Tls`], as it is where its handshake fails. Both end in a reset; rustls sends an
    /// alert, 7 bytes, before, to who sent what is no handshake.
    pub deadline: Duration,
}

impl Default for Handshakes {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self { max: 256, at_once: (cores - 1).max(1), deadline: Duration::from_secs(5) }
    }
}

/// A listener, with its accept loop here or on a thread of its own.
#[derive(Debug)]
pub enum AnyListener {
    /// It accepts when it is asked.
    Here(Box<ShedListener>),
    /// It accepts on a thread.
    Threaded(Accepted),
}

impl From<ShedListener> for AnyListener {
    fn from(listener: ShedListener) -> Self {
        Self::Here(Box::new(listener))
    }
}

impl From<Accepted> for AnyListener {
    fn from(accepted: Accepted) -> Self {
        Self::Threaded(accepted)
    }
}

impl AnyListener {
    async fn accept(&mut self) -> Result<ShedStream, AcceptError> {
        match self {
            Self::Here(listener) => listener.accept().await,
            Self::Threaded(accepted) => accepted.accept().await,
        }
    }

    fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Here(listener) => listener.local_addr(),
            Self::Threaded(accepted) => accepted.local_addr(),
        }
    }

    fn handle(&self) -> Handle {
        match self {
            Self::Here(listener) => listener.handle(),
            Self::Threaded(accepted) => accepted.handle(),
        }
    }
}

type Work<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

/// A listener that yields streams `S` after their handshakes.
///
/// Handshakes go on while somebody waits in [`accept`](Self::accept), and while nobody does; those
/// that are done wait, and count as going on. Dropped, it ends all of them.
pub struct TlsListener<S> {
    listener: AnyListener,
    tasks: Tasks<S>,
    start: Box<dyn Fn(Staged) -> Work<S> + Send + Sync>,
    has_ended: bool,
}

impl TlsListener<TlsStream<Staged>> {
    /// With handshakes by rustls; see [`rustls_config`].
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rustls(
        listener: impl Into<AnyListener>,
        bounds: Handshakes,
        config: Arc<ServerConfig>,
    ) -> Result<Self, TlsError> {
        let acceptor = TlsAcceptor::from(config);
        Self::new(listener, bounds, move |conn| acceptor.accept(conn))
    }
}

impl<S: Send + 'static> TlsListener<S> {
    /// With handshakes by `start`, which gets a connection and gives the stream over it, or an
    /// error, for which the connection is shed.
    ///
    /// Those who are shed before, by the listener, get a reset or an end: bytes of a
    /// [`Verdict`](crate::Verdict) become a reset from here on.
    ///
    /// # Errors
    /// A bound is out of range, or the listener answers with a text who is shed: nobody reads one
    /// who expects a handshake.
    pub fn new<F>(
        listener: impl Into<AnyListener>,
        bounds: Handshakes,
        start: impl Fn(Staged) -> F + Send + Sync + 'static,
    ) -> Result<Self, TlsError>
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let Handshakes { max, at_once, deadline } = bounds;
        if !(1..=MAX_LIMIT).contains(&max) {
            return Err(TlsError::Max { got: max });
        }
        if !(1..=MAX_LIMIT).contains(&at_once) {
            return Err(TlsError::AtOnce { got: at_once });
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&deadline) {
            return Err(TlsError::Deadline { got: deadline });
        }
        let listener = listener.into();
        if listener.handle().answers_with_text() {
            return Err(TlsError::Answer);
        }
        listener.handle().shared().comes_before_tls();
        let tasks = Tasks::new(max, at_once, deadline, Reason::Tls, Reason::TlsBusy);
        let start = Box::new(move |conn| -> Work<S> { Box::pin(start(conn)) });
        Ok(Self { listener, tasks, start, has_ended: false })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// What watches and steers it from elsewhere.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.listener.handle()
    }

    /// The next connection that is admitted and done with its handshake, and whose it is. It may be
    /// cancelled: nothing is lost.
    ///
    /// # Errors
    /// The listener was closed, or can accept nothing more, and no handshake goes on.
    pub async fn accept(&mut self) -> Result<(S, SocketAddr), AcceptError> {
        loop {
            let is_idle = self.tasks.is_empty();
            tokio::select! {
                biased;
                done = self.tasks.next(), if !is_idle => if let Some(done) = done {
                    return Ok(done);
                },
                conn = self.listener.accept(), if is_idle || !self.has_ended => match conn {
                    Ok(conn) => self.tasks.begin(conn, &self.start),
                    Err(err) if is_idle => return Err(err),
                    Err(_) => self.has_ended = true,
                },
            }
        }
    }

    /// Whoever gets the streams tells nothing of their requests.
    #[cfg(feature = "axum")]
    pub(crate) fn hide_requests(&mut self) {
        self.tasks.hide_requests();
    }
}

impl<S> fmt::Debug for TlsListener<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsListener")
            .field("listener", &self.listener)
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}

/// A configuration for [`TlsListener::rustls`]: TLS 1.2 and 1.3, clients without certificates.
/// `certificates` and `key` are PEM: the server's certificate and those between it and a root, and
/// the server's private key.
///
/// # Errors
/// There is no certificate or no key, or they are not each other's.
pub fn rustls_config(certificates: &[u8], key: &[u8]) -> Result<ServerConfig, TlsError> {
    let chain = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsError::Certificates)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsError::Key)?;
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|err| match err {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch,
            err => TlsError::Rustls(err),
        })
}

/// Why there is no listener for TLS.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// The limit of handshakes is out of range.
    Max {
        /// What was given.
        got: usize,
    },
    /// How many compute at once is out of range.
    AtOnce {
        /// What was given.
        got: usize,
    },
    /// The deadline of handshakes is out of range.
    Deadline {
        /// What was given.
        got: Duration,
    },
    /// The listener would answer in plain text.
    Answer,
    /// There is no certificate in the PEM.
    NoCertificate,
    /// The PEM of the certificates is none.
    Certificates(pem::Error),
    /// The PEM of the key is none, or has no key.
    Key(pem::Error),
    /// The key is another certificate's.
    Mismatch,
    /// rustls refuses them.
    Rustls(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max { got } => {
                write!(f, "limit of TLS handshakes is {got}, expected 1 to {MAX_LIMIT}")
            }
            Self::AtOnce { got } => {
                write!(f, "TLS handshakes at once are {got}, expected 1 to {MAX_LIMIT}")
            }
            Self::Deadline { got } => {
                write!(f, "deadline of TLS handshakes is {got:?}, expected 1ms to 60s")
            }
            Self::Answer => f.write_str(
                "shed connections get a text, expected a reset or an end: a TLS client reads no \
                 text before its handshake",
            ),
            Self::NoCertificate => f.write_str(
                "TLS certificates: got none, expected PEM with at least one CERTIFICATE",
            ),
            Self::Certificates(_) => f.write_str("TLS certificates: got text that is no PEM"),
            Self::Key(_) => f.write_str("TLS key: got none, expected PEM with a PRIVATE KEY"),
            Self::Mismatch => f.write_str(
                "TLS key is not that of the first certificate, expected the two to belong together",
            ),
            Self::Rustls(_) => f.write_str("rustls refuses the TLS certificates or their key"),
        }
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Certificates(err) | Self::Key(err) => Some(err),
            Self::Rustls(err) => Some(err),
            Self::Max { .. }
            | Self::AtOnce { .. }
            | Self::Deadline { .. }
            | Self::Answer
            | Self::NoCertificate
            | Self::Mismatch => None,
        }
    }
}
