//! Accept fails again and again.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use backlogd::detect::phase::Severity;

use super::watch::{CADENCE, SOON, Watch, check, value};
use crate::{
    actors::{Act, Actor, FILES},
    clients::Clients,
    namespace::in_own_netns,
};

/// A page that says that all is well, until the test is over.
fn health_page() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            // whoever asks may have gone
            let _ = client.read(&mut [0; 1_024]).and_then(|_| client.write_all(answer));
        }
    });
    addr
}

#[track_caller]
fn check_health(addr: SocketAddr) {
    let mut answer = String::new();
    let mut client = TcpStream::connect(addr).expect("it listens");
    client.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
    client.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
#[ignore = "kernel: needs root"]
fn a_server_without_descriptors_that_tries_again_at_once_is_told_while_its_health_page_answers() {
    in_own_netns(|| {
        let mut server = Actor::start(Act::FewFiles, "few-files", "127.0.0.1:0", 128);
        let health = health_page();
        let mut watch = Watch::start("few_files", &["AcceptErrors"]);
        if !watch.agent.serves("accept_error") {
            return check_without_hook(watch, &server);
        }
        let clients = Clients::connect(100, server.addr);
        let alert = watch.told("AcceptErrors", SOON);
        check_health(health);
        assert_eq!(100, clients.connected());
        let (done, pid) = (server.done(), server.pid());
        let length = 100 - done.accepted;
        check(
            &alert,
            (Severity::Critical, "few-files"),
            &format!("a busy loop; {length} of 128 places taken at {}", server.addr),
            Some(&format!("of {FILES} descriptors of pid {pid} are open")),
            &format!("ls -l /proc/{pid}/fd; prlimit --pid {pid} --nofile=65536"),
        );
        assert!(alert.latest.seen.starts_with("EMFILE from accept: "), "{alert:?}");
        assert_eq!(length as f64, value(&alert, "length"));
        let errors = value(&alert, "errors");
        assert!(0.0 < errors && errors <= done.errors as f64, "{errors} of {done:?}");
        // by then nobody has accepted for four seconds, which is no other news
        for _ in 0..4 {
            watch.look();
        }
        let stalled =
            watch.verdicts.alerts.iter().find(|alert| alert.about.name == "ListenerStalled");
        let inhibited_by = stalled.map(|alert| alert.inhibited_by);
        assert_eq!(Some(Some("AcceptErrors")), inhibited_by, "{:?}", watch.verdicts.alerts);
        check_health(health);
        drop(clients);
    });
}

/// Where nothing sees accept fail that is said, and that nobody accepts is told with the cause, once.
#[track_caller]
fn check_without_hook(mut watch: Watch, server: &Actor) {
    assert!(watch.is_unknown("AcceptErrors"), "{:?}", watch.verdicts.unknown);
    watch.allow(&["ListenerStalled"]);
    let clients = Clients::connect(100, server.addr);
    // at the first look the queue is not empty, and something was accepted since the one before
    let alert = watch.told("ListenerStalled", SOON + CADENCE);
    let pid = server.pid();
    check(
        &alert,
        (Severity::Critical, &format!("few-files {}", server.addr)),
        "of 128 places taken, nobody has accepted for",
        // of more than it may have: what it inherited beyond stays open
        Some(&format!("of {FILES} are open")),
        &format!("ls -l /proc/{pid}/fd; prlimit --pid {pid} --nofile=65536"),
    );
    // the same by its descriptors
    watch.look();
    let full = watch.verdicts.alerts.iter().find(|it| it.about.name == "ProcessFdsNearLimit");
    let inhibited_by = full.map(|alert| alert.inhibited_by);
    assert_eq!(Some(Some("ListenerStalled")), inhibited_by, "{:?}", watch.verdicts.alerts);
    drop(clients);
}
