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

mod accept;
#[cfg(test)]
mod accounting;
mod builder;
mod cidr;
mod close;
mod conn;
mod decide;
mod gate;
mod handle;
mod handshake;
mod limits;
mod linger;
mod listener;
mod peer_map;
mod permit;
mod places;
mod policy;
pub mod proxy_protocol;
mod range;
mod rate;
mod reason;
mod shared;
mod slots;
mod stats;
mod sync;
#[expect(unsafe_code, reason = "calls that neither std, tokio nor socket2 have")]
mod sys;

pub use accept::Class;
pub use builder::{BuildError, Builder};
pub use cidr::{Cidr, CidrError};
pub use close::{Answer, OnShed};
pub use conn::ShedStream;
pub use decide::{Candidate, Closed, Decide, Load, Verdict};
pub use handle::{Handle, SetError};
pub use limits::{Bound, Bounds, LimitError, Limits, MAX_LIMIT};
pub use linger::Linger;
pub use listener::{AcceptError, ShedListener};
pub use peer_map::{PerIp, WhenFull};
pub use permit::Permit;
pub use policy::ProxyProtocol;
pub use range::OutOfRange;
pub use rate::Rate;
pub use reason::{Cause, Reason, Stage};
pub use stats::{Pause, Stats};
