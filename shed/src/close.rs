//! What a shed connection gets: a reset, an end, or an answer.
//!
//! A reset costs least and leaves nothing behind. close(2) with bytes unread is a reset, too
//! (`tcp_close`, net/ipv4/tcp.c; RFC 2525, 2.17), and would take an answer away that the peer has
//! not read: where an answer is to arrive, or the peer has sent something, the connection
//! [lingers](crate::linger).

use std::{io, net::Shutdown, sync::Arc, time::Duration};

use socket2::Socket;

use crate::{linger::Lingering, shared::Shared, sys};

/// What a shed connection gets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnShed {
    /// A reset: the peer's next call fails with ECONNRESET.
    Rst,
    /// An end: the peer reads 0 bytes.
    Fin,
    /// One of these texts, in turn, and an end.
    Bytes(Arc<[Box<[u8]>]>),
}

/// Seconds that clients are told to wait, spread so that they do not come back together.
const RETRY_AFTER: [u8; 8] = [1, 2, 3, 2, 1, 3, 2, 1];

impl OnShed {
    /// HTTP/1.1 503 with `Retry-After` of 1 to 3 seconds.
    #[must_use]
    pub fn http_503() -> Self {
        Self::http("503 Service Unavailable")
    }

    /// HTTP/1.1 429 with `Retry-After` of 1 to 3 seconds.
    #[must_use]
    pub fn http_429() -> Self {
        Self::http("429 Too Many Requests")
    }

    /// These bytes, as they are: `421 busy\r\n` for SMTP, say.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Bytes([bytes.into().into_boxed_slice()].into())
    }

    fn http(status: &str) -> Self {
        let texts = RETRY_AFTER.map(|seconds| {
            format!(
                "HTTP/1.1 {status}\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\nConnection: \
                 close\r\n\r\n"
            )
            .into_bytes()
            .into_boxed_slice()
        });
        Self::Bytes(texts.into())
    }
}

/// What a shed connection got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// A reset.
    Rst,
    /// An end.
    Fin,
    /// Bytes, and an end.
    Bytes,
    /// A reset for want of room, or because the answer could not be written.
    FallbackRst,
}

impl Answer {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Rst, Self::Fin, Self::Bytes, Self::FallbackRst];

    /// The value of the label `answer`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rst => "rst",
            Self::Fin => "fin",
            Self::Bytes => "bytes",
            Self::FallbackRst => "fallback_rst",
        }
    }
}

/// Ends `socket` as `on_shed` says; `turn` chooses among texts.
pub(crate) fn shed(socket: Socket, on_shed: &OnShed, turn: u64, shared: &Arc<Shared>) {
    let answer = match on_shed {
        OnShed::Rst => {
            reset(socket);
            Answer::Rst
        }
        OnShed::Fin => match sys::unread(&socket) {
            Ok(0) => {
                drop(socket);
                Answer::Fin
            }
            _ => linger(socket, Answer::Fin, shared),
        },
        OnShed::Bytes(texts) => {
            // of no texts, none is the right one
            let n_texts = texts.len().max(1) as u64;
            let place = usize::try_from(turn % n_texts).expect("below a length");
            let text = texts.get(place).map_or(&[][..], |text| text);
            match write_whole(&socket, text) {
                Ok(()) => linger(socket, Answer::Bytes, shared),
                Err(_) => {
                    reset(socket);
                    Answer::FallbackRst
                }
            }
        }
    };
    shared.counters.answered(answer, matches!(answer, Answer::Fin | Answer::Bytes));
}

/// Closes with a reset, which leaves no TIME_WAIT.
///
/// For a connection that got nothing from us: a reset throws away what the peer has not read.
pub(crate) fn reset(socket: Socket) {
    // where it fails, the close below is an ordinary one, and the peer learns of it all the same
    drop(socket.set_linger(Some(Duration::ZERO)));
    drop(socket);
}

fn write_whole(socket: &Socket, text: &[u8]) -> io::Result<()> {
    let sent = socket.send_with_flags(text, libc::MSG_NOSIGNAL)?;
    if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn linger(socket: Socket, answer: Answer, shared: &Arc<Shared>) -> Answer {
    let ended = socket.shutdown(Shutdown::Write);
    let lingering = Lingering::new(socket, shared);
    match ended.and(lingering.and_then(|it| shared.linger(it))) {
        Ok(()) => answer,
        Err(_) => Answer::FallbackRst,
    }
}
