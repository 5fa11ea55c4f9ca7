//! What the keys of `[[shed]]` change, through the real binary.

#![expect(clippy::unwrap_used, reason = "outside of #[test] functions, but in a test")]

#[path = "fixtures/front.rs"]
mod front;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use front::{
    Shed, accept, check_identities, echo, field, get, limited, listen, patient, rest, serves,
    table, wait_for,
};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

const RESET: Result<String, ErrorKind> = Err(ErrorKind::ConnectionReset);

/// A client whose address is `127.0.from.1`.
fn client_from(shed: &Shed, from: u8) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = IpAddr::from(Ipv4Addr::new(127, 0, from, 1));
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket.connect(&shed.at.into()).unwrap();
    patient(socket.into())
}

#[track_caller]
fn wait_until_shed(shed: &Shed, reason: &str, n: u64) {
    let reason = format!("reason=\"{reason}\"");
    shed.wait_until_counted("backlogd_shed_connections_total", &[&reason], n);
}

#[track_caller]
fn wait_until_late(shed: &Shed, deadline: &str, n: u64) {
    let deadline = format!("deadline=\"{deadline}\"");
    shed.wait_until_counted("backlogd_shed_deadline_timeouts_total", &[&deadline], n);
}

#[test]
fn each_reason_may_have_its_answer() {
    let (backend, addr) = listen();
    let lines = "soft = 1\non_shed_for = { soft = \"fin\", backend_down = \"http-503\" }\n\
                 exempt = [\"127.0.9.0/24\"]";
    let shed = Shed::start(&addr, lines);
    let _first = shed.client();
    drop(accept(&backend));
    assert_eq!(shed.ends(), Ok(String::new()));
    wait_until_shed(&shed, "soft", 1);
    drop(backend);
    let answer = rest(&mut client_from(&shed, 9)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    wait_until_shed(&shed, "backend_down", 1);
    // a reason of which nothing is said has the answer for all
    let (_backend, addr) = listen();
    let shed = Shed::start(&addr, "soft = 9\nrate = 1\non_shed_for = { soft = \"fin\" }");
    let _first = shed.client();
    assert_eq!(shed.ends(), RESET);
}

#[test]
fn who_is_shed_lingers_as_long_as_may_be() {
    let lines = "soft = 1\nrate = 1\non_shed = \"http-503\"\nlinger_max = 1\nlinger_seconds = 2";
    let shed = Shed::start(&echo(), lines);
    let mut served = shed.client();
    serves(&mut served);
    // neither closes
    let mut first = shed.client();
    shed.wait_until_counted("backlogd_shed_lingering_connections", &[], 1);
    // it may have read its answer before the reset came
    drop(shed.ends());
    shed.wait_until_counted("backlogd_shed_answers_total", &["answer=\"fallback_rst\""], 1);
    assert!(rest(&mut first).unwrap().starts_with("HTTP/1.1 503 "));
    shed.wait_until_counted("backlogd_shed_lingering_connections", &[], 0);
}

#[test]
fn who_waited_too_long_for_a_listener_that_stood_still_is_stale() {
    for (more, is_stale) in [("queue_max_wait_seconds = 0.1", true), ("", false)] {
        let lines = format!("soft = 1\nhard = 2\nexempt = [\"127.0.0.0/8\"]\n{more}");
        let shed = Shed::start(&echo(), &lines);
        let mut open = [shed.client(), shed.client()];
        open.iter_mut().for_each(serves);
        let mut late = shed.client();
        let begun = Instant::now();
        wait_for(|| match begun.elapsed() {
            waited if Duration::from_millis(200) < waited => Ok(()),
            waited => Err(format!("{waited:?}")),
        });
        drop(open);
        if is_stale {
            assert_eq!(rest(&mut late), RESET);
            wait_until_shed(&shed, "stale", 1);
        } else {
            serves(&mut late);
        }
    }
}

#[test]
fn the_log_says_that_it_stands_still_at_the_hard_limit_and_for_how_long() {
    let shed = Shed::start(&echo(), "soft = 1\nhard = 2\nexempt = [\"127.0.0.0/8\"]");
    let mut served = [shed.client(), shed.client()];
    served.iter_mut().for_each(serves);
    let line = shed.wait_for_line(" stands still: the hard limit is reached");
    assert!(line.contains("listener=\"web\" cause=\"hard\" hard=2"), "{line}");
    drop(served);
    let line = shed.wait_for_line(" stands still no more");
    assert!(line.contains("listener=\"web\" cause=\"hard\" paused="), "{line}");
}

#[test]
fn silent_clients_are_ended_unless_that_is_off() {
    let shed = Shed::start(&echo(), "soft = 9");
    let said = "deadlines=\"first_byte 30s, idle 300s, write_stall 30s, half_close 60s\"";
    assert!(shed.opened.contains(said), "{}", shed.opened);
    assert!(
        shed.opened.contains("soft=9 hard=25 bound=\"from the soft limit\""),
        "{}",
        shed.opened
    );
    let shed = Shed::start(&echo(), "soft = 9\nfirst_byte_seconds = 0.2\nidle_seconds = 0.5");
    let (mut silent, mut idle) = (shed.client(), shed.client());
    serves(&mut idle);
    assert_eq!(rest(&mut silent), RESET);
    assert_eq!(shed.counted("backlogd_shed_deadline_timeouts_total", &["\"first_byte\""]), Some(1));
    assert!(rest(&mut idle).is_ok() || rest(&mut idle) == RESET);
    wait_until_late(&shed, "idle", 1);
    let off = "soft = 9\nfirst_byte_seconds = 0\nidle_seconds = 0\nwrite_stall_seconds = 0\n\
               half_close_seconds = 0";
    let shed = Shed::start(&echo(), off);
    assert!(shed.opened.contains("deadlines=\"\""), "{}", shed.opened);
    serves(&mut shed.client());
}

#[test]
fn who_moves_too_little_is_ended() {
    let shed = Shed::start(&echo(), "soft = 9\nmin_rate = 1000\nfirst_byte_seconds = 0");
    let mut quick = shed.client();
    let mut slow = shed.client();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let begun = Instant::now();
    wait_for(|| {
        // 2,000 bytes and 2 bytes in 10 ms
        quick.write_all(&[0; 1_000]).unwrap();
        quick.read_exact(&mut [0; 1_000]).unwrap();
        let written = slow.write_all(b"x");
        match slow.read(&mut [0]) {
            Ok(0) => Ok(()),
            Err(err) if err.kind() == ErrorKind::ConnectionReset => Ok(()),
            got => Err(format!("{written:?} {got:?} after {:?}", begun.elapsed())),
        }
    });
    assert!(Duration::from_secs(10) <= begun.elapsed(), "{:?}", begun.elapsed());
    serves(&mut quick);
    wait_until_late(&shed, "min_rate", 1);
}

#[test]
fn what_is_half_closed_ends_in_time() {
    let (backend, addr) = listen();
    let shed = Shed::start(&addr, "soft = 9\nhalf_close_seconds = 0.5");
    // the answer never ends, though it goes on
    let mut client = shed.client();
    client.write_all(b"all I have").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let begun = Instant::now();
    let mut server = accept(&backend);
    assert_eq!(rest(&mut server), Ok("all I have".to_owned()));
    wait_for(|| match server.write_all(b"more") {
        Ok(()) => Err("the backend may write".into()),
        Err(_) => Ok(()),
    });
    assert!(Duration::from_millis(500) <= begun.elapsed(), "{:?}", begun.elapsed());
    assert_eq!(rest(&mut client), RESET, "it has a part of the answer");
    wait_until_late(&shed, "half_close", 1);
    // the backend has all it wants, and the client goes on
    let mut client = shed.client();
    let mut server = accept(&backend);
    server.write_all(b"enough").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), Ok("enough".to_owned()));
    client.write_all(b"more").unwrap();
    wait_until_late(&shed, "half_close", 2);
    assert_eq!(rest(&mut server), RESET);
    shed.wait_until_counted("backlogd_shed_closed_total", &["cause=\"deadline\""], 2);
    shed.wait_until_counted("backlogd_shed_open_connections", &[], 0);
}

