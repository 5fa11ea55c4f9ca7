//! `backlogd shed` where it comes and goes, through the real binary: sockets that systemd opened,
//! restarts without a gap, and its end when it can accept nothing more.

#![expect(clippy::unwrap_used, reason = "outside of #[test] functions, but in a test")]

#[path = "fixtures/front.rs"]
mod front;
#[path = "fixtures/generations.rs"]
mod generations;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, net::UnixDatagram},
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use front::{PATIENCE, get, try_get, wait_for};
use generations::{Start, client, round_trip, table};
use socket2::SockRef;
use tempfile::TempDir;

fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

#[test]
fn sockets_of_systemd_are_found_by_their_names() {
    let ((web, at), (scrapes, metrics)) = (bind(), bind());
    let mut early = client(at).unwrap();
    let start = Start::shed(&table("web", "127.0.0.1:0", "backlog = 77"));
    let server = start.passing("web", web).passing("/metrics", scrapes).serves();
    assert_eq!((at, metrics), (server.at, server.metrics));
    // who was queued before is served
    assert_eq!(b'x', round_trip(&mut early).unwrap());
    assert_eq!(Some(77), server.counted("backlogd_shed_accept_queue_limit", &["listener=\"web\""]));
    assert_eq!(Some(0), server.counted("backlogd_shed_accept_queue_length", &[]));
    assert_eq!(Some(0), server.counted("backlogd_shed_generation", &["listener=\"web\""]));
    server.end();
}

#[test]
fn sockets_of_systemd_are_found_by_their_addresses() {
    let ((web, at), (scrapes, metrics)) = (bind(), bind());
    let unit = "backlogd-shed.socket";
    let metrics_at = metrics.to_string();
    let verb = ["shed", "--metrics", &metrics_at];
    let start = Start::by(&verb, &table("web", &at.to_string(), ""));
    let server = start.passing(unit, web).passing(unit, scrapes).serves();
    assert_eq!((at, metrics), (server.at, server.metrics));
    server.serves_a_client();
    server.end();
    // the daemon that hosts it, too; its unit calls the other one by its own name
    let ((web, at), (scrapes, metrics)) = (bind(), bind());
    let verb = ["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--socket", ""];
    let start = Start::by(&verb, &table("web", &at.to_string(), ""));
    let server = start.passing(unit, web).passing("backlogd.socket", scrapes).serves();
    assert_eq!((at, metrics), (server.at, server.metrics));
    server.serves_a_client();
    assert_eq!(None, server.counted("backlogd_shed_generation", &[]), "nobody follows it");
    server.end();
}

#[test]
fn what_is_inherited_and_is_not_wanted_is_refused_with_what_it_is() {
    #[track_caller]
    fn check(name: &'static str, fd: impl Into<OwnedFd>, expected: &str) {
        let start = Start::shed(&table("web", "127.0.0.1:1", ""));
        let output = start.passing(name, fd).refuses();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(Some(78), output.status.code(), "{text}");
        assert!(text.contains(expected), "{expected:?} in {text}");
        assert!(!text.contains("sheds above"), "nobody could connect meanwhile: {text}");
    }
    let (listener, at) = bind();
    let copy = || listener.try_clone().unwrap();
    let elsewhere = format!("the inherited socket \"web\" listens on {at}, expected 127.0.0.1:1");
    check("web", copy(), &elsewhere);
    let left = |what: &str| format!("inherited and not used: descriptor 3, \"mail\", {what}");
    check("mail", copy(), &left(&format!("which listens on {at}; expected each to have the name")));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    check("mail", udp.try_clone().unwrap(), &left("a socket of another kind than TCP"));
    check("web", udp, "got a socket of another kind than TCP, expected a listening TCP socket");
    let connected = TcpStream::connect(at).unwrap();
    check("web", connected.try_clone().unwrap(), "got a TCP socket that does not listen");
    check("/metrics", connected, "the socket \"/metrics\", passed by LISTEN_FDS, is a TCP socket");
    check("web", fs::File::open("/dev/null").unwrap(), "got a descriptor that is no socket");
}

