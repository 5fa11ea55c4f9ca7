//! Others on the same hooks.

use crate::{
    agent::{Agent, Numbers},
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    offenders::{Accepts, NeverAccepts},
};

#[test]
#[ignore = "kernel: needs root"]
fn two_agents_at_once_both_count_everything() {
    in_own_netns(|| {
        let full = NeverAccepts::listen("127.0.0.1:0", 2);
        let mut agents = [Agent::start(), Agent::start()];
        let server = Accepts::at_once(NeverAccepts::listen("127.0.0.1:0", 128));
        let clients = [Clients::connect(50, server.addr), Clients::start(10, full.addr)];
        wait_for("all to be accepted", || server.accepted() == 50);
        wait_for("drops", || 7 <= agents[0].truth().count("ListenDrops"));
        drop(clients);
        for agent in &mut agents {
            let expected = Numbers { established: 50, accepted: 50, ..Numbers::default() };
            agent.check(server.addr, expected);
            let drops = agent.truth().count("ListenDrops");
            let expected = Numbers { established: 3, length: 3, drops, ..Numbers::default() };
            agent.check(full.addr, expected);
        }
        server.stop();
    });
}