#[test]
fn what_waits_for_a_slow_reader_is_passed_on_whole() {
    let (backend, addr) = listen();
    let shed = Shed::start(&addr, "soft = 9");
    let mut client = shed.client();
    let mut server = accept(&backend);
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let bytes = sent.clone();
    let writer = thread::spawn(move || {
        server.write_all(&bytes).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        server
    });
    // until nothing more goes in anywhere: all buffers are full
    let out = || shed.counted("backlogd_shed_bytes_total", &["direction=\"out\""]).unwrap_or(0);
    let mut before = out();
    wait_for(|| {
        let seen = (std::mem::replace(&mut before, out()), before);
        if 0 < seen.0 && seen.0 == seen.1 && before == seen.0 {
            Ok(())
        } else {
            Err("flows".into())
        }
    });
    assert!(out() < 8_000_000);
    let (mut got, mut piece) = (Vec::new(), [0; 1_000]);
    loop {
        match client.read(&mut piece).unwrap() {
            0 => break,
            n => got.extend_from_slice(&piece[..n]),
        }
    }
    assert!(got == sent, "{} bytes", got.len());
    client.write_all(b"thanks").unwrap();
    drop(client);
    assert_eq!(rest(&mut writer.join().unwrap()), Ok("thanks".to_owned()));
    assert_eq!(out(), 8_000_000);
}

