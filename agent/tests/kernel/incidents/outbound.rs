//! A connection for each request, until no local port is left.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use backlogd::detect::{alert::Alert, phase::Severity};

use super::watch::{TWO_TABLES, Watch, check, value};
use crate::{
    namespace::{in_own_netns, run, set_sysctl},
    offenders::NeverAccepts,
};

/// Not below 127.0.0.0/8: between such addresses a port in TIME_WAIT is used again at once.
const ADDR: &str = "198.51.100.1";

/// The range of local ports begins there, and has so many: a tenth of the default, all of which are used
/// up well before the first of them leaves TIME_WAIT.
const FIRST: u64 = 32_768;
const PORTS: u64 = 3_000;

/// A client of one destination, and what it knows: which ports it got, and how often there was none.
struct Client {
    server: NeverAccepts,
    ports: BTreeSet<u16>,
    failed: u64,
}

impl Client {
    /// One, and the destination.
    fn new() -> Self {
        run("ip", &["address", "add", ADDR, "dev", "lo"]);
        let range = format!("{FIRST} {}", FIRST + PORTS - 1);
        set_sysctl("ipv4/ip_local_port_range", &range);
        let server = NeverAccepts::listen(&format!("{ADDR}:8080"), 16);
        Self { server, ports: BTreeSet::new(), failed: 0 }
    }

    /// `n` requests, each by a connection of its own that the client closes.
    fn request(&mut self, n: u64) {
        thread::scope(|scope| {
            let requests = || (0..n).for_each(|_| self.request_once());
            let dialer = thread::Builder::new().name("dialer".into());
            dialer.spawn_scoped(scope, requests).expect("a thread").join().expect("it ends well");
        });
    }

    fn request_once(&mut self) {
        match TcpStream::connect(self.server.addr) {
            Ok(connection) => {
                self.ports.insert(connection.local_addr().expect("connected").port());
                let accepted = self.server.accept(1);
                // whoever closes first waits
                drop(connection);
                drop(accepted);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
                self.failed += 1;
            }
        }
    }

    fn used(&self) -> u64 {
        self.ports.len() as u64
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn a_new_connection_for_each_request_is_told_with_its_destination() {
    in_own_netns(|| {
        let mut watch = Watch::start("connection_per_request", &["ConnectionPerRequest"]);
        let mut client = Client::new();
        client.request(600);
        let (start, begun) = (Instant::now(), client.used());
        let alert = loop {
            // a table is read soon only where it changes
            client.request(10);
            watch.look();
            if let Some(alert) = watch.find("ConnectionPerRequest") {
                break alert;
            }
            let is_late = TWO_TABLES + Duration::from_secs(6) < start.elapsed();
            assert!(!is_late, "{:?}", watch.snapshot.namespaces[0].ports);
        };
        check(
            &alert,
            (Severity::Info, &format!("to {}", client.addr())),
            &format!(" open, from {ADDR}"),
            Some("no keep-alive and no pool"),
            &format!("ss -tanp dst {ADDR}:8080"),
        );
        let time_wait = value(&alert, "time_wait");
        assert!((begun as f64..=client.used() as f64).contains(&time_wait), "{time_wait}");
        // one at a time
        assert!(value(&alert, "open") <= 1.0, "{alert:?}");
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn short_connections_use_up_the_local_ports_and_that_is_told_before_and_then() {
    in_own_netns(|| {
        let allowed = ["EphemeralPortsNearLimit", "ConnectAddressesExhausted"];
        let mut watch = Watch::start("ports_used_up", &allowed);
        let mut client = Client::new();
        client.request(2_450);
        let (start, begun) = (Instant::now(), client.used());
        let near = loop {
            client.request(12);
            watch.look();
            if let Some(alert) = watch.find("EphemeralPortsNearLimit") {
                break alert;
            }
            assert!(start.elapsed() < TWO_TABLES, "{:?}", watch.snapshot.namespaces[0].ports);
        };
        let to = client.addr();
        check(
            &near,
            (Severity::Warning, &format!("to {to}")),
            &format!(" of {PORTS} local ports of {ADDR} are in use towards {to}: "),
            Some("a new connection for each request"),
            "sysctl -w net.ipv4.tcp_tw_reuse=1",
        );
        let used = value(&near, "ports_used");
        assert!((begun as f64..=client.used() as f64).contains(&used), "{used}");
        assert!(value(&near, "time_wait") <= used && value(&near, "open") <= 1.0, "{near:?}");
        client.request(650);
        assert!(0 < client.failed && client.used() == PORTS, "{} failed", client.failed);
        let is_seen = watch.agent.serves("connect_error");
        let name = if is_seen { "ConnectAddressesExhausted" } else { "EphemeralPortsNearLimit" };
        let start = Instant::now();
        let alert = loop {
            client.request(3);
            watch.look();
            // what fails is told with the table of before, and soon with one that shows why
            let is_it = |alert: &Arc<Alert>| {
                alert.severity == Severity::Critical && value(alert, "ports_used") == PORTS as f64
            };
            if let Some(alert) = watch.find(name).filter(is_it) {
                break alert;
            }
            assert!(start.elapsed() < TWO_TABLES, "{:?}", watch.verdicts.alerts);
        };
        let subject = if is_seen { "dialer".to_owned() } else { format!("to {to}") };
        check(
            &alert,
            (Severity::Critical, &subject),
            &format!("{PORTS} of {PORTS} local ports of {ADDR} are in use towards {to}"),
            Some("a new connection for each request"),
            "sysctl -w net.ipv4.tcp_tw_reuse=1",
        );
        if is_seen {
            let errors = value(&alert, "errors");
            assert!(0.0 < errors && errors <= client.failed as f64, "{errors}");
        }
    });
}
