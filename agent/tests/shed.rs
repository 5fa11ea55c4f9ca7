//! Listeners that shed, through the real binary: what clients and backends get, what is counted,
//! how it ends.

#![expect(clippy::unwrap_used, reason = "outside of #[test] functions, but in a test")]

#[path = "fixtures/front.rs"]
mod front;

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use front::{
    PATIENCE, Running, Shed, accept, check_identities, echo, listen, patient, reset, rest, serves,
    sum, table, wait_for,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

#[track_caller]
fn check_above_the_limit(on_shed: &str, answer: &str, expected: Result<&str, ErrorKind>) {
    let lines = format!("soft = 2\non_shed = {on_shed}");
    let shed = Shed::start(&echo(), &lines);
    let mut served = [shed.client(), shed.client()];
    served.iter_mut().for_each(serves);
    let start = Instant::now();
    let got = shed.ends();
    assert!(start.elapsed() < Duration::from_secs(5), "{on_shed}: {:?}", start.elapsed());
    match (&got, expected) {
        (Ok(got), Ok(expected)) => assert!(got.starts_with(expected), "{on_shed}: {got:?}"),
        _ => assert_eq!(got, expected.map(str::to_owned), "{on_shed}"),
    }
    shed.wait_until_counted("backlogd_shed_answers_total", &[&format!("answer=\"{answer}\"")], 1);
    let soft = ["listener=\"web\"", "reason=\"soft\"", "stage=\"accept\""];
    assert_eq!(Some(1), shed.counted("backlogd_shed_connections_total", &soft));
    served.iter_mut().for_each(serves);
    // a place is free again
    let [mut one, other] = served;
    one.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Ok(String::new()), rest(&mut one));
    shed.wait_until_counted("backlogd_shed_open_connections", &[], 1);
    serves(&mut shed.client());
    drop(other);
}

#[test]
fn above_the_soft_limit_a_client_gets_what_is_configured() {
    check_above_the_limit("\"rst\"", "rst", Err(ErrorKind::ConnectionReset));
    check_above_the_limit("\"fin\"", "fin", Ok(""));
    check_above_the_limit("\"http-503\"", "bytes", Ok("HTTP/1.1 503 "));
    check_above_the_limit("\"http-429\"", "bytes", Ok("HTTP/1.1 429 "));
    check_above_the_limit("{ bytes = \"421 busy\\r\\n\" }", "bytes", Ok("421 busy\r\n"));
}

#[test]
fn the_end_of_one_direction_is_passed_on_by_itself() {
    let (backend, addr) = listen();
    let shed = Shed::start(&addr, "soft = 10");
    // the client's first
    let mut client = shed.client();
    let mut server = accept(&backend);
    client.write_all(b"all I have").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Ok("all I have".to_owned()), rest(&mut server));
    server.write_all(b"and the answer").unwrap();
    drop(server);
    assert_eq!(Ok("and the answer".to_owned()), rest(&mut client));
    // the backend's first
    let mut client = shed.client();
    let mut server = accept(&backend);
    server.write_all(b"hello").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Ok("hello".to_owned()), rest(&mut client));
    client.write_all(b"goodbye").unwrap();
    drop(client);
    assert_eq!(Ok("goodbye".to_owned()), rest(&mut server));
    drop(server);
    shed.wait_until_counted("backlogd_shed_closed_total", &["cause=\"error\""], 0);
    shed.wait_until_counted("backlogd_shed_open_connections", &[], 0);
    assert_eq!(Some(17), shed.counted("backlogd_shed_bytes_total", &["direction=\"in\""]));
    assert_eq!(Some(19), shed.counted("backlogd_shed_bytes_total", &["direction=\"out\""]));
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let (backend, addr) = listen();
    let shed = Shed::start(&addr, "soft = 10");
    let open = || {
        let mut client = shed.client();
        let mut server = accept(&backend);
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        (client, server)
    };
    let (client, mut server) = open();
    reset(client);
    assert_eq!(Err(ErrorKind::ConnectionReset), rest(&mut server));
    let (mut client, server) = open();
    reset(server);
    assert_eq!(Err(ErrorKind::ConnectionReset), rest(&mut client));
    shed.wait_until_counted("backlogd_shed_open_connections", &[], 0);
    assert_eq!(Some(1), shed.counted("backlogd_shed_closed_total", &["cause=\"backend\""]));
    assert_eq!(Some(2), shed.counted("backlogd_shed_closed_total", &[]));
}