/// Sockets that listen where `shed` does.
fn n_listening(shed: &Shed) -> usize {
    let local = format!(":{:04X} 00000000:0000 0A ", shed.at.port());
    let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
    tcp.lines().filter(|line| line.contains(&local)).count()
}

#[test]
fn several_sockets_have_one_limit() {
    let cores = thread::available_parallelism().unwrap().get();
    for (said, n) in [("3".to_owned(), 3), ("\"cores\"".to_owned(), cores)] {
        let lines = format!("soft = 4\naccept_sockets = {said}\ndrain_seconds = 5");
        let mut shed = Shed::start(&echo(), &lines);
        assert_eq!(n_listening(&shed), n);
        let mut served: Vec<_> = (0..4).map(|_| shed.client()).collect();
        served.iter_mut().for_each(serves);
        for _ in 0..8 {
            assert_eq!(shed.ends(), RESET);
        }
        drop(served);
        check_identities(&shed, 12);
        shed.signal("TERM");
        assert_eq!(shed.ended(Duration::from_secs(5)), Some(0));
    }
}

#[test]
fn a_thread_may_accept() {
    let has_thread = |shed: &Shed| {
        let tasks = fs::read_dir(format!("/proc/{}/task", shed.child.0.id())).unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        tasks.filter_map(|task| name(task.ok()?).ok()).any(|name| name.trim() == "shed-accept")
    };
    let shed = Shed::start(&echo(), "soft = 4\naccept_thread = false");
    assert!(!has_thread(&shed));
    let lines = "soft = 4\naccept_thread = true\ndrain_seconds = 5\nbacklog = 77";
    let mut shed = Shed::start(&echo(), lines);
    assert!(has_thread(&shed));
    let mut served: Vec<_> = (0..4).map(|_| shed.client()).collect();
    served.iter_mut().for_each(serves);
    assert_eq!(shed.ends(), RESET);
    served.truncate(1);
    shed.signal("TERM");
    shed.wait_for_line("stopping");
    serves(&mut served[0]);
    drop(served);
    assert_eq!(shed.ended(Duration::from_secs(5)), Some(0));
}

