//! What a failure of accept(2) means, and what to do about it.
//!
//! Three kinds (accept(2), "Error handling"): errors of the one connection, after which the next
//! one is asked for; want of descriptors or memory, where asking again at once would turn for ever,
//! since the connection stays at the head of the queue; and errors of the listener itself.

use std::{
    error::Error,
    fmt,
    fs::File,
    io,
    time::{Duration, Instant},
};

use socket2::{SockAddr, Socket};

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The connection; it is gone.
    Retry,
    /// Descriptors or memory; the connection is still queued.
    Backoff,
    /// The listener.
    Fatal,
}

impl Class {
    /// The value of the label `class`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Backoff => "backoff",
            Self::Fatal => "fatal",
        }
    }

    /// The class of an errno. One that is not known backs off: neither to end nor to turn is right.
    #[must_use]
    pub const fn of(errno: i32) -> Self {
        match errno {
            libc::EINTR
            | libc::ECONNABORTED
            | libc::ECONNRESET
            | libc::EPROTO
            | libc::EPERM
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::ETIMEDOUT => Self::Retry,
            libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL => Self::Fatal,
            _ => Self::Backoff,
        }
    }
}

/// Why nothing more is accepted.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcceptError {
    /// It was [closed](crate::Handle::close), by this program.
    Closed,
    /// accept(2) fails for ever, or [`Decide::decide`](crate::Decide::decide) panicked.
    Fatal(io::Error),
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the listener is closed",
            Self::Fatal(_) => "accept failed, and would fail again",
        })
    }
}

impl Error for AcceptError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Closed => None,
            Self::Fatal(err) => Some(err),
        }
    }
}

/// How long to wait after failures in a row, and when those of connections are too many.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    retries: u32,
    delay: Option<Duration>,
    /// When accept(2) failed that way first and last, since the last success.
    since: Option<(Instant, Instant)>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(1);
    const LAST: Duration = Duration::from_secs(1);
    /// Failures that are further apart are of different times of want: in between, nobody came.
    const APART: Duration = Duration::from_secs(2);
    /// As many errors of connections in a row are no chance.
    const RETRIES: u32 = 64;

    /// accept(2) succeeded.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The head of the queue was shed: no need to wait, though it goes on to fail.
    pub(crate) fn retry(&mut self) {
        *self = Self { since: self.since, ..Self::default() };
    }

    /// For how long accept(2) failed by `at`, where this is not the first time.
    pub(crate) fn failed(&mut self, at: Instant) -> Duration {
        let is_same = |last: Instant| at.saturating_duration_since(last) <= Self::APART;
        let first = self.since.filter(|(_, last)| is_same(*last)).map_or(at, |(first, _)| first);
        self.since = Some((first, at));
        at.saturating_duration_since(first)
    }

    /// Whether an error of a connection is one too many in a row.
    pub(crate) fn is_stuck(&mut self) -> bool {
        self.retries += 1;
        Self::RETRIES < self.retries
    }

    /// How long to wait: 1 ms, and twice as long each time, up to a second.
    pub(crate) fn next(&mut self) -> Duration {
        let delay = self.delay.map_or(Self::FIRST, |delay| (delay * 2).min(Self::LAST));
        self.delay = Some(delay);
        delay
    }
}

/// A descriptor that is kept for when there is none: closed, it makes room to take the connection
/// at the head of the queue and reset it, so that its client knows at once.
#[derive(Debug)]
pub(crate) struct Spare(Option<File>);

impl Spare {
    pub(crate) fn new() -> io::Result<Self> {
        open().map(|file| Self(Some(file)))
    }

    /// Takes the head of the queue in the place of the spare descriptor. The caller closes what it
    /// gets, and then has the spare [refilled](Self::refill).
    ///
    /// # Errors
    /// Another thread was quicker, or the queue is empty.
    pub(crate) fn accept(&mut self, listener: &Socket) -> io::Result<(Socket, SockAddr)> {
        self.0 = None;
        accept(listener)
    }

