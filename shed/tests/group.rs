//! Members of one SO_REUSEPORT group: one limit, and nobody lost when one leaves.

mod load;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use backlogd_shed::{
    AcceptError, Candidate, Decide, Drain, Limits, OnShed, ProxyProtocol, Queued, Reason,
    ShedListener, Verdict,
};
use load::{Load, check_identities, serve, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_limit_holds_over_all_members() {
    let (group, listeners) = ShedListener::bind("127.0.0.1:0")
        .soft(100)
        .hard(1_000)
        .on_shed(OnShed::bytes(load::SHED))
        .build_group(4)
        .expect("a group");
    let (address, handle) = (listeners[0].local_addr(), group.handle());
    let serving: Vec<_> = listeners.into_iter().map(|it| tokio::spawn(serve(it))).collect();
    let mut clients = Vec::new();
    for _ in 0..400 {
        clients.push(TcpStream::connect(address).await.expect("connected"));
    }
    let stats = until(&handle, |it| it.admitted + it.shed_for(Reason::Soft) == 400).await;
    assert_eq!((stats.admitted, stats.shed_for(Reason::Soft)), (100, 300));
    assert_eq!(stats.members.iter().sum::<u64>(), 400);
    // each is binomial with n = 400 and p = 1/4: 100, 3 sigma are 26; more, to never fail by chance
    assert!(stats.members.iter().all(|n| (50..=150).contains(n)), "{:?}", stats.members);
    let mut shed = 0;
    for mut client in clients {
        shed += u64::from(matches!(
            timeout(Duration::from_millis(1), client.read_u8()).await,
            Ok(Ok(b'S'))
        ));
    }
    assert_eq!(shed, 300);
    until(&handle, |stats| stats.open == 0).await;
    let drain =
        Drain { delay: Duration::ZERO, deadline: Duration::from_secs(1), queued: Queued::Serve };
    assert_eq!(handle.drain(drain).await.reset, 0);
    for serving in serving {
        serving.await.expect("each member ends");
    }
    check_identities(&handle.stats());
}

/// Panics at who comes after so many.
struct PanicsAfter(AtomicUsize);

impl Decide for PanicsAfter {
    fn decide(&self, _: &Candidate<'_>, _: &backlogd_shed::Load) -> Verdict {
        let left = self.0.fetch_sub(1, Ordering::Relaxed);
        assert_ne!(left, 0, "on purpose");
        Verdict::Admit
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_wait_for_room_learn_that_another_one_failed() {
    const N: usize = 32;
    const HEADER: &[u8] = b"PROXY UNKNOWN\r\n";
    let proxies = ProxyProtocol::from(["127.0.0.1".parse().expect("an address")]);
    let builder = ShedListener::bind("127.0.0.1:0").soft(2 * N).proxy_protocol(proxies);
    let builder = builder.decide(PanicsAfter(AtomicUsize::new(N)));
    let (group, listeners) = builder.build_group(2).expect("a group");
    let (address, handle) = (listeners[0].local_addr(), group.handle());
    let accept = |mut it: ShedListener| async move {
        let mut served = Vec::new();
        loop {
            match it.accept().await {
                Ok(conn) => served.push(conn),
                Err(err) => return (err, served),
            }
        }
    };
    let accepting: Vec<_> = listeners.into_iter().map(|it| tokio::spawn(accept(it))).collect();
    let mut clients = Vec::new();
    for _ in 0..N {
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(HEADER).await.expect("connected");
        clients.push(client);
    }
    until(&handle, |stats| stats.open == N as u64 && stats.handshaking == 0).await;
    let mut last = TcpStream::connect(address).await.expect("connected");
    until(&handle, |stats| stats.open == N as u64 + 1 && stats.handshaking == 1).await;
    handle.set_limits(Limits { hard: Some(3), ..Limits::soft(2) }).expect("they hold");
    // each waits only when somebody came, who is reset
    for _ in 0..N {
        clients.extend(TcpStream::connect(address).await);
    }
    last.write_all(HEADER).await.expect("connected");
    let mut all = Vec::new();
    for accepted in accepting {
        let told = timeout(Duration::from_secs(2), accepted).await.expect("it is told");
        let (err, served) = told.expect("no panic");
        assert!(matches!(err, AcceptError::Fatal(_)), "{err:?}");
        all.push(served);
    }
    assert_eq!(handle.stats().open, N as u64, "there was no room");
}

/// So often from 4 members to 1 and back.
async fn shrink_and_grow(rounds: usize) {
    let (mut group, listeners) =
        ShedListener::bind("127.0.0.1:0").soft(5_000).build_group(4).expect("a group");
    let (address, handle) = (listeners[0].local_addr(), group.handle());
    for listener in listeners {
        tokio::spawn(serve(listener));
    }
    let load = Load::start(address, 64, Duration::from_millis(5));
    for _ in 0..rounds {
        load.until_served(200).await;
        for n_left in [3, 2, 1] {
            assert!(group.shrink().await);
            assert_eq!(group.members(), n_left);
            load.until_served(100).await;
        }
        assert!(!group.shrink().await, "the last one stays");
        while group.members() < 4 {
            tokio::spawn(serve(group.grow().expect("a member")));
        }
        let before = handle.stats().members;
        load.until_served(400).await;
        let after = handle.stats().members;
        assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{after:?}");
    }
    let [_, shed, refused, reset, hung] = load.stop().await;
    assert_eq!((shed, refused, reset, hung), (0, 0, 0, 0), "{:?}", handle.stats());
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}

#[tokio::test]
async fn nobody_joins_while_a_member_leaves() {
    let (mut group, mut listeners) =
        ShedListener::bind("127.0.0.1:0").build_group(2).expect("a group");
    // nobody accepts: the member stays
    let shrunk = timeout(Duration::from_millis(1), group.shrink()).await;
    assert!(shrunk.is_err());
    let err = group.grow().expect_err("one is leaving").to_string();
    assert_eq!(err, "a member of the group is leaving, expected none that does");
    listeners.pop();
    assert!(group.grow().is_ok());
}

#[tokio::test]
async fn nobody_joins_what_is_closed_or_has_drained() {
    let now = Drain { delay: Duration::ZERO, ..Drain::default() };
    for drains in [false, true] {
        let (mut group, listeners) =
            ShedListener::bind("127.0.0.1:0").build_group(2).expect("a group");
        let (address, handle) = (listeners[0].local_addr(), group.handle());
        let serving: Vec<_> = listeners.into_iter().map(|it| tokio::spawn(serve(it))).collect();
        if drains {
            handle.drain(now).await;
        } else {
            handle.close();
        }
        for serving in serving {
            serving.await.expect("each member ends");
        }
        let err = group.grow().expect_err("it has ended").to_string();
        assert_eq!(err, "the group is closed, or ends, expected one that accepts");
        let err = TcpStream::connect(address).await.expect_err("nobody listens");
        assert_eq!(err.kind(), std::io::ErrorKind::ConnectionRefused, "drains: {drains}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_lost_when_members_leave() {
    shrink_and_grow(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: 12 rounds under load"]
async fn nobody_is_lost_in_twelve_rounds() {
    shrink_and_grow(12).await;
}