#[test]
fn one_address_has_its_rate_and_a_full_table_its_answer() {
    let shed = Shed::start(&echo(), "soft = 100\nper_ip = 50\nper_ip_rate = 1\nper_ip_burst = 3");
    let mut served = [shed.client(), shed.client(), shed.client()];
    served.iter_mut().for_each(serves);
    assert_eq!(shed.ends(), RESET);
    wait_until_shed(&shed, "per_ip", 1);
    serves(&mut client_from(&shed, 9));
    for (when_full, sheds) in [("shed", true), ("admit", false)] {
        let lines = format!(
            "soft = 300\nper_ip = 5\nper_ip_capacity = 64\nper_ip_when_full = \"{when_full}\""
        );
        let shed = Shed::start(&echo(), &lines);
        let _clients: Vec<_> = (1..=200).map(|from| client_from(&shed, from)).collect();
        wait_for(|| match shed.counted("backlogd_shed_accepted_total", &[]) {
            Some(200) => Ok(()),
            n => Err(format!("{n:?} were accepted")),
        });
        let full = ["reason=\"per_ip_full\""];
        let n = shed.counted("backlogd_shed_connections_total", &full).unwrap_or(0);
        // the table has 8 sets of 8 places
        assert_eq!(136 <= n, sheds, "{when_full}: {n}");
        assert_eq!(0 < n, sheds, "{when_full}: {n}");
    }
}

#[test]
fn headers_of_proxies_are_awaited_for_a_while_and_not_too_many() {
    let lines = "soft = 9\nproxy_protocol_from = [\"127.0.0.0/8\"]\nproxy_protocol_max = 1\n\
                 proxy_protocol_seconds = 2";
    let shed = Shed::start(&echo(), lines);
    let begun = Instant::now();
    let mut awaited = shed.client();
    assert_eq!(shed.ends(), RESET);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(rest(&mut awaited), RESET);
    assert!(Duration::from_secs(2) <= begun.elapsed(), "{:?}", begun.elapsed());
    wait_until_shed(&shed, "proxy_header", 2);
    let mut named = shed.client();
    named.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.9 1000 80\r\n").unwrap();
    serves(&mut named);
}

#[test]
fn codel_sheds_those_who_waited_while_the_process_stood_still() {
    for (more, sheds) in [("adaptive = \"codel\"", true), ("adaptive = \"off\"", false)] {
        let times = "adaptive_target_seconds = 0.001\nadaptive_interval_seconds = 0.01";
        let times = if sheds { times } else { "" };
        let shed = Shed::start(&echo(), &format!("soft = 900\n{more}\n{times}"));
        shed.signal("STOP");
        let clients: Vec<_> = (0..400).map(|_| shed.client()).collect();
        let begun = Instant::now();
        wait_for(|| match begun.elapsed() {
            waited if Duration::from_millis(100) < waited => Ok(()),
            waited => Err(format!("{waited:?}")),
        });
        shed.signal("CONT");
        wait_for(|| match shed.counted("backlogd_shed_accepted_total", &[]) {
            Some(400) => Ok(()),
            n => Err(format!("{n:?} were accepted")),
        });
        let n = shed.counted("backlogd_shed_connections_total", &["reason=\"codel\""]).unwrap_or(0);
        assert_eq!(0 < n, sheds, "{more}: {n}");
        drop(clients);
    }
}

#[test]
fn checks_are_answered_beside_the_listener() {
    let lines = "soft = 1\nhealth_listen = \"127.0.0.1:0\"\nhealth_fail_at = \"soft\"\n\
                 health_fail_after_seconds = 0\nhealth_recover_after_seconds = 0.1\n\
                 health_probe_seconds = 0.1\ndrain_seconds = 5";
    for accepts in ["", "accept_thread = true", "accept_sockets = 2"] {
        let mut shed = Shed::start(&echo(), &format!("{lines}\n{accepts}"));
        let health = field(&shed.opened, "health");
        let says = |path: &str, status: &str, why: &str| {
            wait_for(|| match get(health, path) {
                got if got.starts_with(status) && got.contains(why) => Ok(()),
                got => Err(format!("{accepts}: {got}")),
            });
        };
        says("/readyz", "HTTP/1.1 200 ", "ok");
        let mut open = shed.client();
        serves(&mut open);
        says("/readyz", "HTTP/1.1 503 ", "overloaded");
        says("/healthz", "HTTP/1.1 200 ", "ok");
        drop(open);
        says("/readyz", "HTTP/1.1 200 ", "ok");
        // probes are nobody's connections
        check_identities(&shed, 1);
        let mut open = shed.client();
        serves(&mut open);
        shed.signal("TERM");
        says("/readyz", "HTTP/1.1 503 ", "draining");
        serves(&mut open);
        drop(open);
        assert_eq!(shed.ended(Duration::from_secs(5)), Some(0));
    }
}

