//! What a listener measures of itself, over real sockets: as many as it says, and as long as it
//! was.

mod stats;

use std::{
    future,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use backlogd_shed::{
    Candidate, Decide, Histogram, Load, Reason, ShedListener, ShedStream, Stats, Verdict,
};
use stats::{check_identities, until};
use tokio::{task, time};

/// So long takes what is measured.
const LONG: Duration = Duration::from_millis(40);

fn connect(address: SocketAddr, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(address).expect("queued")).collect()
}

async fn accept(listener: &mut ShedListener, n: usize) -> Vec<ShedStream> {
    let mut conns = Vec::new();
    for _ in 0..n {
        conns.push(listener.accept().await.expect("it is queued"));
    }
    conns
}

/// Has a listener that has nobody to admit look at its queue and its limits.
async fn look(listener: &mut ShedListener) {
    tokio::select! {
        biased;
        got = listener.accept() => panic!("{got:?}"),
        () = future::ready(()) => {}
    }
}

/// Values in buckets that reach above `least`.
fn above<T: PartialOrd + Copy>(histogram: &Histogram<T>, least: T) -> u64 {
    let buckets = histogram.buckets.iter();
    histogram.above + buckets.filter(|(bound, _)| least < *bound).map(|(_, n)| n).sum::<u64>()
}

/// Buckets that are not empty.
fn filled<T: Copy>(histogram: &Histogram<T>) -> Vec<(T, u64)> {
    histogram.buckets.iter().copied().filter(|(_, n)| *n != 0).collect()
}

/// What always holds once nothing is open and nobody accepts.
fn check_rest(stats: &Stats) {
    check_identities(stats);
    let rest = (stats.open, stats.accept_batch_size.sum);
    assert_eq!(rest, (0, stats.accepted), "{stats:?}");
}

async fn end(listener: ShedListener) -> Stats {
    let handle = listener.handle();
    drop(listener);
    let stats = until(&handle, |stats| stats.open == 0).await;
    check_rest(&stats);
    stats
}

#[tokio::test]
async fn one_connection_in_16_is_asked_how_long_it_was_queued_and_one_in_64_how_long_it_took() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(1_000).build().expect("a listener");
    let clients = connect(listener.local_addr(), 320);
    time::sleep(LONG).await;
    drop(accept(&mut listener, 320).await);
    let stats = listener.handle().stats();
    let waits = &stats.queue_wait;
    assert!((18..=22).contains(&waits.count()), "{waits:?}");
    assert!((4..=6).contains(&stats.decision.count()), "{stats:?}");
    // the kernel's clock may tick every 10 ms only
    let least = LONG - Duration::from_millis(10);
    assert_eq!(above(waits, least), waits.count(), "{waits:?}");
    let n = u32::try_from(waits.count()).expect("few");
    assert!(least * n <= waits.sum && waits.sum <= Duration::from_secs(5) * n, "{waits:?}");
    drop(clients);
    end(listener).await;
}

#[tokio::test]
async fn after_a_pause_each_is_asked_until_the_queue_is_empty() {
    let exempt = ["127.0.0.1/32".parse().expect("a network")];
    let built = ShedListener::bind("127.0.0.1:0").soft(4).hard(6).exempt(exempt).build();
    let mut listener = built.expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let n_asked = || handle.stats().queue_wait.count();
    let clients = connect(address, 26);
    let open = accept(&mut listener, 6).await;
    look(&mut listener).await;
    assert_eq!((n_asked(), handle.stats().is_paused), (1, None));
    drop(open);
    for n in 1..=20 {
        drop(accept(&mut listener, 1).await);
        assert_eq!(n_asked(), 1 + n);
    }
    look(&mut listener).await;
    let more = connect(address, 16);
    for _ in 0..16 {
        drop(accept(&mut listener, 1).await);
    }
    assert!((22..=23).contains(&n_asked()), "{}", n_asked());
    drop((clients, more));
    end(listener).await;
}

#[tokio::test]
async fn a_turn_has_as_many_as_are_accepted_before_others_run() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(19).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let sizes = || filled(&handle.stats().accept_batch_size);
    let mut clients = connect(address, 19);
    let open = accept(&mut listener, 19).await;
    // with the last one the queue is empty
    assert_eq!(sizes(), [(4, 1), (8, 2)]);
    clients.extend(connect(address, 17));
    let are_shed = |stats: &Stats| {
        stats.shed_for(Reason::Soft) == 17 && filled(&stats.accept_batch_size).len() == 3
    };
    tokio::select! {
        got = listener.accept() => panic!("{got:?}"),
        _ = until(&handle, are_shed) => {}
    }
    assert_eq!(sizes(), [(1, 1), (4, 1), (8, 4)]);
    drop(open);
    end(listener).await;
}

