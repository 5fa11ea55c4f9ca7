//! Packets that arrive by interrupt, as from a network card.

use std::{net::Shutdown, sync::Arc, thread};

use crate::{
    agent::{Agent, find, own_lost, undone_in},
    clients::Clients,
    namespace::{in_own_netns, own_netns, packets_by_interrupt, wait_for},
    offenders::NeverAccepts,
    tier::scaled,
};

/// How many connections each client makes, one after the other.
const CONNECTIONS: [u64; 4] = [5_000; 4];

#[test]
#[ignore = "kernel: needs root"]
fn what_no_program_saw_is_published_as_lost() {
    in_own_netns(|| {
        packets_by_interrupt();
        let mut agent = Agent::start();
        let server = Arc::new(NeverAccepts::listen("127.0.0.1:0", 1024));
        let addr = server.addr;
        let acceptors = [(); 8].map(|()| {
            let server = server.clone();
            thread::spawn(move || {
                let mut accepted = 0_u64;
                while server.socket().accept().is_ok() {
                    accepted += 1;
                }
                accepted
            })
        });
        let connections = CONNECTIONS.map(scaled);
        let mut all = 0;
        // whether an interrupt comes over a program is a matter of luck
        for _ in 0..5 {
            let clients = connections.map(|n| {
                thread::spawn(move || (0..n).for_each(|_| drop(Clients::connect(1, addr))))
            });
            while !clients.iter().all(thread::JoinHandle::is_finished) {
                agent.look();
            }
            clients.into_iter().for_each(|client| client.join().expect("client"));
            all += connections.iter().sum::<u64>();
            if agent.look().agent.second_copy != Ok(0) || connections != CONNECTIONS {
                break;
            }
        }
        wait_for("the queue to drain", || agent.truth().at(addr).length == 0);
        let undone = undone_in(&agent.look(), own_netns());
        assert_eq!(agent.truth().count("PassiveOpens"), all + undone);
        let account = |s: &_| (find(s, addr).counters.established, own_lost(s));
        agent.until("counted and lost to be all", |snapshot| {
            let (established, lost) = account(snapshot);
            established.and_then(|n| lost.map(|lost| n + lost)) == Ok(all)
        });
        // and it stays so
        let (snapshot, _) = agent.settled();
        // some are lost on some kernels; without the second copy it would be many more, and in so
        // many it is needed at all
        let lost = own_lost(&snapshot).expect("eBPF runs");
        assert!(lost <= all / 20, "{lost} of {all} lost");
        if connections == CONNECTIONS {
            assert_ne!(snapshot.agent.second_copy, Ok(0));
        }
        // nothing is open, though some kernels show no program the end of some
        let is_closed = |snapshot: &_| find(snapshot, addr).open == Ok(0);
        let snapshot = agent.until("what is gone to be found out", is_closed);
        assert!(snapshot.agent.corrections.is_ok_and(|n| n <= all / 20), "{:?}", snapshot.agent);
        server.socket().shutdown(Shutdown::Read).expect("shutdown");
        let accepted: u64 = acceptors.map(|a| a.join().expect("acceptor")).into_iter().sum();
        assert_eq!(accepted, all);
    });
}