#[test]
fn an_address_for_checks_that_is_taken_is_named() {
    let (_taken, addr) = listen();
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("f.toml");
    let lines = format!("soft = 1\nhealth_listen = \"{addr}\"");
    fs::write(&config, table("127.0.0.1:1", &lines)).unwrap();
    let output = backlogd(&["shed", "--metrics", "127.0.0.1:0", "--config"], &config);
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let message = format!(
        "backlogd: shedding listener web: cannot answer health checks on {addr}: listener {addr}: \
         the address is in use, by "
    );
    assert!(stderr.contains(&message), "{stderr}");
}

#[test]
fn whoever_accepts_queues_by_another_limit_at_sighup() {
    for (accepts, n_sockets) in [("", 1), ("accept_thread = true", 1), ("accept_sockets = 3", 3)] {
        let backend = echo();
        let lines = |backlog: u32| format!("soft = 9\nbacklog = {backlog}\n{accepts}");
        let shed = Shed::start(&backend, &lines(77));
        let limit = |of: u64| {
            shed.wait_until_counted("backlogd_shed_accept_queue_limit", &[], of * n_sockets);
        };
        limit(77);
        fs::write(shed.config(), table(&backend, &lines(33))).unwrap();
        shed.signal("HUP");
        let line = shed.wait_for_line("queues by another limit");
        assert!(line.contains(&format!("listener=\"web\" backlog={}", 33 * n_sockets)), "{line}");
        limit(33);
    }
}

#[test]
fn at_sighup_who_leaves_descriptors_does_so_before_who_takes_them() {
    let backend = echo();
    let lines = |one: &str, other: &str| {
        format!(
            "{one}\n[[shed]]\nname = \"api\"\nlisten = \"127.0.0.1:0\"\nbackend = \"{backend}\"\n\
             {other}\n"
        )
    };
    let few = "soft = 11\nhard = 20";
    let shed = Shed::within(200, &backend, &lines("soft = 10\nhard = 60", few));
    fs::write(shed.config(), table(&backend, &lines(few, "soft = 11\nhard = 60"))).unwrap();
    shed.signal("HUP");
    shed.wait_for_line("reloaded");
    let hard = |listener: &str| {
        let labels = [&*format!("listener=\"{listener}\""), "kind=\"hard\""];
        shed.counted("backlogd_shed_limit", &labels)
    };
    assert_eq!([hard("web"), hard("api")], [Some(20), Some(60)]);
}

#[test]
fn sighup_takes_what_it_can_and_names_the_rest() {
    let (first, second) = (listen(), listen());
    let shed = Shed::start(&first.1, "soft = 9\nhalf_close_seconds = 60\ndrain_seconds = 600");
    let _open = shed.client();
    let mut server = accept(&first.0);
    let lines = "soft = 9\nhalf_close_seconds = 0.2\ndrain_seconds = 0.5\nbacklog = 33\n\
                 idle_seconds = 9\nper_ip = 3";
    fs::write(shed.config(), table(&second.1, lines)).unwrap();
    shed.signal("HUP");
    let line = shed.wait_for_line("takes effect at the next start");
    assert!(line.contains("listener=\"web\" keys=\"per_ip, idle_seconds\""), "{line}");
    let line = shed.wait_for_line(" changed ");
    let keys = "keys=\"backend, backlog, half_close_seconds, drain_seconds\"";
    assert!(line.contains(&format!("listener=\"web\" {keys}")), "{line}");
    let line = shed.wait_for_line("queues by another limit");
    assert!(line.contains("backlog=33"), "{line}");
    // whoever comes goes to the other backend, and by the other times
    let mut client = shed.client();
    let _server = accept(&second.0);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), RESET);
    wait_until_late(&shed, "half_close", 1);
    // whoever was there stays
    server.write_all(b"x").unwrap();
    let mut shed = shed;
    shed.signal("TERM");
    assert_eq!(shed.ended(Duration::from_secs(5)), Some(0));
}

