use std::{io, net::Shutdown, sync::Mutex as StdMutex, thread, time::Instant as StdInstant};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::{advance, sleep},
};

use super::*;

/// A backend that echoes, and how to reach it.
async fn echo() -> (Backend, tokio::task::JoinHandle<()>) {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = Backend::Tcp(server.local_addr().expect("an address"));
    let task = tokio::spawn(async move {
        let mut conns = JoinSet::new();
        while let Ok((mut conn, _)) = server.accept().await {
            conns.spawn(async move {
                while let Ok(byte) = conn.read_u8().await {
                    conn.write_u8(byte).await.expect("room");
                }
            });
        }
    });
    (backend, task)
}

fn pool(config: PoolConfig) -> Pool {
    Pool::new(config).expect("it holds")
}

async fn ask(conn: &mut Pooled) {
    conn.write_u8(b'?').await.expect("room");
    assert_eq!(conn.read_u8().await.expect("an answer"), b'?');
}

#[test]
fn what_cannot_hold_is_named() {
    let check = |config: PoolConfig, expected: &str| {
        assert_eq!(Pool::new(config).expect_err("refused").to_string(), expected);
    };
    let default = PoolConfig::default;
    check(
        PoolConfig { max_total: 0, ..default() },
        &format!("pool: max_total is 0, expected 1 to {} connections", Semaphore::MAX_PERMITS),
    );
    check(
        PoolConfig { connect_timeout: Duration::ZERO, ..default() },
        "pool: connect_timeout is 0ns, expected 1ms to 604800s",
    );
    check(
        PoolConfig { connect_timeout: Duration::MAX, ..default() },
        &format!("pool: connect_timeout is {:?}, expected 1ms to 604800s", Duration::MAX),
    );
    check(
        PoolConfig { idle_timeout: Duration::from_secs(604_801), ..default() },
        "pool: idle_timeout is 604801s, expected 1ms to 604800s",
    );
    check(
        PoolConfig { keepalive: Some(Duration::from_secs(36_000)), ..default() },
        "pool: keepalive is 36000s, expected 1s to 32767s",
    );
    check(
        PoolConfig { keepalive: Some(Duration::from_millis(10)), ..default() },
        "pool: keepalive is 10ms, expected 1s to 32767s",
    );
}

#[tokio::test]
async fn the_longest_times_can_be_had() {
    let (backend, _server) = echo().await;
    let week = Duration::from_secs(604_800);
    let pool = pool(PoolConfig {
        idle_timeout: week,
        connect_timeout: week,
        keepalive: Some(Duration::from_secs(32_767)),
        ..PoolConfig::default()
    });
    pool.get(&backend, None).await.expect("a connection").reuse();
    assert!(pool.sweep().is_some_and(|left| left <= week));
    ask(&mut pool.get(&backend, None).await.expect("it is kept")).await;
    assert_eq!(pool.stats().hits, 1);
}

#[tokio::test(start_paused = true)]
async fn swept_after_90_s_and_not_before() {
    let (backend, _server) = echo().await;
    let pool =
        pool(PoolConfig { connect_timeout: Duration::from_secs(3_600), ..Default::default() });
    pool.get(&backend, None).await.expect("a connection").reuse();
    assert_eq!(pool.sweep(), Some(Duration::from_secs(90)));
    advance(Duration::from_millis(89_999)).await;
    pool.sweep();
    assert_eq!((pool.stats().idle, pool.stats().evicted_for(Evicted::Idle)), (1, 0));
    advance(Duration::from_millis(1)).await;
    assert_eq!(pool.sweep(), None);
    assert_eq!((pool.stats().idle, pool.stats().evicted_for(Evicted::Idle)), (0, 1));

    // and whoever comes next sweeps, too
    pool.get(&backend, None).await.expect("a connection").reuse();
    advance(Duration::from_secs(90)).await;
    let other = pool.get(&backend, None).await.expect("a connection");
    let stats = pool.stats();
    assert_eq!((stats.dials, stats.hits, stats.evicted_for(Evicted::Idle)), (3, 0, 2));
    drop(other);
}