#[test]
fn who_is_queued_when_it_is_killed_is_served_by_the_next() {
    let (web, at) = bind();
    let start = || {
        let start = Start::shed(&table("web", &at.to_string(), ""));
        start.passing("web", web.try_clone().unwrap()).serves()
    };
    let mut server = start();
    server.serves_a_client();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let mut queued = client(at).unwrap();
    queued.write_all(b"x").unwrap();
    let next = start();
    let mut answer = [0];
    queued.read_exact(&mut answer).unwrap();
    assert_eq!(b"x", &answer);
    next.end();
}

/// What became of connections.
#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    shed: AtomicU64,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
    is_over: AtomicBool,
}

impl Counts {
    /// One connection; an error is one that was refused or reset.
    fn connection(&self, at: SocketAddr) -> io::Result<()> {
        let mut client = client(at)?;
        match round_trip(&mut client)? {
            b'x' => {
                let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_inside.fetch_max(inside, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
                self.inside.fetch_sub(1, Ordering::SeqCst);
                self.served.fetch_add(1, Ordering::SeqCst);
            }
            b'S' => drop(self.shed.fetch_add(1, Ordering::SeqCst)),
            other => return Err(io::Error::other(format!("got {other:?}"))),
        }
        Ok(())
    }
}

/// Scrapes all the time; gives the longest time without an answer.
fn scrape_until(counts: &Counts, at: SocketAddr) -> Duration {
    let (mut longest, mut failing) = (Duration::ZERO, None::<Instant>);
    while !counts.is_over.load(Ordering::SeqCst) {
        let begun = Instant::now();
        match try_get(at, "/metrics") {
            Ok(text) if text.contains("\nbacklogd_shed_generation{") => {
                longest = longest.max(failing.take().map_or(Duration::ZERO, |it| it.elapsed()));
            }
            _ => drop(failing.get_or_insert(begun)),
        }
        thread::sleep(Duration::from_millis(5));
    }
    longest.max(failing.map_or(Duration::ZERO, |it| it.elapsed()))
}

#[test]
fn five_handovers_refuse_and_reset_nobody_and_keep_the_limit() {
    let mut server =
        Start::shed(&table("web", "127.0.0.1:0", "hard = 500\non_shed = { bytes = \"S\" }"))
            .serves();
    let (at, metrics) = (server.at, server.metrics);
    let mut long = client(at).unwrap();
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    let counts = Arc::new(Counts::default());
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let counts = Arc::clone(&counts);
            thread::spawn(move || -> io::Result<()> {
                while !counts.is_over.load(Ordering::SeqCst) {
                    counts.connection(at)?;
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        })
        .collect();
    let scraper = {
        let counts = Arc::clone(&counts);
        thread::spawn(move || scrape_until(&counts, metrics))
    };
    let begun = Instant::now();
    for number in 1..=5 {
        server.restart();
        wait_for(|| match server.counted("backlogd_shed_generation", &[]) {
            Some(got) if got == number => Ok(()),
            got => Err(format!("generation {got:?}")),
        });
        if number == 1 {
            // by the first generation, which drains, and ends with it
            assert_eq!(b'x', round_trip(&mut long).unwrap());
            long.shutdown(Shutdown::Both).unwrap();
            assert_eq!(Some(0), server.ended());
        }
        let n = counts.served.load(Ordering::SeqCst) + 50;
        wait_for(|| match counts.served.load(Ordering::SeqCst) {
            served if n <= served => Ok(()),
            served => Err(format!("{served} were served")),
        });
    }
    let took = begun.elapsed();
    counts.is_over.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().unwrap().unwrap_or_else(|err| panic!("{err}: {counts:?}"));
    }
    let gap = scraper.join().unwrap();
    assert!(gap < Duration::from_secs(1), "no answer to scrapes for {gap:?}");
    let (served, shed) = (counts.served.load(Ordering::SeqCst), counts.shed.load(Ordering::SeqCst));
    let most = counts.most_inside.load(Ordering::SeqCst);
    assert!(0 < shed, "the limit was reached: {counts:?}");
    assert!((5..=10).contains(&most), "{counts:?}");
    let text = format!("{served} served, {shed} shed in {took:?}, scrapes failed for {gap:?}");
    writeln!(io::stderr(), "{text}").unwrap();
    server.end();
}

#[test]
fn a_next_generation_that_fails_changes_nothing() {
    let table = table("web", "127.0.0.1:0", "");
    let mut server = Start::shed(&table).serves();
    fs::write(server.start.config(), format!("{table}softer = 1\n")).unwrap();
    server.signal("USR2");
    let line = server.line("not handed over");
    assert!(line.contains("ended before it accepted: exit status: 78"), "{line}");
    server.serves_a_client();
    let failed = ["listener=\"web\"", "result=\"child_failed\""];
    assert_eq!(Some(1), server.counted("backlogd_shed_handovers_total", &failed));
    // later, too: this one has the listener's sockets already, but not its name
    fs::write(server.start.config(), table.replace("web", "other")).unwrap();
    server.signal("USR2");
    server.line("not handed over");
    assert_eq!(Some(2), server.counted("backlogd_shed_handovers_total", &failed));
    // nor has the live one the queue of one that cannot listen elsewhere
    let limit = server.counted("backlogd_shed_accept_queue_limit", &[]);
    let (_taken, at) = bind();
    let other = self::table("other", &at.to_string(), "");
    fs::write(server.start.config(), format!("{table}backlog = 3\n{other}")).unwrap();
    server.signal("USR2");
    server.line("not handed over");
    assert_eq!(Some(3), server.counted("backlogd_shed_handovers_total", &failed));
    assert!(Some(3) < limit, "{limit:?}");
    assert_eq!(limit, server.counted("backlogd_shed_accept_queue_limit", &[]));
    // the next attempt is as good as the first
    fs::write(server.start.config(), &table).unwrap();
    server.restart();
    server.serves_a_client();
    assert_eq!(Some(0), server.ended());
    // and is the only one that counts
    assert_eq!(Some(1), server.counted("backlogd_shed_generation", &[]));
    let ok = ["listener=\"web\"", "result=\"ok\""];
    assert_eq!(Some(1), server.counted("backlogd_shed_handovers_total", &ok));
    server.end();
}

#[test]
fn who_is_told_to_end_kills_a_next_generation_that_does_not_serve() {
    let mut server = Start::shed(&table("web", "127.0.0.1:0", "drain_seconds = 300")).serves();
    let mut long = client(server.at).unwrap();
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    // the next one waits for somebody to write its configuration
    let config = server.start.config();
    fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    server.signal("USR2");
    server.line("starts the next generation");
    let mut writer = None;
    wait_for(|| {
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).custom_flags(libc::O_NONBLOCK).open(&config);
        writer = Some(opened.map_err(|err| err.to_string())?);
        Ok(())
    });
    server.signal("TERM");
    server.line("not handed over: this generation ends");
    server.line("stopping");
    // it is dead by then: nobody has the other end
    let written = writer.unwrap().write_all(b"\n").map_err(|err| err.kind());
    assert_eq!(Err(io::ErrorKind::BrokenPipe), written);
    // nobody waits for a socket that nobody accepts from
    wait_for(|| match TcpStream::connect_timeout(&server.at, Duration::from_millis(100)) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        got => Err(format!("{got:?}")),
    });
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    drop(long);
    assert_eq!(Some(0), server.ended());
}

