//! Listeners of one process, and its RLIMIT_NOFILE. Each process whose limit it is, is this test
//! binary.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{self, Command},
    time::Duration,
};

use backlogd_shed::{
    Bound, BuildError, Handle, LimitError, Limits, MAX_LIMIT, Pause, Reason, SetError, ShedListener,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task, time,
};

const INSIDE: &str = "SHED_TEST_DESCRIPTORS";

/// Runs the test `name` in a process that may open `nofile` descriptors.
#[track_caller]
fn inside(name: &str, nofile: usize) {
    let ended = Command::new("sh")
        .args(["-c", &format!(r#"ulimit -n {nofile}; exec "$0" "$@""#)])
        .arg(env::current_exe().expect("a path"))
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(INSIDE, name)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
}

/// Whether this process was started for the test `name`.
fn is_inside(name: &str) -> bool {
    env::var(INSIDE).is_ok_and(|it| it == name)
}

fn limits(soft: usize, hard: impl Into<Option<usize>>) -> Limits {
    Limits { hard: hard.into(), ..Limits::soft(soft) }
}

fn build(limits: Limits) -> Result<ShedListener, BuildError> {
    ShedListener::bind("127.0.0.1:0").limits(limits).build()
}

fn in_force(handle: &Handle) -> (usize, usize, Bound) {
    let (soft, hard) = handle.bounds();
    (soft, hard, handle.bound())
}

#[test]
fn listeners_have_no_more_than_their_process_has() {
    inside("sharing", 1_024);
}

#[tokio::test]
#[ignore = "no test: the process that shares"]
async fn sharing() {
    if !is_inside("sharing") {
        return;
    }
    let first = build(limits(500, 700)).expect("there is room");
    let refused = build(limits(500, 700)).expect_err("there is none");
    assert_eq!(
        refused.to_string(),
        "hard limit is 700, expected at most 196: RLIMIT_NOFILE is 1024, of which 128 are reserved \
         and 700 claimed by other listeners of this process; it would have to be 1599"
    );
    let expected = LimitError::Descriptors {
        hard: 700,
        soft: None,
        fds_per_connection: 1,
        most: 196,
        reserve: 128,
        others: 700,
        nofile: 1_024,
        descriptors: 1_599,
    };
    assert!(matches!(refused, BuildError::Limits(err) if err == expected));
    // for other reasons: what it claims is given back
    let taken = first.local_addr().to_string();
    let refused = ShedListener::bind(taken).limits(limits(150, None)).build();
    assert!(matches!(refused, Err(BuildError::InUse { .. })));
    let refused = ShedListener::bind("127.0.0.1:0").limits(limits(150, None)).max_request_bytes(0);
    assert!(matches!(refused.build(), Err(BuildError::MaxRequestBytes)));

    // 192 at least, 200 where there are as many
    let second = build(limits(160, None)).expect("there is room");
    let (one, two) = (first.handle(), second.handle());
    assert_eq!(in_force(&two), (160, 196, Bound::Descriptors));
    assert_eq!(in_force(&one), (500, 700, Bound::Given));
    let refused = one.set_limits(limits(500, 701)).expect_err("there is no room");
    assert!(
        matches!(refused, SetError::Limits(LimitError::Descriptors { most: 700, others: 196, .. })),
        "{refused:?}"
    );
    assert_eq!((one.limits(), one.bounds()), (limits(500, 700), (500, 700)));
    one.set_limits(limits(500, 600)).expect("it is less");
    assert_eq!(in_force(&two), (160, 200, Bound::Soft));
    // who is closed has nothing open, though it is known of
    drop(first);
    two.set_limits(limits(700, None)).expect("all is left");
    assert_eq!(in_force(&two), (700, 875, Bound::Soft));
    drop((second, two));
    let all = build(limits(700, 896)).expect("all is left");
    assert_eq!(in_force(&all.handle()), (700, 896, Bound::Given));
    let refused = build(limits(MAX_LIMIT, None)).expect_err("too many");
    assert!(matches!(refused, BuildError::Limits(LimitError::TooHigh { .. })), "{refused:?}");
}

/// Has the soft RLIMIT_NOFILE of this process be another one.
fn set_nofile(nofile: usize) {
    let pid = format!("--pid={}", process::id());
    let set = Command::new("prlimit").args([&pid, &format!("--nofile={nofile}:")]).status();
    assert!(set.expect("prlimit, of util-linux").success());
}

/// Lets time pass, and all tasks have their turns.
async fn pass(time: Duration) {
    time::advance(time).await;
    for _ in 0..100 {
        task::yield_now().await;
    }
}

/// Asks the server for an answer.
async fn is_served(client: &mut TcpStream) -> bool {
    client.set_nonblocking(true).expect("a socket");
    if client.write_all(b"?").is_err() {
        return false;
    }
    for _ in 0..10_000 {
        match client.read(&mut [0]) {
            Ok(n) => return n == 1,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => task::yield_now().await,
            Err(_) => return false,
        }
    }
    false
}

async fn count_served(clients: &mut [TcpStream]) -> usize {
    let mut n_served = 0;
    for client in clients {
        n_served += usize::from(is_served(client).await);
    }
    n_served
}

fn connect(address: SocketAddr, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(address).expect("queued")).collect()
}

#[test]
fn a_lower_rlimit_ends_nobody_and_a_higher_one_restores() {
    inside("lowered", 1_024);
}

#[tokio::test(start_paused = true)]
#[ignore = "no test: the process whose limit is lowered"]
async fn lowered() {
    if !is_inside("lowered") {
        return;
    }
    let given = Limits { fd_reserve: Some(176), ..limits(400, 600) };
    let mut listener = build(given).expect("there is room");
    let (address, handle) = (listener.local_addr(), listener.handle());
    // has no connection, and is looked at all the same
    let idle = build(Limits { fd_reserve: Some(0), ..limits(100, 150) }).expect("there is room");
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            tokio::spawn(async move {
                while conn.read_u8().await.is_ok() && conn.write_all(b"!").await.is_ok() {}
            });
        }
    });
    let mut clients = connect(address, 100);
    assert_eq!(count_served(&mut clients).await, 100);

    set_nofile(276);
    assert_eq!(in_force(&handle), (400, 600, Bound::Given));
    pass(Duration::from_secs(10)).await;
    // 100 are left of 750 that were asked for
    assert_eq!(in_force(&handle), (66, 80, Bound::Descriptors));
    assert_eq!(in_force(&idle.handle()), (16, 20, Bound::Descriptors));
    assert_eq!(handle.limits(), given);
    assert_eq!(count_served(&mut clients).await, 100, "nobody is ended");
    let refused = handle.set_limits(given).expect_err("there is no room");
    assert!(refused.to_string().contains("expected at most 80: RLIMIT_NOFILE is 276"), "{refused}");

    clients.truncate(50);
    while 50 < handle.stats().open {
        pass(Duration::from_millis(1)).await;
    }
    let mut more = connect(address, 30);
    assert_eq!(count_served(&mut more).await, 16, "up to the soft limit");
    assert_eq!(handle.stats().shed_for(Reason::Soft), 14);
    assert_eq!(count_served(&mut clients).await, 50);

    set_nofile(1_024);
    pass(Duration::from_secs(10)).await;
    assert_eq!(in_force(&handle), (400, 600, Bound::Given));
    assert_eq!(in_force(&idle.handle()), (100, 150, Bound::Given));
    assert_eq!(count_served(&mut connect(address, 200)).await, 200);
}

#[test]
fn a_listener_that_stands_still_goes_on_when_there_is_room() {
    inside("paused", 1_024);
}

#[tokio::test(start_paused = true)]
#[ignore = "no test: the process that stands still"]
async fn paused() {
    if !is_inside("paused") {
        return;
    }
    let given = Limits { fd_reserve: Some(176), ..limits(400, 600) };
    let mut listener = build(given).expect("there is room");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let clients = connect(address, 41);
    let mut conns = Vec::new();
    while conns.len() < 40 {
        conns.push(listener.accept().await.expect("it is open"));
    }
    set_nofile(200);
    pass(Duration::from_secs(10)).await;
    assert_eq!(in_force(&handle), (20, 24, Bound::Descriptors));
    let next = tokio::spawn(async move { listener.accept().await.map(drop) });
    for _ in 0..100 {
        task::yield_now().await;
    }
    assert!(handle.stats().is_paused == Some(Pause::Hard) && !next.is_finished());
    set_nofile(1_024);
    pass(Duration::from_secs(10)).await;
    next.await.expect("no panic").expect("it is open");
    drop((clients, conns));
}
