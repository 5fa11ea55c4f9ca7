//! A TCP listener that sheds: it accepts first, and closes at once what is too much.
//!
//! A server that stops accepting to limit itself leaves its clients in the kernel's accept queue,
//! where they believe themselves connected and hang, and where nobody sees the overload. This
//! listener accepts all the time. Above its **soft limit** a connection is ended at once, by a
//! reset, an end or an answer, and counted with its reason. Only at the **hard limit**, the last
//! resort which protects the process, it stops accepting.
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
//! It ends by a [drain](Handle::drain), which resets nobody who finished a handshake before its
//! deadline; a program that is [restarted](Generation) leaves its socket, and its limits, to the next
//! one; several sockets on one address are a [`Group`].

mod accept;
mod builder;
mod close;
mod conn;
mod decide;
mod diag;
mod drain;
mod gate;
mod handle;
mod handover;
mod inherit;
mod leave;
mod life;
mod limits;
mod linger;
mod listener;
mod owner;
mod page;
mod permit;
mod reason;
mod registry;
mod reuseport;
mod shared;
mod slots;
mod socket;
mod stats;
#[expect(unsafe_code, reason = "calls that neither std, tokio nor socket2 have")]
mod sys;

pub use accept::{AcceptError, Class};
pub use builder::{BuildError, Builder};
pub use close::{Answer, OnShed};
pub use conn::ShedStream;
pub use decide::{Candidate, Closed, Decide, Load, Verdict};
pub use drain::{Drain, Drained, Queued, Stage as DrainStage};
pub use handle::{Handle, SetError};
pub use handover::{Generation, HandoverError, Handovers};
pub use inherit::GenerationError;
pub use limits::{Bound, Bounds, LimitError, Limits, MAX_LIMIT};
pub use linger::Linger;
pub use listener::ShedListener;
pub use owner::Owner;
pub use page::PageError;
pub use permit::Permit;
pub use reason::{Cause, Reason, Stage};
pub use reuseport::Group;
pub use stats::{Pause, Stats};
