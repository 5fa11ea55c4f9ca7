//! Connections that are not closed when they should be: held in CLOSE_WAIT, held after a reset, held
//! when nobody listens.

use std::{io::ErrorKind, time::Duration};

use backlogd::detect::phase::Severity;
use socket2::{Domain, Socket, Type};

use super::watch::{TWO_TABLES, Watch, check, value};
use crate::{
    actors::{Act, Actor},
    clients::Clients,
    namespace::in_own_netns,
};

#[test]
#[ignore = "kernel: needs root"]
fn a_server_that_never_closes_is_told_by_its_connections_in_close_wait() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::Keeps, "never-closes", "127.0.0.1:0", 64);
        let mut watch = Watch::start("close_wait", &["CloseWaitBuildup"]);
        let open = Clients::connect(5, server.addr);
        drop(Clients::connect(40, server.addr));
        server.accepts(45);
        let alert = watch.told("CloseWaitBuildup", TWO_TABLES);
        check(
            &alert,
            (Severity::Warning, &format!("never-closes {}", server.addr)),
            "40 of 45 accepted connections are in CLOSE_WAIT, never fewer than 40 in 5 s",
            Some("the program has not called close(2)"),
            &format!("ss -tnpo state close-wait sport = :{}", server.addr.port()),
        );
        drop(open);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_that_keeps_reset_connections_is_told_though_no_table_shows_them() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::Keeps, "holds-reset", "127.0.0.1:0", 64);
        let mut watch = Watch::start("reset_and_held", &["ConnectionLeak"]);
        let pid = server.pid();
        let mut open = Clients::connect(10, server.addr);
        server.accepts(10);
        let mut accepted = 10;
        // each second three are reset, which no counter of sockets shows, and two stay, which it does:
        // where they stand still tables are read every half minute
        let alert = loop {
            let clients = Clients::connect(3, server.addr);
            open.join(Clients::connect(2, server.addr));
            accepted += 5;
            server.accepts(accepted);
            clients.reset();
            watch.look();
            if let Some(alert) = watch.find("ConnectionLeak") {
                break alert;
            }
            assert!(accepted < 10 + 5 * 60, "not told in a minute: {:?}", watch.verdicts.unknown);
        };
        check(
            &alert,
            (Severity::Warning, &format!("holds-reset {}", server.addr)),
            &format!("of {accepted} open connections are in no socket table, in two reads of it"),
            Some("the peers have reset them, and the program still holds their descriptors"),
            &format!("ls -l /proc/{pid}/fd"),
        );
        let held = value(&alert, "held");
        assert!(
            (20.0..=accepted as f64 - open.connected() as f64).contains(&held),
            "{held} of {accepted}"
        );
        assert_eq!(accepted as f64, value(&alert, "open"));
        drop(open);
    });
}

/// bind(2) as of a program that does not set `SO_REUSEADDR`.
fn bind(server: &Actor) -> Result<(), ErrorKind> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&server.addr.into()).map_err(|error| error.kind())
}

#[test]
#[ignore = "kernel: needs root"]
fn a_port_that_old_connections_hold_after_a_restart_is_told() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::Keeps, "restarts", "127.0.0.1:8443", 64);
        let mut watch = Watch::start("port_not_released", &["PortNotReleased"]);
        let pid = server.pid();
        let clients = Clients::connect(6, server.addr);
        server.accepts(6);
        watch.quiet(2);
        server.close_listener();
        assert_eq!(Err(ErrorKind::AddrInUse), bind(&server));
        let alert = watch.told("PortNotReleased", Duration::from_secs(13));
        check(
            &alert,
            (Severity::Warning, &format!("restarts {}", server.addr)),
            &format!("6 of its connections are still open; last held by pid {pid}"),
            Some("fails with EADDRINUSE until they are closed, and for TIME_WAIT after that"),
            &format!("ss -tanp sport = :{}", server.addr.port()),
        );
        assert_eq!(6.0, value(&alert, "open"));
        // by reset no TIME_WAIT is left
        clients.reset();
        server.kill();
        watch.clears("PortNotReleased", Duration::from_secs(3));
        assert_eq!(Ok(()), bind(&server));
        watch.quiet(2);
    });
}
