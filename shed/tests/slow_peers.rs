//! Peers that take their time, of all kinds beside each other: each ends by its deadline or by that
//! of a drain, who works is done in time, and every permit comes back.

mod stats;

use std::{
    fmt::Debug,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use backlogd_shed::{
    Cause, Deadline, Deadlines, Drain, Handle, MinRate, Queued, ShedListener, ShedStream, TimedOut,
};
use socket2::SockRef;
use stats::{check_identities, within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time,
};

/// Peers of each kind.
const N: usize = 20;
/// How long the work of a request takes.
const WORK: Duration = Duration::from_millis(700);
/// What those get who do not read it: more than the buffers of both ends hold.
static ANSWER: [u8; 1 << 20] = [0; 1 << 20];

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Silent,
    /// Sends a header, one byte a second.
    SendsHeader,
    /// Sends what follows the header, one byte a second.
    SendsBody,
    /// Reads its answer, one byte a second.
    Reads,
    /// Closes its half after the request, and reads nothing.
    HalfCloses,
    /// Closes its half after the request, and reads its answer, which is work.
    HalfClosesAndReads,
    /// Closes its half amid a header.
    HalfClosesEarly,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Silent,
        Self::SendsHeader,
        Self::SendsBody,
        Self::Reads,
        Self::HalfCloses,
        Self::HalfClosesAndReads,
        Self::HalfClosesEarly,
    ];

    /// What it says at once.
    fn says(self) -> &'static [u8] {
        match self {
            Self::Silent => b"",
            Self::SendsHeader | Self::HalfClosesEarly => b"h",
            Self::SendsBody => b"body\n",
            Self::Reads | Self::HalfCloses => b"answer\n",
            Self::HalfClosesAndReads => b"work\n",
        }
    }

    fn closes_half(self) -> bool {
        matches!(self, Self::HalfCloses | Self::HalfClosesAndReads | Self::HalfClosesEarly)
    }
}

/// What a handler saw at the end of each connection: the request so far, how it ended, and after
/// how long.
type Ends = Arc<Mutex<Vec<(String, Result<(), Option<Deadline>>, Duration)>>>;

fn serve(mut listener: ShedListener) -> (SocketAddr, Handle, Ends) {
    let (address, handle, ends) = (listener.local_addr(), listener.handle(), Ends::default());
    let all = Arc::clone(&ends);
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            let (ends, begun) = (Arc::clone(&all), Instant::now());
            tokio::spawn(async move {
                let mut header = String::new();
                let result = answer(&mut conn, &mut header).await;
                let result = result.map_err(|err| err.get_ref()?.downcast_ref().map(deadline));
                ends.lock().expect("nobody panics").push((header, result, begun.elapsed()));
            });
        }
    });
    (address, handle, ends)
}

fn deadline(passed: &TimedOut) -> Deadline {
    passed.deadline
}

/// One request: what its header says.
async fn answer(conn: &mut ShedStream, header: &mut String) -> io::Result<()> {
    SockRef::from(conn.get_ref()).set_send_buffer_size(64 << 10)?;
    loop {
        match conn.read_u8().await? {
            b'\n' => break,
            byte => header.push(byte.into()),
        }
    }
    conn.header_done();
    match header.as_str() {
        "body" => drop(conn.read_to_end(&mut Vec::new()).await?),
        "work" => {
            time::sleep(WORK).await;
            conn.write_all(b"done").await?;
        }
        _ => conn.write_all(&ANSWER).await?,
    }
    Ok(())
}

/// What a peer got: all that it read, and how its connection ended.
type Seen = (Kind, Vec<u8>, Option<io::ErrorKind>);

async fn peer(kind: Kind, address: SocketAddr) -> Seen {
    let mut got = Vec::new();
    let err = exchange(kind, address, &mut got).await.err().map(|err| err.kind());
    (kind, got, err)
}

async fn exchange(kind: Kind, address: SocketAddr, got: &mut Vec<u8>) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 << 10)?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(kind.says()).await?;
    if kind.closes_half() {
        stream.shutdown().await?;
    }
    match kind {
        Kind::SendsHeader | Kind::SendsBody => {
            let mut byte = [0];
            loop {
                // whatever comes is the end
                match time::timeout(Duration::from_secs(1), stream.read(&mut byte)).await {
                    Ok(end) => return end.map(drop),
                    Err(_) => stream.write_all(b"x").await?,
                }
            }
        }
        // where the kernel's timer ended it, nothing is sent until it reads
        Kind::Reads => {
            for _ in 0..5 {
                got.push(stream.read_u8().await?);
                time::sleep(Duration::from_secs(1)).await;
            }
            stream.read_to_end(got).await.map(drop)
        }
        Kind::HalfCloses => {
            time::sleep(Duration::from_secs(5)).await;
            stream.read_to_end(got).await.map(drop)
        }
        Kind::Silent | Kind::HalfClosesAndReads | Kind::HalfClosesEarly => {
            stream.read_to_end(got).await.map(drop)
        }
    }
}

/// [`N`] peers of each kind.
fn come(address: SocketAddr) -> JoinSet<Seen> {
    let kinds = (0..N).flat_map(|_| Kind::ALL);
    kinds.map(|kind| peer(kind, address)).collect()
}

/// What all of them saw, which end within `limit`.
async fn all_end(mut peers: JoinSet<Seen>, limit: Duration, handle: &Handle) -> Vec<Seen> {
    let (end, mut seen) = (Instant::now() + limit, Vec::new());
    while !peers.is_empty() {
        match time::timeout_at(end.into(), peers.join_next()).await {
            Ok(one) => seen.extend(one.map(|it| it.expect("no panic"))),
            Err(_) => {
                let left = |it: &Kind| count(&seen, |(kind, ..)| kind == it) < N;
                let left: Vec<_> = Kind::ALL.into_iter().filter(left).collect();
                panic!("{left:?} do not end: {:?}", handle.stats());
            }
        }
    }
    seen
}

