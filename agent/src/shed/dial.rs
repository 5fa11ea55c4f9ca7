//! Connections to the backend of one listener.

mod name;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream},
    sync,
    time::{self, Instant},
};

use self::name::Name;

/// A Unix backend whose accept queue is full is asked again after so long.
const AGAIN: Duration = Duration::from_millis(2);

/// Who connects to the backend.
#[derive(Debug, Default)]
pub(super) struct Dialer {
    /// The name that was looked up last.
    name: Mutex<Option<Arc<Name>>>,
    /// Whose turn it is to ask a Unix one, the first one first.
    turn: sync::Mutex<()>,
}

impl Dialer {
    /// Connects to HOST:PORT within `limit`.
    pub(super) async fn tcp(&self, address: &str, limit: Duration) -> io::Result<TcpStream> {
        let until = Instant::now() + limit;
        let targets = match address.parse::<SocketAddr>() {
            Ok(target) => Arc::from([target]),
            Err(_) => {
                let known = time::timeout_at(until, self.name(address).addresses()).await;
                let late =
                    || io::Error::new(io::ErrorKind::TimedOut, "its name has no answer in time");
                known.unwrap_or_else(|_| Err(late()))?
            }
        };
        let connected = time::timeout_at(until, TcpStream::connect(&*targets)).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn name(&self, text: &str) -> Arc<Name> {
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        match &*name {
            Some(name) if name.is(text) => Arc::clone(name),
            _ => Arc::clone(name.insert(Arc::new(Name::new(text)))),
        }
    }

    /// Connects to a Unix socket within `limit`. Waits for a place in the accept queue, as TCP does by
    /// itself: connect(2) of a Unix socket that may not block says EAGAIN when there is none
    /// (`unix_stream_connect`, net/unix/af_unix.c), and nothing tells when there is one.
    pub(super) async fn unix(&self, path: &Path, limit: Duration) -> io::Result<UnixStream> {
        let in_turn = async {
            // whoever comes later waits behind it, also where there is a place meanwhile
            let _turn = self.turn.lock().await;
            loop {
                match UnixStream::connect(path).await {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => time::sleep(AGAIN).await,
                    connected => return connected,
                }
            }
        };
        let full = || io::Error::new(io::ErrorKind::TimedOut, "its accept queue is full");
        time::timeout(limit, in_turn).await.unwrap_or_else(|_| Err(full()))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use super::*;

    #[tokio::test]
    async fn what_is_no_address_is_looked_up() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = server.local_addr().expect("it is bound").port();
        let dialer = Dialer::default();
        for host in ["127.0.0.1", "localhost"] {
            let address = format!("{host}:{port}");
            let stream = dialer.tcp(&address, Duration::from_secs(10)).await.expect("connected");
            assert_eq!(stream.peer_addr().expect("connected").port(), port);
        }
    }

    #[test]
    fn another_name_is_another_one_and_the_same_stays() {
        let dialer = Dialer::default();
        let one = dialer.name("one:1");
        assert!(Arc::ptr_eq(&one, &dialer.name("one:1")));
        assert!(!Arc::ptr_eq(&one, &dialer.name("two:1")));
    }

    #[tokio::test]
    async fn a_place_at_a_unix_backend_is_for_who_waited_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("app");
        let _server = UnixListener::bind(&path).expect("it is free");
        let dialer = Dialer::default();
        let first = dialer.turn.lock().await;
        let early = dialer.unix(&path, Duration::from_millis(20)).await.expect_err("not its turn");
        assert_eq!(early.to_string(), "its accept queue is full");
        drop(first);
        dialer.unix(&path, Duration::from_secs(30)).await.expect("there is a place");
    }
}
