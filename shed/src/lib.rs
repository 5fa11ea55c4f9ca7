//! A TCP listener that sheds: it accepts first, and closes at once what is too much.
//!
//! A server that stops accepting to limit itself leaves its clients in the kernel's accept queue,
//! where they believe themselves connected and hang, and where nobody sees the overload. This
//! listener accepts all the time. Above its **soft limit** a connection is ended at once, by a
//! reset, an end or an answer, and counted with its reason. Only at the **hard limit**, the last
//! resort which protects the process, it stops accepting. Whoever was admitted and then takes too
//! long, for what the [`Deadlines`] name, is ended.
//!
//! ```no_run
//! use backlogd_shed::ShedListener;
//! use tokio::io::AsyncWriteExt as _;
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let mut listener = ShedListener::bind("[::]:8080").soft(10_000).build()?;
//! let handle = listener.handle(); // counters and limits, from anywhere
//! loop {
//!     let mut conn = listener.accept().await?;
//!     tokio::spawn(async move { conn.write_all(b"hello\n").await });
//! }
//! # }
//! ```
//!
//! # Whose thread accepts
//! The loop runs where [`ShedListener::accept`] is called. A handler that blocks that runtime stops
//! it; [`Builder::build_threaded`] gives it a thread of its own, and what is admitted comes by
//! [`Accepted::accept`]. Several sockets on one address, each with its loop, are a [`Group`].
//!
//! # Descriptors
//! RLIMIT_NOFILE is one for the whole process, and its listeners share it: each claims as many as
//! its hard limit allows, and one that asks for more than the others leave is refused. The limit is
//! read again each 10 s. While it is lower than they need, all have a part of what they asked for,
//! nobody who is open is ended, and [`Handle::bounds`] and [`Handle::bound`] tell. What else the
//! host is set to that is too little is among the [warnings](Handle::warnings).
//!
//! # When it ends
//! A [drain](Handle::drain) ends it and resets nobody who finished a handshake before its deadline;
//! a program that is [restarted](Generation) leaves its socket, and its limits, to the next one:
//! those of [`Builder::build_in`], so neither a group's nor that of a thread that accepts.
//! [`Handle::close`] ends it at once, and so does a failure of accept(2) that will not pass.
//! `accept` says so by its error, and closes the socket before that: clients are refused, and who
//! is queued is reset. Elsewhere, [`Handle::ended`] and [`Handle::fatal`] wait for it, and
//! [`Handle::is_ready`] is false. axum's listeners have no errors: one that ended waits for ever,
//! so axum has to be told to shut down by
//! `with_graceful_shutdown(async move { drop(handle.ended().await) })`. Streams end.
//!
//! # Features
//! None is on by default, and then the crate needs tokio alone. Each server below is an example
//! that runs: `cargo run -p backlogd-shed --all-features --example NAME`.
//!
//! | feature | what there is | for | example |
//! |---|---|---|---|
//! | | [`ShedListener::accept`] | any tokio server | `echo` |
//! | | the same, in hyper-util's `TokioIo` | hyper | `hyper` |
//! | | [`Generation`]: restarts without a gap | any tokio server | `restart` |
//! | `axum` | `axum::serve::Listener` for all; `PeerAddr` for `ConnectInfo` | axum | `axum` |
//! | `stream` | `into_stream()` of listeners; `Accepted` is a `Stream` | whatever takes one | |
//! | `tonic` | `stream`, and `Connected` for [`ShedStream`], also over TLS | tonic | `tonic` |
//! | `tls` | `TlsListener`: handshakes by rustls or any function, in bounds | TLS | `tls` |

mod accept;
#[cfg(test)]
mod accounting;
pub mod adaptive;
mod arrival;
#[cfg(feature = "axum")]
mod axum;
mod budget;
mod build_error;
mod builder;
mod cidr;
mod close;
mod conn;
mod deadline;
mod decide;
mod descriptors;
mod diag;
mod door;
mod drain;
mod gate;
mod handle;
mod handover;
mod handshake;
pub mod health;
mod histogram;
mod inherit;
mod leave;
mod life;
mod limits;
mod linger;
mod listener;
mod listening;
mod meter;
mod owner;
mod page;
mod peer_map;
mod permit;
mod places;
mod plan;
mod policy;
pub mod pool;
pub mod proxy_protocol;
mod range;
mod rate;
mod reason;
mod registry;
mod reuseport;
mod shared;
mod slots;
mod socket;
#[cfg(feature = "tls")]
mod stage;
mod starting;
mod stats;
#[cfg(feature = "stream")]
mod stream;
mod sync;
#[expect(unsafe_code, reason = "calls that neither std, tokio nor socket2 have")]
mod sys;
mod thread;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tonic")]
mod tonic;
pub mod udp;
mod warning;
mod words;

#[cfg(feature = "axum")]
pub use self::axum::PeerAddr;
pub use accept::{AcceptError, Class};
pub use budget::{Budget, Spent};
pub use build_error::BuildError;
pub use builder::Builder;
pub use cidr::{Cidr, CidrError};
pub use close::{Answer, OnShed};
pub use conn::{OversizedRequest, ShedStream};
pub use deadline::{Deadline, DeadlineError, Deadlines, MinRate, TimedOut};
pub use decide::{Candidate, Closed, Decide, Load, Verdict};
pub use drain::{Drain, Drained, Queued, Stage as DrainStage};
pub use handle::{Handle, SetError};
pub use handover::{Generation, HandoverError, Handovers};
pub use histogram::Histogram;
pub use inherit::GenerationError;
pub use limits::{Bound, Bounds, LimitError, Limits, MAX_LIMIT};
pub use linger::Linger;
pub use listener::ShedListener;
pub use owner::Owner;
pub use page::PageError;
pub use peer_map::{PerIp, WhenFull};
pub use permit::{Moved, Permit};
pub use policy::ProxyProtocol;
pub use range::OutOfRange;
pub use rate::Rate;
pub use reason::{Cause, Reason, Stage};
pub use reuseport::Group;
#[cfg(feature = "tls")]
pub use stage::Staged;
pub use stats::{Pause, Stats};
#[cfg(feature = "stream")]
pub use stream::ShedIncoming;
pub use thread::Accepted;
#[cfg(feature = "tls")]
pub use tls::{AnyListener, Handshakes, TlsError, TlsListener, rustls_config};
pub use warning::Warning;
