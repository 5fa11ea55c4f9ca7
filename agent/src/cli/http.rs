//! One GET over a Unix socket, for the verbs that ask the daemon.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    io::retry_on_intr,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt},
};

/// For the whole exchange, where nothing else would answer instead.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is taken; 65,536 listeners need less.
const LARGEST: usize = 256 << 20;

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody is there, or we may not ask.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The exchange broke off, or took too long.
    #[error("no full answer within {} s", .0.as_secs())]
    Exchange(Duration, #[source] io::Error),
    /// What came is not HTTP.
    #[error("the answer is not HTTP")]
    NotHttp,
    /// It answered, with something else.
    #[error("got HTTP status {0}, expected 200")]
    Status(u16),
    /// It does not stop answering.
    #[error("the answer is larger than {LARGEST} bytes")]
    TooLarge,
}

impl AskError {
    /// Whether no daemon runs, as opposed to one that does not answer us.
    pub(super) fn is_nobody(&self) -> bool {
        let Self::Connect(err) = self else { return false };
        matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    }

    /// Whether the time that the daemon had is over.
    pub(super) fn is_late(&self) -> bool {
        let Self::Exchange(_, err) = self else { return false };
        err.kind() == io::ErrorKind::TimedOut
    }
}

/// The body of the answer to `GET target`, if it is there within `patience`.
pub(super) fn get(socket: &Path, target: &str, patience: Duration) -> Result<Vec<u8>, AskError> {
    let end = Instant::now() + patience;
    let broken_off = |err: io::Error| match err.kind() {
        // what the time limits of a socket end with
        io::ErrorKind::WouldBlock => AskError::Exchange(patience, io::ErrorKind::TimedOut.into()),
        _ => AskError::Exchange(patience, err),
    };
    let mut stream = open(socket, patience).map_err(|err| match err.kind() {
        // the daemon is there, and does not accept
        io::ErrorKind::WouldBlock => broken_off(err),
        _ => AskError::Connect(err),
    })?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: backlogd\r\nConnection: close\r\n\r\n");
    let bytes = stream
        .write_all(request.as_bytes())
        .and_then(|()| read(&mut stream, end))
        .map_err(broken_off)?;
    if LARGEST < bytes.len() {
        return Err(AskError::TooLarge);
    }
    body(&bytes)?.ok_or_else(|| broken_off(io::ErrorKind::UnexpectedEof.into()))
}

/// Connects with a time limit: connect(2) to a Unix socket whose accept queue is full waits for as
/// long as the send timeout allows (`unix_stream_connect`, net/unix/af_unix.c).
fn open(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    let address = SocketAddrUnix::new(path)?;
    // what a signal interrupts has not begun
    retry_on_intr(|| connect(&socket, &address))?;
    Ok(socket.into())
}

/// Reads until the daemon closes, `end` passes or it is too much.
fn read(stream: &mut UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    while bytes.len() <= LARGEST {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(bytes)
}

/// Takes an answer apart; `None`: its end is missing.
fn body(bytes: &[u8]) -> Result<Option<Vec<u8>>, AskError> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = response.parse(bytes) else {
        return Err(AskError::NotHttp);
    };
    match response.code {
        Some(200) => {}
        Some(code) => return Err(AskError::Status(code)),
        None => return Err(AskError::NotHttp),
    }
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
    };
    let rest = &bytes[start..];
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Ok(chunks(rest));
    }
    match header("content-length").map(|length| length.parse()) {
        None => Ok(Some(rest.into())),
        Some(Ok(length)) => Ok(rest.get(..length).map(Into::into)),
        Some(Err(_)) => Err(AskError::NotHttp),
    }
}

/// The chunks put together; `None` when the last one is missing.
fn chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(bytes)
        else {
            return None;
        };
        if size == 0 {
            return Some(body);
        }
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(bytes.get(start..end)?);
        bytes = bytes.get(end..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(answer: &str, expected: Result<Option<&str>, &str>) {
        let got = body(answer.as_bytes()).map_err(|err| err.to_string());
        assert_eq!(got, expected.map(|it| it.map(Into::into)).map_err(Into::into), "{answer:?}");
    }

    #[test]
    fn an_answer_is_taken_apart_or_refused() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Ok(Some("ab")));
        check("HTTP/1.1 200 OK\r\n\r\nab", Ok(Some("ab")));
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
            Ok(Some("abc")),
        );
        let cut = Ok(None);
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", cut);
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", cut);
        check("HTTP/1.1 503 No\r\n\r\n", Err("got HTTP status 503, expected 200"));
        check("SSH-2.0-OpenSSH\r\n", Err("the answer is not HTTP"));
        check("", Err("the answer is not HTTP"));
    }

    /// How long somebody waits for a daemon that does not answer, and what it is told.
    #[track_caller]
    fn check_hung(backlog: i32, filled: usize) {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("socket");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .expect("a socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("short")).expect("new");
        rustix::net::listen(&socket, backlog).expect("it is bound");
        let _waiting: Vec<UnixStream> =
            (0..filled).map(|_| UnixStream::connect(&path).expect("there is room")).collect();
        let (patience, start) = (Duration::from_secs(1), Instant::now());
        let err = get(&path, "/api/v1/check", patience).expect_err("nobody answers");
        assert_eq!("no full answer within 1 s: timed out", crate::error::chain(&err));
        assert!(err.is_late() && !err.is_nobody(), "{err:?}");
        let took = start.elapsed();
        assert!(patience <= took + Duration::from_millis(50) && took < 10 * patience, "{took:?}");
    }

    #[test]
    fn a_daemon_that_hangs_is_not_waited_for() {
        check_hung(4, 0);
        // whose own accept queue is full
        check_hung(0, 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = body(&bytes);
            let _ = chunks(&bytes);
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = body(&[head, bytes.as_slice()].concat());
        }
    }
}