#[test]
fn a_backend_may_be_a_unix_socket() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader: UnixStream = stream.try_clone().unwrap();
            let _ = io::copy(&mut reader, &mut &stream);
        }
    });
    let shed = Shed::start(&format!("unix:{}", path.display()), "soft = 10");
    let mut client = shed.client();
    serves(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Ok(String::new()), rest(&mut client));
    shed.wait_until_counted("backlogd_shed_closed_total", &[], 1);
}

/// A backend in `dir` whose accept queue has that limit, and its address.
fn unix_backend(dir: &TempDir, limit: i32) -> (Socket, String) {
    let path = dir.path().join("app.sock");
    let backend = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    backend.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    backend.listen(limit).unwrap();
    (backend, format!("unix:{}", path.display()))
}

#[test]
fn a_unix_backend_whose_queue_is_full_is_waited_for() {
    let dir = TempDir::new().unwrap();
    // two wait there, and others for a place
    let (backend, addr) = unix_backend(&dir, 1);
    let clients = |shed: &Shed| {
        let clients = [(); 6].map(|()| shed.client());
        shed.wait_until_counted("backlogd_shed_admitted_total", &[], 6);
        clients
    };
    let shed = Shed::start(&addr, "soft = 10\nconnect_timeout_seconds = 0.2");
    let mut waiting = clients(&shed);
    let down = ["reason=\"backend_down\""];
    shed.wait_until_counted("backlogd_shed_connections_total", &down, 4);
    let line = shed.wait_for_line("the backend cannot be reached");
    assert!(line.contains("error=its accept queue is full"), "{line}");
    let n_reset = |clients: &mut [TcpStream]| {
        let is_reset = |client: &mut TcpStream| {
            client.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            rest(client) == Err(ErrorKind::ConnectionReset)
        };
        clients.iter_mut().map(is_reset).filter(|is| *is).count()
    };
    assert_eq!(4, n_reset(&mut waiting));
    drop((shed, waiting));
    // those of the first one are gone
    (0..2).for_each(|_| drop(backend.accept().unwrap()));
    let shed = Shed::start(&addr, "soft = 10\nconnect_timeout_seconds = 60");
    let mut waiting = clients(&shed);
    thread::spawn(move || {
        while let Ok((socket, _)) = backend.accept() {
            let stream: UnixStream = OwnedFd::from(socket).into();
            let mut reader = stream.try_clone().unwrap();
            thread::spawn(move || io::copy(&mut reader, &mut &stream));
        }
    });
    waiting.iter_mut().for_each(serves);
    shed.wait_until_counted("backlogd_shed_connections_total", &down, 0);
}

#[test]
fn who_waits_for_a_backend_holds_up_the_end_once_however_many_accept() {
    let dir = TempDir::new().unwrap();
    let (_backend, addr) = unix_backend(&dir, 1);
    let lines =
        "soft = 500\nconnect_timeout_seconds = 60\ndrain_seconds = 0.1\naccept_sockets = 16";
    let mut shed = Shed::start(&addr, lines);
    let clients: Vec<_> = (0..150).map(|_| shed.client()).collect();
    shed.wait_until_counted("backlogd_shed_admitted_total", &[], 150);
    shed.signal("TERM");
    // a second for each accept loop would be sixteen
    assert_eq!(shed.ended(Duration::from_secs(10)), Some(0));
    drop(clients);
}

