//! Adaptive limits on real sockets.

mod stats;

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use backlogd_shed::{Reason, ShedListener, adaptive::Adaptive};
use stats::check_identities;
use tokio::time;

#[tokio::test]
async fn codel_sheds_the_head_of_a_queue_that_stays_long() {
    let build = |builder: backlogd_shed::Builder| builder.soft(100).build().expect("a listener");
    for (follows, expected) in [(true, 1), (false, 0)] {
        let builder = ShedListener::bind("127.0.0.1:0");
        let builder = if follows { builder.adaptive(Adaptive::codel()) } else { builder };
        let mut listener = build(builder);
        let address = listener.local_addr();
        let clients: Vec<_> =
            (0..4).map(|_| TcpStream::connect(address).expect("queued")).collect();
        // longer than the target, and then for longer than the interval
        time::sleep(Duration::from_millis(50)).await;
        let first = listener.accept().await.expect("the first");
        time::sleep(Duration::from_millis(150)).await;
        let second = listener.accept().await.expect("the second or third");
        let stats = listener.handle().stats();
        assert_eq!(stats.shed_for(Reason::Codel), expected, "{stats:?}");
        assert_eq!(stats.admitted, 2);
        check_identities(&stats);
        drop((first, second, clients));
        assert_eq!(listener.handle().stats().open, 0);
    }
}

#[tokio::test]
async fn the_gradient_lowers_the_soft_limit_while_requests_take_longer() {
    let window = Duration::from_millis(100);
    let mut listener = ShedListener::bind("127.0.0.1:0")
        .soft(20)
        .adaptive(Adaptive::Gradient { floor: Some(10), window })
        .build()
        .expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    assert_eq!(handle.stats().adaptive_limit, Some(20));
    let (mut clients, mut conns) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        clients.push(TcpStream::connect(address).expect("queued"));
        conns.push(listener.accept().await.expect("below the limit"));
    }
    let closing = handle.clone();
    let accepting = tokio::spawn(async move {
        while let Ok(conn) = listener.accept().await {
            drop(conn);
        }
    });
    let begun = Instant::now();
    let end = begun + Duration::from_secs(8);
    while handle.stats().adaptive_limit != Some(18) {
        assert!(Instant::now() < end, "{:?}", handle.adaptive());
        let is_slow = Duration::from_millis(1_200) < begun.elapsed();
        // who has the connection says so, and who has not
        for _ in 0..60 {
            match is_slow {
                false => conns[0].permit().sample(Duration::from_millis(10)),
                true => handle.sample(Duration::from_millis(500)),
            }
        }
        // whoever comes has the time looked at
        drop(TcpStream::connect(address).expect("queued"));
        time::sleep(window / 2).await;
    }
    let adaptive = handle.adaptive().expect("it follows");
    assert_eq!((adaptive.limit, adaptive.gradient), (18, 500), "{adaptive:?}");

    let stats = handle.stats();
    assert!(stats.shed_for(Reason::Soft) != 0 && stats.open == 20, "{stats:?}");
    closing.close();
    accepting.await.expect("no panic");
    drop((clients, conns));
    let stats = handle.stats();
    assert_eq!(stats.open, 0);
    check_identities(&stats);
}

#[tokio::test]
async fn what_cannot_hold_is_an_error_when_it_is_built() {
    let adaptive = Adaptive::Gradient { floor: Some(50), window: Duration::from_secs(1) };
    let refused = ShedListener::bind("127.0.0.1:0").soft(20).adaptive(adaptive).build();
    let message = refused.expect_err("the floor is too high").to_string();
    assert_eq!(message, "adaptive: floor is 50, expected 1 to the soft limit of 20");
}