#[tokio::test]
async fn one_that_closed_or_spoke_unasked_is_not_given_out() {
    for says in [&b""[..], b"x"] {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let backend = Backend::Tcp(server.local_addr().expect("an address"));
        let pool = pool(PoolConfig::default());
        let conn = pool.get(&backend, None).await.expect("a connection");
        let (mut peer, _) = server.accept().await.expect("it dialled");
        peer.write_all(says).await.expect("room");
        if says.is_empty() {
            SockRef::from(&peer).shutdown(Shutdown::Both).expect("open");
        }
        let BackendStream::Tcp(stream) = conn.get_ref() else { panic!("it is TCP") };
        stream.readable().await.expect("it arrives");
        conn.reuse();
        assert_eq!(pool.stats().idle, 1);
        let _other = pool.get(&backend, None).await.expect("a connection");
        let stats = pool.stats();
        assert_eq!((stats.dials, stats.hits, stats.evicted_for(Evicted::Unhealthy)), (2, 0, 1));
    }
}

#[tokio::test]
async fn what_is_dialled_keeps_alive() {
    let (backend, _server) = echo().await;
    let conn = pool(PoolConfig::default()).get(&backend, None).await.expect("a connection");
    let BackendStream::Tcp(stream) = conn.get_ref() else { panic!("it is TCP") };
    let socket = SockRef::from(stream);
    assert!(socket.keepalive().expect("an option"));
    assert_eq!(socket.tcp_keepalive_time().expect("an option"), Duration::from_secs(15));
    assert_eq!(socket.tcp_keepalive_interval().expect("an option"), Duration::from_secs(5));
    assert_eq!(socket.tcp_keepalive_retries().expect("an option"), 3);
    assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn a_thousand_wait_in_line() {
    let (backend, _server) = echo().await;
    let pool = pool(PoolConfig { max_total: 1, ..Default::default() });
    let first = pool.get(&backend, None).await.expect("a connection");
    let served = Arc::new(StdMutex::new(Vec::new()));
    let mut waiters = JoinSet::new();
    for n in 0..1_000 {
        let (pool, backend, served) = (pool.clone(), backend.clone(), Arc::clone(&served));
        waiters.spawn(async move {
            let mut conn = pool.get(&backend, None).await.expect("its turn");
            served.lock().expect("no panic").push(n);
            ask(&mut conn).await;
            conn.reuse();
        });
        tokio::task::yield_now().await;
    }
    let end = Instant::now() + Duration::from_secs(5);
    while pool.stats().waiters < 1_000 {
        assert!(Instant::now() < end, "{:?}", pool.stats());
        tokio::task::yield_now().await;
    }
    first.reuse();
    while let Some(done) = waiters.join_next().await {
        done.expect("no panic");
    }
    assert!(served.lock().expect("no panic").iter().copied().eq(0..1_000), "{served:?}");
    let stats = pool.stats();
    assert_eq!((stats.dials, stats.hits, stats.waiters), (1, 1_000, 0));
    assert_eq!((stats.idle, stats.in_use), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_ends_at_its_deadline_and_leaves_the_line() {
    let (backend, _server) = echo().await;
    let pool = pool(PoolConfig {
        max_total: 1,
        connect_timeout: Duration::from_secs(3_600),
        ..Default::default()
    });
    let held = pool.get(&backend, None).await.expect("a connection");
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(500);
    let refused = pool.get(&backend, Some(deadline.into_std())).await.expect_err("it is held");
    assert_eq!(refused.to_string(), "all of 1 backend connections were in use until the deadline");
    assert!((500..=501).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!((pool.stats().timeouts, pool.stats().waiters), (1, 0));
    held.reuse();
    pool.get(&backend, None).await.expect("it is free").reuse();
    assert_eq!(pool.stats().hits, 1);
}

#[tokio::test]
async fn never_more_are_open_than_may_be() {
    let (first, _server) = echo().await;
    let (second, _other) = echo().await;
    let pool = pool(PoolConfig { max_total: 3, max_idle_per_host: 2, ..Default::default() });
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.get(&first, None).await.expect("a connection"));
    }
    held.into_iter().for_each(Pooled::reuse);
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.evicted_for(Evicted::Overflow)), (2, 1), "two are kept");
    let one = pool.get(&second, None).await.expect("a connection");
    assert_eq!(pool.stats().idle, 2);
    let two = pool.get(&second, None).await.expect("a connection");
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.in_use), (1, 2), "the other backend's oldest made room");
    assert_eq!(stats.evicted_for(Evicted::Overflow), 2);
    drop((one, two));
}

