//! A handler that never lets go of its connections is seen by what is open: accepted and closed
//! part.

mod stats;

use std::{future, io::Write as _, net::TcpStream};

use backlogd_shed::ShedListener;
use stats::{check_identities, until};
use tokio::io::AsyncReadExt as _;

/// Clients that come, say something, and leave; so often.
const ROUNDS: u64 = 3;
const CLIENTS: u64 = 40;

/// What is open after each round, when no client is left.
async fn open_after_rounds(leaks: bool) -> Vec<u64> {
    let mut listener = ShedListener::bind("127.0.0.1:0").soft(500).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let serving = tokio::spawn(async move {
        while let Ok(mut conn) = listener.accept().await {
            tokio::spawn(async move {
                let said = conn.read_u8().await;
                if leaks && said.is_ok_and(|it| it == b'!') {
                    // waits for what nobody will ever say
                    future::pending::<()>().await;
                }
                drop(conn);
            });
        }
    });
    let mut open = Vec::new();
    for round in 1..=ROUNDS {
        let come = |n| {
            let mut client = TcpStream::connect(address).expect("queued");
            client.write_all(if n % 2 == 0 { b"!" } else { b"." }).expect("room");
        };
        (0..CLIENTS).for_each(come);
        let leaked = if leaks { round * CLIENTS / 2 } else { 0 };
        let is_so = |n_accepted, n_open| n_accepted == round * CLIENTS && n_open == leaked;
        let stats = until(&handle, |it| is_so(it.admitted, it.open)).await;
        check_identities(&stats);
        let closed: u64 = stats.closed.iter().map(|(_, n)| n).sum();
        open.push(stats.accepted - closed);
    }
    serving.abort();
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_leaks_stays_open_and_what_another_serves_does_not() {
    assert_eq!(open_after_rounds(true).await, [20, 40, 60]);
    assert_eq!(open_after_rounds(false).await, [0, 0, 0]);
}