#[test]
fn health_checks_are_the_next_generations() {
    // nobody else takes it: it is free since a moment ago
    let (checks, at) = bind();
    drop(checks);
    let listener = table("web", "127.0.0.1:0", &format!("health_listen = \"{at}\""));
    let mut server = Start::shed(&listener).serves();
    let mut long = client(server.at).unwrap();
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    server.restart();
    // the generation before drains, and would say so
    wait_for(|| match try_get(at, "/readyz") {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => Ok(()),
        got => Err(format!("{got:?}")),
    });
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    drop(long);
    assert_eq!(Some(0), server.ended());
    server.end();
}

#[test]
fn a_listener_by_another_name_is_not_handed_over() {
    // limits are counted by the name: over both generations, they would not hold
    let server = Start::shed(&table("web", "127.0.0.1:0", "")).serves();
    fs::write(server.start.config(), table("other", &server.at.to_string(), "")).unwrap();
    server.signal("USR2");
    let line = server.line("not handed over");
    assert!(line.contains("ended before it accepted"), "{line}");
    server.serves_a_client();
    server.end();
}

#[test]
fn the_daemon_that_hosts_listeners_says_that_it_hands_nothing_over() {
    let verb = ["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--socket", ""];
    let server = Start::by(&verb, &table("web", "127.0.0.1:0", "")).serves();
    server.signal("USR2");
    server.line("not handed over: that is for backlogd shed");
    server.serves_a_client();
    server.end();
}

