//! Limits on real sockets: who is served, what the others see, and that both identities hold.

mod stats;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use backlogd_shed::{
    Answer, Candidate, Cause, Closed, Decide, Handle, Limits, Linger, Load, OnShed, Reason,
    ShedListener, Stage, Verdict,
};
use stats::{check_identities, until};
use tokio::{io::AsyncReadExt as _, task};

/// Serves until each peer closes, in tasks.
fn serve(mut listener: ShedListener) -> (SocketAddr, Handle) {
    let (address, handle) = (listener.local_addr(), listener.handle());
    tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            tokio::spawn(async move { while conn.read_u8().await.is_ok() {} });
        }
    });
    (address, handle)
}

/// What a client reads until the end of its connection.
fn read_all(mut client: &TcpStream) -> Result<Vec<u8>, io::ErrorKind> {
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).map(|_| bytes).map_err(|err| err.kind())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_the_soft_limit_a_client_is_reset_at_once() {
    let (address, handle) =
        serve(ShedListener::bind("127.0.0.1:0").soft(2).build().expect("a listener"));
    let shed = task::spawn_blocking(move || {
        let held: Vec<_> = (0..2).map(|_| TcpStream::connect(address).expect("queued")).collect();
        let results: Vec<_> = (0..5)
            .map(|_| {
                let begun = Instant::now();
                // the reset may be quicker than connect(2)
                let client = TcpStream::connect(address).map_err(|err| err.kind());
                let result = client.and_then(|client| read_all(&client));
                assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
                result
            })
            .collect();
        drop(held);
        results
    })
    .await
    .expect("clients");
    assert_eq!(shed, vec![Err(io::ErrorKind::ConnectionReset); 5]);
    let stats = until(&handle, |stats| stats.open == 0).await;
    assert_eq!((stats.accepted, stats.admitted), (7, 2));
    assert_eq!(stats.shed_for(Reason::Soft), 5);
    assert_eq!(stats.closed_for(Cause::Peer), 2);
    check_identities(&stats);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_arrives_whole() {
    let http = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: ";
    for (answer, expected) in [
        (OnShed::Rst, Err(io::ErrorKind::ConnectionReset)),
        (OnShed::Fin, Ok("")),
        (OnShed::http_503(), Ok(http)),
        (OnShed::bytes("421 busy\r\n"), Ok("421 busy\r\n")),
    ] {
        for says in [0, 1_024] {
            let mut listener = ShedListener::bind("127.0.0.1:0")
                .soft(1)
                .on_shed(answer.clone())
                .build()
                .expect("a listener");
            let (address, handle) = (listener.local_addr(), listener.handle());
            // what is said is there before it is accepted, so that a close would be a reset
            let clients: Vec<_> = (0..9)
                .map(|_| {
                    let mut client = TcpStream::connect(address).expect("queued");
                    client.write_all(&vec![b'x'; says]).expect("room");
                    client
                })
                .collect();
            let _served = listener.accept().await.expect("the first");
            tokio::spawn(async move { listener.accept().await });
            let stats = until(&handle, |it| it.shed_at(Stage::Accept) == 8).await;
            let got = task::spawn_blocking(move || {
                clients.iter().skip(1).map(read_all).collect::<Vec<_>>()
            })
            .await
            .expect("clients");
            for got in got {
                let got = got.map(|bytes| String::from_utf8(bytes).expect("text"));
                let is_right = match (&got, expected) {
                    (Ok(got), Ok(expected)) if expected == http => {
                        got.starts_with(http) && got.ends_with("\r\n\r\n")
                    }
                    (Ok(got), Ok(expected)) => got == expected,
                    (got, expected) => got.as_ref().err() == expected.as_ref().err(),
                };
                assert!(is_right, "{answer:?} after {says} bytes: {got:?}");
            }
            check_identities(&stats);
            let stats = until(&handle, |stats| stats.lingering == 0).await;
            assert_eq!(stats.answers.iter().map(|(_, n)| n).sum::<u64>(), 8, "{stats:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_changes_while_it_runs() {
    let (address, handle) =
        serve(ShedListener::bind("127.0.0.1:0").soft(4).build().expect("a listener"));
    let connect = move |n: usize| {
        task::spawn_blocking(move || {
            (0..n).map(|_| TcpStream::connect(address).expect("queued")).collect::<Vec<_>>()
        })
    };
    let held = connect(4).await.expect("clients");
    until(&handle, |stats| stats.open == 4).await;
    handle.set_limits(Limits::soft(2)).expect("they hold");
    drop(connect(1).await.expect("clients"));
    let stats = until(&handle, |stats| stats.shed_for(Reason::Soft) == 1).await;
    assert_eq!(stats.open, 4, "who was admitted stays");
    handle.set_limits(Limits::soft(6)).expect("they hold");
    let more = connect(2).await.expect("clients");
    until(&handle, |stats| stats.open == 6).await;
    let refused = handle.set_limits(Limits { hard: Some(6), ..Limits::soft(6) });
    let message = refused.expect_err("too close").to_string();
    assert_eq!(message, "hard limit is 6, expected at least 8: 20 % above the soft limit of 6");
    drop((held, more));
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_linger_never_stop_the_listener_alone() {
    let linger = Linger { time: Duration::from_secs(30), ..Linger::default() };
    let listener = ShedListener::bind("127.0.0.1:0").soft(10).hard(30).linger(linger);
    let (address, handle) =
        serve(listener.on_shed(OnShed::http_503()).build().expect("a listener"));
    let clients = task::spawn_blocking(move || {
        // a reset may be quicker than connect(2)
        (0..110).map(|_| TcpStream::connect(address)).collect::<Vec<_>>()
    });
    let clients = clients.await.expect("clients");
    let stats = until(&handle, |stats| stats.accepted == 110 && stats.admitted == 10).await;
    // half of what is between the limits
    assert_eq!((stats.lingering, stats.is_paused), (10, None), "{stats:?}");
    let resets = stats.answers.iter().find(|(answer, _)| *answer == Answer::FallbackRst);
    assert_eq!(resets.expect("all").1, 90, "{stats:?}");
    drop(clients);
    check_identities(&until(&handle, |stats| stats.open == 0 && stats.lingering == 0).await);
}

#[tokio::test]
async fn others_have_their_turn_among_those_who_are_admitted() {
    let mut listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).expect("queued")).collect();
    let accepts = tokio::spawn(async move {
        let mut served = Vec::new();
        while served.len() < 100 {
            served.push(listener.accept().await.expect("admitted"));
        }
    });
    let (mut before, mut most) = (0, 0);
    while before < 100 {
        task::yield_now().await;
        let accepted = handle.stats().accepted;
        (before, most) = (accepted, most.max(accepted - before));
    }
    assert!(most <= 16, "{most} accepted at one go");
    accepts.await.expect("no panic");
    drop(clients);
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}

/// Admits all, and panics when one of them ends.
struct PanicsAtTheEnd;

impl Decide for PanicsAtTheEnd {
    fn decide(&self, _: &Candidate<'_>, _: &Load) -> Verdict {
        Verdict::Admit
    }

    fn closed(&self, _: &Closed) {
        panic!("on purpose");
    }
}

#[tokio::test]
async fn a_place_is_given_back_though_the_user_panics() {
    let builder = ShedListener::bind("127.0.0.1:0").soft(2).decide(PanicsAtTheEnd);
    let mut listener = builder.build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    for n in 0..6 {
        let client = TcpStream::connect(address).expect("queued");
        let conn = listener.accept().await.expect("admitted");
        let ends = tokio::spawn(async move {
            let _conn = conn;
            // a panic of the user's on the way out of another
            assert!(n % 2 == 0, "on purpose, too");
        });
        assert!(ends.await.is_err_and(|err| err.is_panic()));
        drop(client);
    }
    check_identities(&until(&handle, |stats| stats.open == 0 && stats.admitted == 6).await);
}

#[tokio::test]
async fn settings_that_cannot_hold_are_errors() {
    for (linger, expected) in [
        (
            Linger { max: Some(usize::MAX), ..Linger::default() },
            "connections that linger is 18446744073709551615, expected 1 to 2097151",
        ),
        (
            Linger { time: Duration::from_secs(61), ..Linger::default() },
            "time to linger in ms is 61000, expected 1 to 60000",
        ),
    ] {
        let err = ShedListener::bind("127.0.0.1:0").linger(linger).build().expect_err("too much");
        assert_eq!(err.to_string(), expected);
    }
}