/// How many `items` are so.
fn count<T>(items: &[T], is_so: impl Fn(&T) -> bool) -> usize {
    items.iter().filter(|it| is_so(it)).count()
}

#[track_caller]
fn check_n(items: &[impl Debug], n: usize) {
    assert_eq!(items.len(), n, "{items:?}");
}

/// As many as may be are admitted again.
async fn check_permits(handle: &Handle, address: SocketAddr, soft: usize) {
    let rest = within(Duration::from_secs(5), handle, |stats| stats.open == 0).await;
    check_identities(&rest);
    let mut clients = Vec::new();
    for _ in 0..soft {
        clients.push(TcpStream::connect(address).await.expect("queued"));
    }
    let full = |stats: &backlogd_shed::Stats| stats.open == soft as u64;
    let stats = within(Duration::from_secs(5), handle, full).await;
    assert_eq!(stats.admitted - rest.admitted, soft as u64, "{stats:?}");
    assert_eq!(stats.shed_for(backlogd_shed::Reason::Soft), 0, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_slow_peer_ends_by_its_deadline() {
    let seconds = |n| Some(Duration::from_secs(n));
    let over = Duration::from_secs(4);
    let deadlines = Deadlines {
        first_byte: seconds(1),
        write_stall: seconds(2),
        header: seconds(3),
        min_rate: Some(MinRate { bytes_per_second: 100, over }),
        idle: seconds(10),
        lifetime: seconds(20),
        ..Deadlines::default()
    };
    let soft = N * Kind::ALL.len();
    let listener = ShedListener::bind("127.0.0.1:0").soft(soft).deadlines(deadlines);
    let (address, handle, ends) = serve(listener.build().expect("a listener"));
    let seen = all_end(come(address), Duration::from_secs(9), &handle).await;
    for (kind, got, err) in &seen {
        let expected = match kind {
            Kind::HalfClosesAndReads => (b"done".as_slice(), None),
            Kind::HalfClosesEarly => (b"".as_slice(), None),
            // what they had not read by then
            Kind::Reads | Kind::HalfCloses => {
                (got.as_slice(), Some(io::ErrorKind::ConnectionReset))
            }
            Kind::Silent | Kind::SendsHeader | Kind::SendsBody => {
                (b"".as_slice(), Some(io::ErrorKind::ConnectionReset))
            }
        };
        assert_eq!((got.as_slice(), *err), expected, "{kind:?}");
        assert!(got.len() < ANSWER.len(), "{kind:?}");
    }
    let stats = within(Duration::from_secs(5), &handle, |stats| stats.open == 0).await;
    let n = N as u64;
    let timeouts = Deadline::ALL.map(|it| stats.timeouts_of(it));
    assert_eq!(timeouts, [n, 0, n, 0, 2 * n, n, 0, 0], "{stats:?}");
    assert_eq!(stats.closed_for(Cause::Deadline), 5 * n, "{stats:?}");
    let ends = ends.lock().expect("nobody panics").split_off(0);
    check_n(&ends, soft);
    // a tick, what the machine has to do besides, and for a stall a fourth of it
    let slack = Duration::from_millis(750);
    for (header, result, took) in &ends {
        let deadline = match result {
            Err(Some(deadline)) => *deadline,
            // by the kernel's timer
            Err(None) if header == "answer" => Deadline::WriteStall,
            Ok(()) | Err(None) => continue,
        };
        let limit = deadlines.of(deadline).expect("it has one");
        assert!(limit <= *took && *took <= limit + slack, "{deadline} after {took:?}");
    }
    assert_eq!(count(&ends, |(_, result, _)| *result == Ok(())), N, "{ends:?}");
    check_permits(&handle, address, soft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_slow_peers_a_drain_waits_for_those_that_are_worked_for() {
    let soft = N * Kind::ALL.len();
    let listener = ShedListener::bind("127.0.0.1:0").soft(soft).build().expect("a listener");
    let (address, handle, ends) = serve(listener);
    let peers = come(address);
    // whoever leaves at once has left
    let rest = (soft - N) as u64;
    let all = |stats: &backlogd_shed::Stats| stats.admitted == soft as u64 && stats.open == rest;
    within(Duration::from_secs(5), &handle, all).await;
    let (begun, deadline) = (Instant::now(), Duration::from_millis(1_500));
    let drain = Drain { delay: Duration::ZERO, deadline, queued: Queued::Serve };
    let drained = handle.drain(drain).await;
    let took = begun.elapsed();
    assert!(deadline <= took && took < deadline * 2, "{took:?}");
    assert_eq!(drained.reset, 5 * N as u64);
    let seen = all_end(peers, Duration::from_secs(5), &handle).await;
    for (kind, got, err) in seen {
        let expected = match kind {
            Kind::HalfClosesAndReads => Some((b"done".to_vec(), None)),
            Kind::HalfClosesEarly => Some((Vec::new(), None)),
            _ => None,
        };
        match expected {
            Some(expected) => assert_eq!((got, err), expected, "{kind:?}"),
            None => assert_eq!(err, Some(io::ErrorKind::ConnectionReset), "{kind:?}"),
        }
    }
    let stats = within(Duration::from_secs(5), &handle, |stats| stats.open == 0).await;
    assert_eq!(stats.closed_for(Cause::Drain), drained.reset, "{stats:?}");
    check_identities(&stats);
    let ends = ends.lock().expect("nobody panics").split_off(0);
    let done = count(&ends, |(header, result, took)| {
        header == "work" && *result == Ok(()) && *took < deadline
    });
    assert_eq!(done, N, "{ends:?}");
}