#[test]
fn without_a_backend_clients_are_reset_and_it_is_logged_now_and_then() {
    let (backend, addr) = listen();
    drop(backend);
    let shed = Shed::start(&addr, "soft = 10");
    for n in 1..=20 {
        assert_eq!(Err(ErrorKind::ConnectionReset), shed.ends());
        let down = ["reason=\"backend_down\""];
        shed.wait_until_counted("backlogd_shed_connections_total", &down, n);
    }
    let line = shed.wait_for_line("the backend cannot be reached");
    assert!(line.contains(&format!("listener=\"web\" backend={addr}")), "{line}");
    assert!(line.contains("error=Connection refused"), "{line}");
    let more: Vec<_> = shed.log.try_iter().filter(|line| line.contains("backend")).collect();
    assert!(more.is_empty(), "{more:?}");
    shed.wait_until_counted("backlogd_shed_open_connections", &[], 0);
}

#[test]
fn the_textfile_has_what_it_counts() {
    let backend = echo();
    let dir = TempDir::new().unwrap();
    let textfile = dir.path().to_str().unwrap();
    let verb = ["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--textfile", textfile];
    let _shed = Shed::by(&verb, &backend, "soft = 7");
    wait_for(|| match fs::read_to_string(dir.path().join("backlogd.prom")) {
        Ok(text) if sum(&text, "backlogd_shed_limit", &["soft"]) == Some(7) => Ok(()),
        got => Err(format!("{got:?}")),
    });
}

/// A pipe that takes nothing.
fn full() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(b"-").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[test]
fn nobody_has_to_read_why_it_ends() {
    let (_reader, log) = full();
    let (_taken, at) = listen();
    let child = Command::new(env!("CARGO_BIN_EXE_backlogd"))
        .args(["shed", "--listen", &at, "--backend", "127.0.0.1:1", "--soft", "1"])
        .args(["--metrics", "127.0.0.1:0"])
        .stderr(log)
        .spawn()
        .unwrap();
    assert_eq!(Running(child).ended(PATIENCE), Some(3));
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let (reader, log) = full();
    let (free, at) = listen();
    drop(free);
    let child = Command::new(env!("CARGO_BIN_EXE_backlogd"))
        .args(["shed", "--listen", &at, "--backend", &echo(), "--soft", "1"])
        .args(["--metrics", "127.0.0.1:0"])
        .stderr(log)
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let mut open = None;
    wait_for(|| {
        open = Some(TcpStream::connect(&at).map(patient).map_err(|err| err.to_string())?);
        Ok(())
    });
    let mut open = open.unwrap();
    serves(&mut open);
    let shed = TcpStream::connect(&at).map_err(|err| err.kind());
    let end = shed.and_then(|shed| rest(&mut patient(shed)));
    assert_eq!(Err(ErrorKind::ConnectionReset), end);
    // there is a look each second at what there is to tell
    thread::sleep(Duration::from_millis(1_500));
    serves(&mut open);
    child.signal("TERM");
    drop(open);
    assert_eq!(child.ended(PATIENCE), Some(0));
    drop(reader);
}

#[test]
fn sigterm_waits_for_what_is_open_and_refuses_what_comes() {
    let mut shed = Shed::start(&echo(), "soft = 10\ndrain_seconds = 15");
    let mut open = shed.client();
    serves(&mut open);
    shed.signal("TERM");
    shed.wait_for_line("stopping");
    let mut last = Ok(());
    wait_for(|| match TcpStream::connect(shed.at) {
        Err(err) => {
            last = Err(err.kind());
            Ok(())
        }
        Ok(_) => Err("it still accepts".into()),
    });
    assert_eq!(Err(ErrorKind::ConnectionRefused), last);
    // the transfer goes on, also of more than buffers hold
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut writer = open.try_clone().unwrap();
    let thread = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        sent
    });
    let mut got = Vec::new();
    open.read_to_end(&mut got).unwrap();
    assert!(thread.join().unwrap() == got, "{} bytes", got.len());
    assert_eq!(Some(0), shed.ended(Duration::from_secs(5)), "it waits for nothing more");
}

