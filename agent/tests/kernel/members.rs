//! A member of a `SO_REUSEPORT` group whose process stands still.

use std::time::{Duration, Instant};

use backlogd::model::{Settings, snapshot::Snapshot};

use crate::{
    agent::{Agent, Numbers, SETTINGS, find},
    clients::Clients,
    namespace::{in_own_netns, set_sysctl, wait_for},
    offenders::{Accepts, NeverAccepts, StoppedServer},
    tier::options,
    watched::{Reasons, Watched},
};

/// Of the member that is to stop, and of the others, which could take all clients at a time.
const BACKLOGS: [i32; 4] = [256, 256, 256, 16];

#[test]
#[ignore = "kernel: needs root"]
fn a_stopped_member_of_a_group_stalls_the_listener_and_all_drops_are_its_own() {
    in_own_netns(|| {
        // with them, clients that are refused try again all at once, get a cookie each, and are lost
        // when they bring it back to a full queue
        set_sysctl("ipv4/tcp_syncookies", "0");
        let settings = Settings { stalled_after: Duration::from_secs(2), ..SETTINGS };
        let mut watched = Watched::of(Agent::with(&options(2048), settings));
        let mut members = NeverAccepts::group(&BACKLOGS);
        let stopped = StoppedServer::serve(members.pop().expect("a member"));
        let healthy: Vec<Accepts> = members.into_iter().map(Accepts::at_once).collect();
        let addr = stopped.addr;
        stopped.stop();
        let mut clients = Clients::start(0, addr);
        for _ in 0..200 {
            // one by one: no last ACK comes to a full queue
            let before = watched.count("ListenDrops");
            let client = Clients::start(1, addr);
            let is_over = || client.connected() == 1 || before < watched.count("ListenDrops");
            wait_for("its fate", is_over);
            clients.join(client);
        }
        let start = Instant::now();
        let is_stalled = |snapshot: &Snapshot| find(snapshot, addr).stalled.expect("eBPF runs");
        while !is_stalled(&watched.look()) {
            assert!(start.elapsed() < Duration::from_secs(15), "not stalled");
        }
        watched.until("the others to be empty", |agent| agent.truth().at(addr).length == 17);

        let (snapshot, seen) = watched.settled();
        let listener = find(&snapshot, addr);
        let drops = seen.count("ListenDrops");
        let accepted = healthy.iter().map(Accepts::accepted).sum();
        let expected = Numbers {
            established: accepted + 17,
            accepted,
            drops,
            length: 17,
            ..Numbers::default()
        };
        assert_eq!((Numbers::of(listener), listener.limit), (expected, 3 * 256 + 16));
        let syn_queue_full = seen.count("TCPReqQFullDrop");
        let full_syn = drops - syn_queue_full;
        watched.check(&snapshot, Reasons { full_syn, syn_queue_full, ..Reasons::default() });
        if watched.agent().serves("syn") {
            // one that is sent again while its request sock lives is not among them
            assert_eq!(listener.counters.syns, Ok(expected.established + drops));
        }
        for member in &listener.members {
            let shown = (u64::from(member.length), member.socket_drops.map(u64::from));
            let expected = if member.length == 0 { (0, Ok(0)) } else { (17, Ok(drops)) };
            assert_eq!(shown, expected, "{member:?}");
        }
        assert!(200 - 17 - accepted <= drops, "{drops} drops, {accepted} accepted");

        stopped.go_on();
        let start = Instant::now();
        while is_stalled(&watched.look()) {
            assert!(start.elapsed() < Duration::from_secs(15), "still stalled");
        }
        watched.until("all to be accepted", |agent| {
            let accepted: u64 = healthy.iter().map(Accepts::accepted).sum();
            accepted + stopped.accepted() == 200 && agent.truth().at(addr).length == 0
        });
        let (snapshot, seen) = watched.settled();
        let drops = seen.count("ListenDrops");
        let expected = Numbers { established: 200, accepted: 200, drops, ..Numbers::default() };
        assert_eq!(Numbers::of(find(&snapshot, addr)), expected);
        assert!(!is_stalled(&snapshot));
        drop(clients);
    });
}