#[tokio::test]
async fn a_task_that_blocks_the_runtime_makes_the_accept_loop_late() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(100).build().expect("a listener");
    let handle = listener.handle();
    let clients = connect(listener.local_addr(), 9);
    let mut open = accept(&mut listener, 8).await;
    assert_eq!(handle.stats().accept_loop_lag.count(), 0);
    let blocks = task::spawn(async { thread::sleep(LONG) });
    open.extend(accept(&mut listener, 1).await);
    assert!(blocks.is_finished());
    let lag = handle.stats().accept_loop_lag;
    assert_eq!((lag.count(), above(&lag, LONG)), (1, 1), "{lag:?}");
    assert!(LONG <= lag.sum && lag.sum < LONG * 50, "{lag:?}");
    // the queue is empty for the first time: how late the loop is by that is known when it runs
    // again
    look(&mut listener).await;
    look(&mut listener).await;
    assert_eq!(handle.stats().accept_loop_lag.count(), 2);
    look(&mut listener).await;
    assert_eq!(handle.stats().accept_loop_lag.count(), 2, "one in 64");
    drop((clients, open));
    end(listener).await;
}

/// Takes long over the second connection.
struct Slow {
    n: AtomicU32,
    verdict: Verdict,
}

impl Decide for Slow {
    fn decide(&self, candidate: &Candidate<'_>, _load: &Load) -> Verdict {
        assert_eq!(candidate.waited, None, "some are asked, but nobody is judged by that");
        if self.n.fetch_add(1, Ordering::Relaxed) == 1 {
            thread::sleep(LONG);
            return self.verdict.clone();
        }
        Verdict::Admit
    }
}

#[tokio::test]
async fn a_decision_takes_until_the_connection_is_admitted_or_closed() {
    for (verdict, n_admitted) in [(Verdict::Admit, 16), (Verdict::Shed(None), 15)] {
        let slow = Slow { n: AtomicU32::new(0), verdict };
        let built = ShedListener::bind("127.0.0.1:0").soft(100).decide(slow).build();
        let mut listener = built.expect("a listener");
        let clients = connect(listener.local_addr(), 16);
        drop(accept(&mut listener, n_admitted).await);
        let took = listener.handle().stats().decision;
        assert_eq!((took.count(), above(&took, LONG)), (1, 1), "{took:?}");
        assert!(LONG <= took.sum && took.sum < LONG * 50, "{took:?}");
        drop(clients);
        end(listener).await;
    }
}

#[tokio::test]
async fn a_connection_lives_until_it_ends_however_it_does() {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(100).build().expect("a listener");
    let handle = listener.handle();
    let clients = connect(listener.local_addr(), 3);
    let mut open = accept(&mut listener, 3).await;
    time::sleep(LONG).await;
    assert_eq!(handle.stats().connection_duration.count(), 0, "all are open");
    let panics = open.pop();
    task::spawn(async move {
        let _conn = panics;
        // no message: the hook is for panics that nobody expects
        std::panic::resume_unwind(Box::new(()));
    })
    .await
    .expect_err("it panics");
    drop(open.pop());
    let lives = handle.stats().connection_duration;
    assert_eq!((lives.count(), above(&lives, LONG)), (2, 2), "{lives:?}");
    assert!(LONG * 2 <= lives.sum && lives.sum < LONG * 100, "{lives:?}");
    drop((open, clients));
    let stats = end(listener).await;
    assert_eq!(stats.connection_duration.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_group_count_together_and_what_one_that_left_counted_stays() {
    let (mut group, listeners) =
        ShedListener::bind("127.0.0.1:0").soft(1_000).build_group(2).expect("a group");
    let (address, handle) = (listeners[0].local_addr(), group.handle());
    let serve = |mut listener: ShedListener| {
        tokio::spawn(async move { while listener.accept().await.is_ok() {} })
    };
    let serving: Vec<_> = listeners.into_iter().map(serve).collect();
    let mut n = 0;
    for _ in 0..3 {
        drop(connect(address, 32));
        n += 32;
        until(&handle, |stats| stats.accepted == n && stats.open == 0).await;
        let before = handle.stats();
        assert!(group.shrink().await);
        let after = handle.stats();
        assert!(before.queue_wait.count() <= after.queue_wait.count(), "{before:?} {after:?}");
        assert_eq!(after.connection_duration.count(), n);
        drop(serve(group.grow().expect("a member")));
    }
    handle.close();
    for serving in serving {
        serving.await.expect("no panic");
    }
    let stats = until(&handle, |stats| stats.accept_batch_size.sum == stats.accepted).await;
    check_rest(&stats);
    assert!((4..=16).contains(&stats.queue_wait.count()), "{stats:?}");
}

#[tokio::test]
async fn a_thread_that_accepts_measures_as_well() {
    let built = ShedListener::bind("127.0.0.1:0").soft(100).build_threaded(100);
    let mut accepted = built.expect("a listener");
    let handle = accepted.handle();
    let clients = connect(accepted.local_addr(), 32);
    for _ in 0..32 {
        drop(accepted.accept().await.expect("it is queued"));
    }
    let stats = until(&handle, |it| it.open == 0 && it.accept_batch_size.sum == 32).await;
    check_rest(&stats);
    assert!(stats.queue_wait.count() != 0 && stats.decision.count() != 0, "{stats:?}");
    assert!(stats.accept_loop_lag.count() != 0, "{stats:?}");
    drop(clients);
}
