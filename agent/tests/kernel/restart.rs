//! How long a listener that is gone is remembered.

use std::{net::SocketAddr, time::Duration};

use backlogd::model::Settings;

use crate::{
    agent::{Agent, Numbers, SETTINGS, find, find_in},
    clients::Clients,
    namespace::in_own_netns,
    offenders::NeverAccepts,
    tier::options,
};

/// An agent that forgets a listener a second after it was gone.
fn forgetful() -> Agent {
    let settings = Settings { retention: Duration::from_secs(1), ..SETTINGS };
    Agent::with(&options(2048), settings)
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_that_stays_away_leaves_the_snapshot_after_the_retention() {
    in_own_netns(|| {
        let mut agent = forgetful();
        let server = NeverAccepts::listen("127.0.0.1:0", 5);
        let addr = server.addr;
        let there = agent.look();
        assert!(find_in(&there, addr).is_some());
        drop(server);
        let gone = agent.look();
        assert_eq!(find(&gone, addr).members, []);
        let forgotten = agent.until("it to be forgotten", |s| find_in(s, addr).is_none());
        let kept = Duration::from_nanos((forgotten.at - there.at).0);
        assert!(Duration::from_secs(1) <= kept && kept < Duration::from_secs(2), "{kept:?}");
    });
}

/// A listener that closes, and returns when `away` says so.
#[track_caller]
fn check_return(mut agent: Agent, away: impl FnOnce(&mut Agent, SocketAddr)) {
    let server = NeverAccepts::listen("127.0.0.1:0", 5);
    let addr = server.addr;
    let first = Clients::connect(3, addr);
    let taken = server.accept(1);
    agent.check(addr, Numbers { established: 3, accepted: 1, length: 2, ..Numbers::default() });
    drop(server);
    let mut sum = Numbers { established: 3, accepted: 1, listener_closed: 2, ..Numbers::default() };
    agent.check(addr, sum);
    away(&mut agent, addr);
    let server = NeverAccepts::again(addr, 7);
    let second = Clients::connect(2, addr);
    sum.established += 2;
    sum.length = 2;
    let listener = agent.check(addr, sum);
    assert_eq!((listener.members.len(), listener.limit), (1, 7));
    drop((first, taken, server, second));
}

#[test]
#[ignore = "kernel: needs root"]
fn a_listener_that_returns_goes_on_counting() {
    in_own_netns(|| check_return(Agent::start(), |_, _| {}));
    in_own_netns(|| {
        check_return(forgetful(), |agent, addr| {
            agent.until("it to be forgotten", |s| find_in(s, addr).is_none());
        });
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn connections_that_outlive_their_listener_still_count_when_they_close() {
    in_own_netns(|| {
        let mut agent = Agent::start();
        let server = NeverAccepts::listen("127.0.0.1:0", 50);
        let addr = server.addr;
        let clients = Clients::connect(40, addr);
        let taken = server.accept(40);
        drop(server);
        let sum = Numbers { established: 40, accepted: 40, ..Numbers::default() };
        let listener = agent.check(addr, sum);
        assert_eq!((listener.counters.closed, listener.open), (Ok(0), Ok(40)));
        drop((taken, clients));
        agent.check(addr, sum);
        agent.check_all_closed(addr, 40);
    });
}