#[test]
fn sighup_refuses_what_the_next_start_would() {
    let backend = echo();
    let shed = Shed::start(&backend, "soft = 9");
    fs::write(shed.config(), "sample_interval_seconds = 0.1\n").unwrap();
    shed.signal("HUP");
    let line = shed.wait_for_line("reloaded");
    let path = shed.config().display().to_string();
    let nothing = format!("{path}: no table [[shed]], expected at least one");
    let expected = format!("not reloaded: the configuration stays as it was error={nothing}");
    assert!(line.contains(&expected), "{line}");
    let output = backlogd(&["shed", "--config"], &shed.config());
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&nothing));
    // what it has is what a good one is compared to
    fs::write(shed.config(), table(&backend, "soft = 5")).unwrap();
    shed.signal("HUP");
    let line = shed.wait_for_line(" changed ");
    assert!(line.contains("listener=\"web\" keys=\"soft\""), "{line}");
}

fn backlogd(arguments: &[&str], config: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command.args(arguments).arg(config).env("NO_COLOR", "1").output().unwrap()
}

/// What `backlogd shed --check` says of a listener, in a process that may have `nofile`
/// descriptors.
#[track_caller]
fn check_says(nofile: usize, lines: &str, code: i32, expected: &[&str]) {
    // taken: an attempt to listen there would fail
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("f.toml");
    let text = table("127.0.0.1:1", lines).replace("127.0.0.1:0", &listen.to_string());
    fs::write(&config, text).unwrap();
    let output = limited(nofile)
        .args(["shed", "--check", "--config"])
        .arg(&config)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (output.stdout, output.stderr);
    let all =
        format!("{}{}", String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{lines}: {all}");
    for part in expected {
        let part = part.replace("LISTEN", &listen.to_string());
        assert!(all.contains(&part), "no {part:?} for {lines}: {all}");
    }
}

#[test]
fn check_says_which_bound_won_and_listens_nowhere() {
    let row = "web       LISTEN  127.0.0.1:1";
    let deadlines = "first_byte 30s, idle 300s, write_stall 30s, half_close 60s";
    check_says(1_024, "soft = 100", 0, &[row, "   100   125  from the soft limit  ", deadlines]);
    check_says(1_024, "soft = 100\nhard = 130", 0, &["   100   130  as given"]);
    let two = "soft = 200\n[[shed]]\nname = \"api\"\nlisten = \"127.0.0.1:2\"\nbackend = \"127.0.0.1:1\"\nsoft = 200";
    check_says(
        1_024,
        two,
        78,
        &["shedding listener api: hard limit is 240", "other listeners of this process"],
    );
    check_says(1_024, "soft = 370", 0, &["   370   448  from RLIMIT_NOFILE"]);
    check_says(
        1_024,
        "soft = 400",
        78,
        &[
            "backlogd: shedding listener web: hard limit is 480, 20 % above the soft limit of 400, expected at most 448: a connection takes 2 descriptors, RLIMIT_NOFILE is 1024",
        ],
    );
    check_says(1_024, "soft = 400\nhard = 9", 78, &["f.toml:7:8: shed.hard: got 9, expected"]);
    let output = backlogd(
        &["shed", "--check", "--listen", "127.0.0.1:1", "--backend", "unix:/s", "--soft", "9"],
        "--hard=50".as_ref(),
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{stdout}");
    assert!(stdout.contains("127.0.0.1:1  127.0.0.1:1  unix:/s     9    50  as given"), "{stdout}");
}