#[test]
fn what_cannot_hold_is_a_wrong_configuration() {
    let output = Start::shed(&table("web", "127.0.0.1:0", "fd_reserve = 1000000")).refuses();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(Some(78), output.status.code(), "{text}");
    assert!(text.contains("RLIMIT_NOFILE"), "{text}");
}

#[test]
fn an_inherited_socket_has_one_accept_loop() {
    let (several, at) = bind();
    let start = Start::shed(&table("web", &at.to_string(), "accept_sockets = 2"));
    let output = start.passing("web", several).refuses();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(Some(78), output.status.code(), "{text}");
    assert!(text.contains("an inherited socket, which has one accept loop"), "{text}");
}

#[test]
fn several_accept_loops_are_not_handed_over_and_go_on() {
    let server = Start::shed(&table("web", "127.0.0.1:0", "accept_sockets = 2")).serves();
    server.signal("USR2");
    let line = server.line("not handed over");
    assert!(line.contains("only one accept loop") && line.contains("web"), "{line}");
    server.serves_a_client();
    server.end();
}

#[test]
fn a_service_manager_learns_of_the_next_generation() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let start = Start::shed(&table("web", "127.0.0.1:0", ""));
    let start = start.with("NOTIFY_SOCKET", path.to_str().unwrap());
    let start = start.with("WATCHDOG_USEC", "400000");
    let mut server = start.serves();
    let mut long = client(server.at).unwrap();
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    server.restart();
    let mut heard = Vec::new();
    let mut hear = |n: usize, part: &str| {
        let begun = Instant::now();
        while heard.iter().filter(|it: &&String| it.contains(part)).count() < n {
            // the watchdog is fed all the time
            assert!(begun.elapsed() < PATIENCE, "no {part:?} in {heard:?}");
            let mut message = [0; 512];
            let n = manager.recv(&mut message).unwrap();
            heard.push(String::from_utf8(message[..n].to_vec()).unwrap());
        }
        heard.clone()
    };
    hear(1, &format!("MAINPID={}", server.pid));
    hear(2, "READY=1");
    hear(6, "WATCHDOG=1");
    // the first generation ends, and the service goes on: more than a socket's queue has of it
    long.shutdown(Shutdown::Both).unwrap();
    assert_eq!(Some(0), server.ended());
    let n = hear(1, "READY").iter().filter(|it| it.contains("WATCHDOG=1")).count();
    assert!(!hear(n + 15, "WATCHDOG=1").iter().any(|it| it.contains("STOPPING")));
    server.signal("TERM");
    hear(1, "STOPPING=1");
    server.end();
}