#[test]
fn it_accepts_for_the_delay_and_says_that_it_is_not_ready() {
    let mut shed = Shed::start(&echo(), "soft = 10\ndrain_delay_seconds = 2\ndrain_seconds = 5");
    assert!(shed.get("/readyz").starts_with("HTTP/1.1 200"));
    shed.signal("TERM");
    shed.wait_for_line("stopping");
    wait_for(|| match shed.get("/readyz") {
        answer if answer.starts_with("HTTP/1.1 503") && answer.contains("about to end") => Ok(()),
        answer => Err(answer),
    });
    let mut late = shed.client();
    serves(&mut late);
    drop(late);
    assert_eq!(Some(0), shed.ended(Duration::from_secs(6)));
}

#[test]
fn what_is_open_after_the_drain_is_cut_off() {
    let mut shed = Shed::start(&echo(), "soft = 10\ndrain_seconds = 1");
    let mut open = shed.client();
    serves(&mut open);
    let start = Instant::now();
    shed.signal("TERM");
    assert_eq!(Some(0), shed.ended(Duration::from_secs(5)));
    let took = start.elapsed();
    assert!(Duration::from_secs(1) <= took && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(Err(ErrorKind::ConnectionReset), rest(&mut open));
}

#[test]
fn a_second_signal_cuts_the_drain_short() {
    let mut shed = Shed::start(&echo(), "soft = 10\ndrain_seconds = 600");
    let mut open = shed.client();
    serves(&mut open);
    shed.signal("TERM");
    shed.wait_for_line("stopping");
    serves(&mut open);
    shed.signal("INT");
    shed.wait_for_line("told again to stop");
    assert_eq!(Some(0), shed.ended(Duration::from_secs(5)));
    // an end would say that it has all there is
    assert_eq!(Err(ErrorKind::ConnectionReset), rest(&mut open));
}

#[test]
fn the_log_says_that_it_sheds() {
    let shed = Shed::start(&echo(), "soft = 1");
    let mut first = shed.client();
    serves(&mut first);
    assert_eq!(Err(ErrorKind::ConnectionReset), shed.ends());
    let line = shed.wait_for_line(" sheds ");
    assert!(line.contains("listener=\"web\" reasons=\"soft 1\""), "{line}");
}

#[test]
fn what_is_counted_adds_up() {
    // fewer than there are clients at a time
    let shed = Shed::start(&echo(), "soft = 4\nidle_seconds = 0.5\nrate = 400");
    let at = shed.at;
    let one = move |i: usize| {
        // many are shed, so that any of it may fail; a reset may come before connect(2) has
        // returned
        let Ok(client) = TcpStream::connect(at) else { return };
        let mut client = patient(client);
        let _ = client.write_all(b"ping");
        match i % 5 {
            0 => drop(client),
            1 => reset(client),
            // until the deadline
            2 => drop(client.read(&mut [0; 4]).and_then(|_| client.read(&mut [0; 4]))),
            3 => drop(client.read(&mut [0; 4])),
            _ => {
                let _ = client.shutdown(Shutdown::Write);
                drop(rest(&mut client));
            }
        }
    };
    let threads: Vec<_> = (0..8).map(|_| thread::spawn(move || (0..50).for_each(one))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    check_identities(&shed, 400);
    for (name, labels) in [
        ("backlogd_shed_connections_total", ["reason=\"soft\"", "listener=\"web\""]),
        ("backlogd_shed_deadline_timeouts_total", ["deadline=\"idle\"", "listener=\"web\""]),
        ("backlogd_shed_closed_total", ["cause=\"peer\"", "listener=\"web\""]),
    ] {
        assert!(shed.counted(name, &labels).is_some_and(|n| 0 < n), "{name} {labels:?}");
    }
    let limit = |kind: &str| shed.counted("backlogd_shed_limit", &[&format!("kind=\"{kind}\"")]);
    assert_eq!((Some(4), Some(20)), (limit("soft"), limit("hard")));
}

#[test]
fn the_listing_shows_it_and_so_do_its_own_metrics() {
    let shed = Shed::start(&echo(), "soft = 10\nbacklog = 77");
    let port = shed.at.port();
    let output: Output = Command::new(env!("CARGO_BIN_EXE_backlogd"))
        .args(["list", "--no-ebpf", "--output", "json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut listeners = listing["listeners"].as_array().unwrap().iter();
    let it = listeners.find(|it| it["port"] == port).unwrap_or_else(|| panic!("{port}: {text}"));
    assert!(it.to_string().contains("\"backlogd\""), "its owner: {it}");
    let labels = [&*format!("port=\"{port}\""), "comm=\"backlogd\""];
    shed.wait_until_counted("backlogd_listener_accept_queue_limit", &labels, 77);
}

#[test]
fn the_daemon_hosts_it_too() {
    let run = ["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--socket", ""];
    let mut shed = Shed::by(&run, &echo(), "soft = 2\ndrain_seconds = 5");
    let mut served = [shed.client(), shed.client()];
    served.iter_mut().for_each(serves);
    assert_eq!(Err(ErrorKind::ConnectionReset), shed.ends());
    drop(served);
    check_identities(&shed, 3);
    shed.signal("TERM");
    assert_eq!(Some(0), shed.ended(Duration::from_secs(5)));
}

#[test]
fn sighup_changes_limits_and_says_what_waits_for_the_next_start() {
    let addr = echo();
    let shed = Shed::start(&addr, "soft = 1");
    let mut first = shed.client();
    serves(&mut first);
    assert_eq!(Err(ErrorKind::ConnectionReset), shed.ends());
    fs::write(shed.config(), table(&addr, "soft = 3\nhard = 30\nidle_seconds = 9")).unwrap();
    shed.signal("HUP");
    let line = shed.wait_for_line("takes effect at the next start");
    assert!(line.contains("key=\"shed\" listener=\"web\""), "{line}");
    let line = shed.wait_for_line("sheds by other limits");
    assert!(line.contains("listener=\"web\" soft=3 hard=30"), "{line}");
    let mut more = [shed.client(), shed.client()];
    more.iter_mut().for_each(serves);
    assert_eq!(Err(ErrorKind::ConnectionReset), shed.ends());
    shed.wait_until_counted("backlogd_shed_limit", &["kind=\"hard\""], 30);
    // no descriptors for that many: the limits before stay
    fs::write(shed.config(), table(&addr, "soft = 1700000\nidle_seconds = 9")).unwrap();
    shed.signal("HUP");
    let line = shed.wait_for_line("not reloaded: the configuration stays as it was");
    assert!(line.contains("listener=\"web\"") && line.contains("RLIMIT_NOFILE"), "{line}");
    shed.wait_until_counted("backlogd_shed_limit", &["kind=\"hard\""], 30);
    serves(&mut first);
}

#[test]
fn a_proxy_header_is_taken_from_an_allowed_range_alone() {
    // by who the proxy speaks for, that one may have one connection
    let lines = "soft = 10\nper_ip = 1\nproxy_protocol_from = [\"127.0.0.0/8\"]";
    let shed = Shed::start(&echo(), lines);
    let open = |source: &str| {
        let mut client = shed.client();
        write!(client, "PROXY TCP4 {source} 192.0.2.9 1000 80\r\n").unwrap();
        client
    };
    let (mut one, mut other) = (open("192.0.2.1"), open("192.0.2.2"));
    serves(&mut one);
    serves(&mut other);
    assert_eq!(Err(ErrorKind::ConnectionReset), rest(&mut open("192.0.2.1")));
    let mut without = shed.client();
    without.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(Err(ErrorKind::ConnectionReset), rest(&mut without));
    let count = |reason: &str| {
        shed.counted("backlogd_shed_connections_total", &[&format!("reason=\"{reason}\"")])
    };
    assert_eq!((Some(1), Some(1)), (count("per_ip"), count("proxy_header")));
    // from elsewhere it is a part of what the client says
    let shed = Shed::start(&echo(), "soft = 10\nproxy_protocol_from = [\"192.0.2.0/24\"]");
    let mut client = shed.client();
    client.write_all(b"PROXY TCP4").unwrap();
    let mut answer = [0; 10];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(b"PROXY TCP4", &answer);
}