#[tokio::test]
async fn what_is_taken_or_given_back_is_counted_once_by_whoever_looks() {
    let (backend, _server) = echo().await;
    let pool = pool(PoolConfig::default());
    pool.get(&backend, None).await.expect("a connection").reuse();
    let looks = thread::spawn({
        let (pool, begun) = (pool.clone(), StdInstant::now());
        move || {
            let (mut before, mut n_changes) = ((0, 0), 0);
            // a busy machine has them take turns, where there are few changes to be seen
            while n_changes < 1_000 && begun.elapsed() < Duration::from_secs(2) {
                let state = pool.inner.state();
                let seen = (state.n_idle, state.in_use);
                drop(state);
                // as both, and whoever makes room would close one for it
                assert!([(1, 0), (0, 1)].contains(&seen), "{seen:?}");
                n_changes += usize::from(seen != before);
                before = seen;
            }
        }
    });
    while !looks.is_finished() {
        pool.get(&backend, None).await.expect("it is kept").reuse();
    }
    looks.join().expect("no panic");
    assert_eq!(pool.stats().dials, 1);
}

#[tokio::test]
async fn only_what_is_said_to_be_reusable_is_kept() {
    let (backend, _server) = echo().await;
    let pool = pool(PoolConfig::default());
    let mut conn = pool.get(&backend, None).await.expect("a connection");
    ask(&mut conn).await;
    drop(conn);
    assert_eq!((pool.stats().idle, pool.stats().evicted_for(Evicted::Error)), (0, 1));

    let task = tokio::spawn({
        let (pool, backend) = (pool.clone(), backend.clone());
        async move {
            let _conn = pool.get(&backend, None).await.expect("a connection");
            panic!("its user fails");
        }
    });
    assert!(task.await.is_err());
    assert_eq!((pool.stats().in_use, pool.stats().evicted_for(Evicted::Error)), (0, 2));

    // one that was closed is not kept whatever is said
    let mut conn = pool.get(&backend, None).await.expect("a connection");
    conn.shutdown().await.expect("open");
    assert_eq!(conn.read(&mut [0]).await.expect("an end"), 0);
    conn.reuse();
    assert_eq!((pool.stats().idle, pool.stats().evicted_for(Evicted::Error)), (0, 3));
}

#[tokio::test]
async fn of_a_thousand_requests_more_than_99_in_100_reuse() {
    let path = std::env::temp_dir().join(format!("backlogd-shed-pool-{}", std::process::id()));
    drop(std::fs::remove_file(&path));
    let server = UnixListener::bind(&path).expect("a path");
    let server = tokio::spawn(async move {
        let mut conns = JoinSet::new();
        while let Ok((mut conn, _)) = server.accept().await {
            conns.spawn(async move {
                while let Ok(byte) = conn.read_u8().await {
                    conn.write_u8(byte).await.expect("room");
                }
            });
        }
    });
    let (tcp, _server) = echo().await;
    for backend in [Backend::Unix(path.clone()), tcp] {
        let pool = pool(PoolConfig::default());
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            let (pool, backend) = (pool.clone(), backend.clone());
            clients.spawn(async move {
                for _ in 0..250 {
                    let mut conn = pool.get(&backend, None).await.expect("a connection");
                    ask(&mut conn).await;
                    conn.reuse();
                }
            });
        }
        while let Some(done) = clients.join_next().await {
            done.expect("no panic");
        }
        let stats = pool.stats();
        assert_eq!(stats.hits + stats.dials, 1_000);
        assert!(990 <= stats.hits && stats.idle <= 4, "{backend}: {stats:?}");
    }
    server.abort();
    std::fs::remove_file(&path).expect("it was there");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_refuses_or_is_silent_is_told_apart() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("an address");
    drop(server);
    let pool = pool(PoolConfig::default());
    let refused = pool.get(&Backend::Tcp(address), None).await.expect_err("nobody listens");
    assert!(
        matches!(&refused, GetError::Connect { source, .. }
            if source.kind() == io::ErrorKind::ConnectionRefused),
        "{refused:?}"
    );
    assert_eq!(pool.stats().connect_errors, BTreeMap::from([(libc::ECONNREFUSED, 1)]));

    // its queue holds two and nobody accepts: the third waits for the handshake
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&address.into()).expect("the port is free");
    socket.listen(1).expect("bound");
    let held: Vec<_> =
        (0..2).map(|_| std::net::TcpStream::connect(address).expect("queued")).collect();
    sleep(Duration::from_millis(1)).await;
    let silent = pool.get(&Backend::Tcp(address), None).await.expect_err("the queue is full");
    assert_eq!(silent.to_string(), format!("backend {address}: no connection after 1s"));
    assert_eq!((pool.stats().timeouts, pool.stats().in_use), (1, 0));
    drop(held);
}