#[test]
fn a_listener_that_can_accept_nothing_more_ends_the_process() {
    let (web, _) = bind();
    let start = Start::shed(&table("web", "127.0.0.1:0", ""));
    let mut server = start.passing("web", web.try_clone().unwrap()).serves();
    server.serves_a_client();
    // accept(2) answers EINVAL from here on, to all who have the socket
    SockRef::from(&web).shutdown(Shutdown::Read).unwrap();
    let line = server.line("accepts nothing more");
    assert!(line.contains("listener=\"web\" errno=EINVAL"), "{line}");
    let line = server.line("backlogd: ");
    assert!(line.contains("shedding listener web accepts nothing more: EINVAL"), "{line}");
    assert_eq!(Some(1), server.ended());
}

#[test]
fn a_daemon_goes_on_without_a_listener_that_died() {
    let (web, _) = bind();
    let verb = ["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--socket", ""];
    let start = Start::by(&verb, &table("web", "127.0.0.1:0", ""));
    let server = start.passing("web", web.try_clone().unwrap()).serves();
    let ready = || server.counted("backlogd_shed_ready", &["listener=\"web\""]);
    assert_eq!(Some(1), ready());
    SockRef::from(&web).shutdown(Shutdown::Read).unwrap();
    wait_for(|| match ready() {
        Some(0) => Ok(()),
        other => Err(format!("ready: {other:?}")),
    });
    let answer = get(server.metrics, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("web accepts nothing more"));
    assert_eq!(None, server.counted("backlogd_shed_drain_seconds_remaining", &[]));
    assert_eq!(None, server.counted("backlogd_shed_accept_queue_length", &[]));
    server.end();
}

#[test]
fn a_drain_tells_how_long_it_may_take() {
    let lines = "drain_delay_seconds = 300\ndrain_seconds = 300";
    let server = Start::shed(&table("web", "127.0.0.1:0", lines)).serves();
    let mut long = client(server.at).unwrap();
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    server.signal("TERM");
    server.line("stopping");
    let mut left = 0.0;
    wait_for(|| {
        let text = get(server.metrics, "/metrics");
        let line = text.lines().find(|it| it.starts_with("backlogd_shed_drain_seconds_remaining{"));
        left = line.and_then(|it| it.rsplit(' ').next()?.parse().ok()).ok_or("none")?;
        Ok(())
    });
    assert!((500.0..=600.0).contains(&left), "{left}");
    assert_eq!(Some(0), server.counted("backlogd_shed_ready", &[]));
    server.end();
}

#[test]
fn a_drain_tells_what_became_of_connections() {
    let mut server = Start::shed(&table("web", "127.0.0.1:0", "drain_seconds = 300")).serves();
    let open = || {
        let mut client = client(server.at).unwrap();
        assert_eq!(b'x', round_trip(&mut client).unwrap());
        client
    };
    let (before, finishes, _stays) = (open(), open(), open());
    let wait_for = |name, n| {
        wait_for(|| match server.counted(name, &[]) {
            Some(got) if got == n => Ok(()),
            got => Err(format!("{name}: {got:?}")),
        });
    };
    drop(before);
    wait_for("backlogd_shed_open_connections", 2);
    server.signal("TERM");
    wait_for("backlogd_shed_ready", 0);
    drop(finishes);
    wait_for("backlogd_shed_open_connections", 1);
    // at once, then
    server.signal("TERM");
    let line = server.line(" drained ");
    assert!(line.contains("listener=\"web\" finished=1 reset=1 took="), "{line}");
    assert_eq!(Some(0), server.ended());
}

#[test]
fn a_generation_that_was_followed_tells_how_its_drain_ended() {
    let mut server = Start::shed(&table("web", "127.0.0.1:0", "drain_seconds = 0.2")).serves();
    let mut long = client(server.at).unwrap();
    assert_eq!(b'x', round_trip(&mut long).unwrap());
    server.restart();
    let line = server.line(" drained ");
    assert!(line.contains("listener=\"web\" finished=0 reset=1 took="), "{line}");
    assert_eq!(Some(0), server.ended());
    server.end();
}