    /// Opens it again, if it is not. Where that fails, there is none until the next time.
    pub(crate) fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = open().ok();
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// Whether the process, or the host, has no descriptor left.
pub(crate) fn is_without_descriptors(err: &io::Error) -> bool {
    [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&err.raw_os_error())
}

fn open() -> io::Result<File> {
    File::open("/dev/null")
}

/// accept4(2): the connection is non-blocking and not inherited by programs that are executed.
pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, SockAddr)> {
    #[cfg(test)]
    if let Some(errno) = tests::next_failure() {
        return Err(io::Error::from_raw_os_error(errno));
    }
    listener.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque, net::TcpStream};

    use tokio::time::Instant as Clock;

    use super::*;
    use crate::{Generation, Reason, ShedListener, Stats};

    thread_local! {
        /// How the next calls of accept(2) on this thread fail.
        static FAILURES: RefCell<VecDeque<i32>> = const { RefCell::new(VecDeque::new()) };
    }

    pub(super) fn next_failure() -> Option<i32> {
        FAILURES.with_borrow_mut(VecDeque::pop_front)
    }

    #[test]
    fn each_errno_has_a_class() {
        for errno in [libc::EINTR, libc::ECONNABORTED, libc::EPERM, libc::ENETUNREACH] {
            assert_eq!(Class::of(errno), Class::Retry, "{errno}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, 4_095] {
            assert_eq!(Class::of(errno), Class::Backoff, "{errno}");
        }
        for errno in [libc::EBADF, libc::ENOTSOCK, libc::EFAULT, libc::EINVAL] {
            assert_eq!(Class::of(errno), Class::Fatal, "{errno}");
        }
    }

    #[test]
    fn waits_twice_as_long_each_time_up_to_a_second() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 1_000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 1);
    }

    #[test]
    fn fails_since_the_last_success() {
        let (mut backoff, begun) = (Backoff::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(backoff.failed(begun), Duration::ZERO);
        backoff.retry();
        assert_eq!(backoff.failed(begun + second), second);
        backoff.retry();
        assert_eq!(backoff.failed(begun + 3 * second), 3 * second);
        backoff.reset();
        assert_eq!(backoff.failed(begun + 4 * second), Duration::ZERO);
    }

    #[test]
    fn a_failure_long_after_another_is_the_first() {
        let (mut backoff, begun) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.failed(begun), Duration::ZERO);
        backoff.retry();
        let hour = Duration::from_secs(3_600);
        assert_eq!(backoff.failed(begun + hour), Duration::ZERO);
        assert_eq!(backoff.failed(begun + hour + Backoff::LAST), Backoff::LAST);
    }

    #[test]
    fn more_than_64_errors_of_connections_in_a_row_are_too_many() {
        let mut backoff = Backoff::default();
        assert!((0..64).all(|_| !backoff.is_stuck()));
        assert!(backoff.is_stuck());
        backoff.reset();
        assert!(!backoff.is_stuck());
    }

    /// A listener for which accept(2) fails, and clients in its queue.
    struct Failing {
        listener: ShedListener,
        queue: VecDeque<TcpStream>,
    }

    impl Failing {
        fn new(n_clients: usize) -> Self {
            Self::of(ShedListener::bind("127.0.0.1:0").build().expect("a listener"), n_clients)
        }

        fn of(listener: ShedListener, n_clients: usize) -> Self {
            let connect = |_| TcpStream::connect(listener.local_addr()).expect("queued");
            let queue = (0..n_clients).map(connect).collect();
            Self { listener, queue }
        }

        /// The place in the queue of who is admitted after these failures, how long that took, in
        /// ms, and what was counted. The error, where nobody is.
        async fn accept(
            &mut self,
            failures: impl IntoIterator<Item = i32>,
        ) -> (Result<usize, Option<i32>>, u128, Stats) {
            FAILURES.set(failures.into_iter().collect());
            let begun = Clock::now();
            let accepted = self.listener.accept().await;
            let waited = begun.elapsed().as_millis();
            assert_eq!(next_failure(), None, "all of them were met");
            let place = match accepted {
                Ok(conn) => {
                    let is_it = |it: &TcpStream| it.local_addr().ok() == Some(conn.peer_addr());
                    let place = self.queue.iter().position(is_it).expect("one of them");
                    self.queue.drain(..=place);
                    Ok(place)
                }
                Err(AcceptError::Fatal(err)) => Err(err.raw_os_error()),
                Err(AcceptError::Closed) => Err(None),
            };
            (place, waited, self.listener.handle().stats())
        }
    }

    const OF_THE_CONNECTION: [i32; 13] = [
        libc::EINTR,
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EPROTO,
        libc::EPERM,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::ETIMEDOUT,
    ];

    #[tokio::test(start_paused = true)]
    async fn after_an_error_of_a_connection_the_next_is_accepted_at_once() {
        for errno in OF_THE_CONNECTION {
            let (place, waited, stats) = Failing::new(2).accept([errno]).await;
            assert_eq!((place, waited, &stats.accept_errors), (Ok(0), 0, &[(errno, 1)].into()));
            assert_eq!((stats.accepted, stats.admitted), (1, 1), "{stats:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_descriptors_the_head_of_the_queue_is_shed_at_once() {
        for errno in [libc::EMFILE, libc::ENFILE] {
            // for the second there is one again
            let (place, waited, stats) = Failing::new(2).accept([errno]).await;
            assert_eq!((place, waited, &stats.accept_errors), (Ok(1), 0, &[(errno, 1)].into()));
            assert_eq!((stats.accepted, stats.shed_for(Reason::Emfile)), (2, 1), "{stats:?}");

            // the descriptor of the spare is somebody else's
            let (place, waited, stats) = Failing::new(2).accept([errno, errno]).await;
            assert_eq!((place, stats.shed_for(Reason::Emfile)), (Ok(0), 0), "{stats:?}");
            assert!((1..=2).contains(&waited), "{waited} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn want_of_memory_and_what_nobody_knows_waits_and_loses_nobody() {
        for errno in [libc::ENOBUFS, libc::ENOMEM, libc::EIO, libc::ENOSPC, 4_095] {
            let mut failing = Failing::new(2);
            let (place, waited, stats) = failing.accept([errno]).await;
            assert_eq!((place, &stats.accept_errors), (Ok(0), &[(errno, 1)].into()));
            assert!((1..=2).contains(&waited), "{waited} ms");
            // 1 + 2 + 4 + … + 512 + 1,000 + 1,000: a wait that is rounded is a millisecond longer
            let (place, waited, stats) = failing.accept([errno; 12]).await;
            assert_eq!((place, stats.accept_errors[&errno]), (Ok(0), 13));
            assert!((3_023..=3_035).contains(&waited), "{waited} ms");
            assert_eq!((stats.accepted, stats.admitted), (2, 2), "{stats:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn generations_that_share_limits_wait_as_long() {
        let mut generation = Generation::take().expect("the first");
        let builder = ShedListener::bind("127.0.0.1:0").name("web");
        let listener = builder.build_in(&mut generation).expect("a listener");
        let (place, waited, _) = Failing::of(listener, 1).accept([libc::ENOBUFS; 12]).await;
        assert_eq!(place, Ok(0));
        assert!((3_023..=3_035).contains(&waited), "{waited} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_the_listener_ends_it() {
        for errno in [libc::EBADF, libc::ENOTSOCK, libc::EFAULT, libc::EINVAL] {
            let mut failing = Failing::new(1);
            let (handle, address) = (failing.listener.handle(), failing.listener.local_addr());
            for failures in [&[errno][..], &[]] {
                let (place, waited, stats) = failing.accept(failures.iter().copied()).await;
                let counted = &[(errno, 1)].into();
                assert_eq!((place, waited, &stats.accept_errors), (Err(Some(errno)), 0, counted));
            }
            assert_eq!(handle.fatal().await.raw_os_error(), Some(errno));
            assert!(!handle.is_ready());
            let err = TcpStream::connect(address).expect_err("nobody listens");
            assert_eq!(err.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_64_errors_of_connections_in_a_row_the_accept_loop_waits() {
        let mut failing = Failing::new(4);
        // a success in between makes it a row of its own
        for n in [64, 128] {
            let (place, waited, stats) = failing.accept([libc::ECONNABORTED; 64]).await;
            assert_eq!((place, waited), (Ok(0), 0));
            assert_eq!(stats.accept_errors[&libc::ECONNABORTED], n);
        }
        for (n, least) in [(65, 1), (67, 1 + 2 + 4)] {
            let (place, waited, _) = failing.accept(vec![libc::EPERM; n]).await;
            assert_eq!(place, Ok(0));
            assert!((least..=least + 3).contains(&waited), "{waited} ms");
        }
    }
}
