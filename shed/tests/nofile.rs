//! A process without descriptors: the spare one sheds who comes, nothing turns, and whoever is
//! given one back is used at once. RLIMIT_NOFILE is the whole process', so each test starts itself
//! again.

#![expect(clippy::print_stderr, reason = "numbers that only a bench could judge are for a person")]

#[path = "overload/crowd.rs"]
mod crowds;
#[path = "overload/space.rs"]
mod space;
mod stats;

use std::{
    fs::File,
    iter,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use backlogd_shed::{Handle, Limits, Pause, Reason, ShedListener, Stats};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::{self, AbortHandle},
    time,
};

use crate::{
    crowds::Crowd,
    space::{in_own_space, limit_descriptors},
};

const DEADLINE: Duration = Duration::from_secs(20);
/// From a descriptor that is there again to a connection that is served.
const RECOVERY: Duration = Duration::from_millis(50);

/// Serves until each peer closes, in tasks that are passed on.
fn serve(mut listener: ShedListener) -> (SocketAddr, Handle, mpsc::UnboundedReceiver<AbortHandle>) {
    let (address, handle) = (listener.local_addr(), listener.handle());
    let (sender, tasks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            let task = tokio::spawn(async move {
                while let Ok(byte) = conn.read_u8().await {
                    if conn.write_u8(byte).await.is_err() {
                        return;
                    }
                }
            });
            drop(sender.send(task.abort_handle()));
        }
    });
    (address, handle, tasks)
}

async fn until(handle: &Handle, is_so: impl Fn(&Stats) -> bool) -> Stats {
    stats::within(DEADLINE, handle, is_so).await
}

/// As many files as there are descriptors for.
fn take_all() -> Vec<File> {
    iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn limits(soft: usize) -> Limits {
    Limits { fd_reserve: Some(0), ..Limits::soft(soft) }
}

fn paused(stats: &Stats) -> Duration {
    stats.paused.iter().find(|(cause, _)| *cause == Pause::Backoff).expect("both").1
}

/// Not a test: what a client's process does.
#[test]
fn crowd() {
    crowds::be();
}

#[tokio::test]
#[ignore = "kernel: needs root"]
async fn without_descriptors_it_sheds_by_the_spare_one_and_does_not_turn() {
    if in_own_space("without_descriptors_it_sheds_by_the_spare_one_and_does_not_turn") {
        return;
    }
    let mut crowd = Crowd::new(1, 500);
    limit_descriptors(64, 64);
    let listener =
        ShedListener::bind("127.0.0.1:0").limits(limits(50)).build().expect("a listener");
    let (cpu, start) = (space::cpu(), Instant::now());
    // others in the process take all but 8
    let mut others = take_all();
    others.truncate(others.len() - 8);
    let (address, handle, _tasks) = serve(listener);
    let clients = task::spawn_blocking(move || {
        let seen = crowd.go(address, Duration::from_secs(10));
        (crowd, seen)
    });
    let (crowd, seen) = clients.await.expect("clients");
    assert_eq!((seen.n_served, seen.ends.len(), seen.n_hanging), (8, 492, 0), "{seen}");
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.shed_for(Reason::Emfile)), (500, 492), "{stats:?}");
    assert!(0 < stats.accept_errors[&libc::EMFILE], "{stats:?}");
    // to look at the time
    drop(others.drain(..2));
    time::sleep(Duration::from_secs(1)).await;
    let used = (space::cpu() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(used <= 0.05, "{used:.3} of a core");
    others.clear();
    let freed = Instant::now();
    let client = TcpStream::connect(address).expect("a descriptor");
    until(&handle, |stats| stats.admitted == 9).await;
    let took = freed.elapsed();
    assert!(took < RECOVERY, "{took:?}");
    eprintln!("{used:.4} of a core; {seen}; served {took:?} after there are descriptors");
    drop((crowd, client));
    let stats = until(&handle, |stats| stats.open == 0).await;
    stats::check_identities(&stats);
}

#[tokio::test]
#[ignore = "kernel: needs root"]
async fn when_connections_end_the_next_is_served_at_once_though_the_spare_one_was_gone() {
    if in_own_space("when_connections_end_the_next_is_served_at_once_though_the_spare_one_was_gone")
    {
        return;
    }
    let (mut first, mut next) = (Crowd::new(1, 4), Crowd::new(1, 1));
    // the listener's descriptors, and its spare one, have high numbers, its connections low ones
    let low: Vec<_> = (0..100).map(|_| File::open("/dev/null").expect("room")).collect();
    let listener =
        ShedListener::bind("127.0.0.1:0").limits(limits(50)).build().expect("a listener");
    drop(low);
    let (address, handle, mut tasks) = serve(listener);
    let first = task::spawn_blocking(move || {
        let seen = first.go(address, Duration::from_secs(10));
        assert_eq!(seen.n_served, 4, "{seen}");
        first
    });
    let first = first.await.expect("clients");
    // what is closed above the limit makes no room
    limit_descriptors(60, 60);
    let others = take_all();
    let waits = task::spawn_blocking(move || {
        let seen = next.go(address, Duration::from_secs(10));
        assert_eq!(seen.n_served, 1, "{seen}");
        next
    });
    // waits of 1 + 2 + … + 128 ms: the next is of a quarter of a second
    let stats = until(&handle, |it| Duration::from_millis(300) < paused(it)).await;
    assert_eq!((stats.accepted, stats.shed_for(Reason::Emfile)), (4, 0), "{stats:?}");
    assert_eq!(stats.is_paused, Some(Pause::Backoff));
    assert!(stats.accept_errors[&libc::EMFILE] < 20, "{stats:?}");
    // one for a spare one, one for who waits
    let ended = Instant::now();
    for _ in 0..2 {
        tasks.recv().await.expect("four").abort();
    }
    until(&handle, |stats| stats.admitted == 5).await;
    let took = ended.elapsed();
    assert!(took < RECOVERY, "{took:?}");
    eprintln!("served {took:?} after others ended");
    drop((first, waits.await.expect("served"), others));
    let stats = until(&handle, |stats| stats.open == 0).await;
    stats::check_identities(&stats);
}

#[tokio::test]
#[ignore = "kernel: needs root"]
async fn the_limit_of_descriptors_is_raised_as_far_as_it_may_be() {
    if in_own_space("the_limit_of_descriptors_is_raised_as_far_as_it_may_be") {
        return;
    }
    limit_descriptors(100, 4_000);
    let too_many = ShedListener::bind("127.0.0.1:0").soft(4_000).build().expect_err("too many");
    let message = too_many.to_string();
    assert!(message.contains("expected at most 3744: RLIMIT_NOFILE is 4000"), "{message}");
    let listener = ShedListener::bind("127.0.0.1:0").soft(1_000).build().expect("room");
    let clients: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(listener.local_addr()).expect("a descriptor"))
        .collect();
    drop((listener, clients));
}
