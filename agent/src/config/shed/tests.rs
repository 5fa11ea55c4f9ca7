//! What tables of listeners that shed are, and what is wrong with those that are none.

use std::path::Path;

use backlogd_shed::Cidr;

use super::*;
use crate::config::{Loaded, file};

const LEAST: &str = "[[shed]]\nlisten = \"127.0.0.1:80\"\nbackend = \"127.0.0.1:81\"\nsoft = 10\n";

fn load(text: &str) -> Result<Vec<Front>, String> {
    let mut loaded = Loaded::new();
    file::apply(&mut loaded, Path::new("f.toml"), text).map_err(|err| err.to_string())?;
    Ok(loaded.config.shed)
}

#[track_caller]
fn check(text: &str, expected: Front) {
    assert_eq!(load(&format!("{LEAST}{text}")), Ok(vec![expected]), "{text}");
}

/// `line` is the fifth of the file.
#[track_caller]
fn refuses(line: &str, message: &str) {
    assert_eq!(load(&format!("{LEAST}{line}")), Err(format!("f.toml:{message}")), "{line}");
}

fn least() -> Front {
    let listen = "127.0.0.1:80".parse().expect("an address");
    Front::new(listen, Backend::Tcp("127.0.0.1:81".into()), 10)
}

#[test]
fn a_listener_is_what_its_keys_say() {
    check("", least());
    let limits = Limits { hard: Some(20), fd_reserve: Some(7), ..least().limits };
    check(
        "hard = 20\nfd_reserve = 7\nname = \"web\"\nbacklog = 65535",
        Front { name: "web".into(), limits, backlog: Some(65_535), ..least() },
    );
    for (text, on_shed) in [
        ("\"rst\"", OnShed::Rst),
        ("\"fin\"", OnShed::Fin),
        ("\"http-503\"", OnShed::http_503()),
        ("\"http-429\"", OnShed::http_429()),
        ("{ bytes = \"421 busy\\r\\n\" }", OnShed::bytes("421 busy\r\n")),
    ] {
        check(&format!("on_shed = {text}"), Front { on_shed, ..least() });
    }
    let range: Cidr = "10.0.0.0/8".parse().expect("a range");
    check("exempt = [\"10.0.0.0/8\"]", Front { exempt: vec![range], ..least() });
    let proxy_protocol = Some(ProxyProtocol::from([range]));
    check("proxy_protocol_from = [\"10.0.0.0/8\"]", Front { proxy_protocol, ..least() });
    check("rate = 5", Front { rate: Some(Rate::per_second(5).burst(5)), ..least() });
    check("rate = 5\nburst = 9", Front { rate: Some(Rate::per_second(5).burst(9)), ..least() });
    let per_ip =
        PerIp { rate: Some(Rate::per_second(3)), ipv6_prefix: 56, ..PerIp::connections(2) };
    check(
        "per_ip = 2\nper_ip_rate = 3\nipv6_prefix = 56",
        Front { per_ip: Some(per_ip), ..least() },
    );
    check(
        "per_ip = 2\nper_ip_rate = 3\nper_ip_burst = 4\nper_ip_capacity = 64\n\
         per_ip_when_full = \"shed\"",
        Front {
            per_ip: Some(PerIp {
                rate: Some(Rate::per_second(3).burst(4)),
                capacity: 64,
                when_full: WhenFull::Shed,
                ..PerIp::connections(2)
            }),
            ..least()
        },
    );
    let settings = ProxyProtocol {
        deadline: Duration::from_millis(1_500),
        max: 9,
        ..ProxyProtocol::from([range])
    };
    check(
        "proxy_protocol_from = [\"10.0.0.0/8\"]\nproxy_protocol_seconds = 1.5\n\
         proxy_protocol_max = 9",
        Front { proxy_protocol: Some(settings), ..least() },
    );
}

#[test]
fn how_it_accepts_and_sheds_is_what_its_keys_say() {
    for (text, accept) in [
        ("accept_sockets = 3", Accept::Sockets(3)),
        ("accept_sockets = \"cores\"", Accept::Cores),
        ("accept_thread = true\naccept_sockets = 1", Accept::Thread),
        ("accept_thread = false", Accept::Sockets(1)),
    ] {
        check(text, Front { accept, ..least() });
    }
    check(
        "give_up_after_seconds = 60\nqueue_max_wait_seconds = 0.5",
        Front {
            give_up_after: Some(Duration::from_secs(60)),
            queue_max_wait: Duration::from_millis(500),
            ..least()
        },
    );
    check(
        "on_shed_for = { backend_down = \"http-503\", draining = \"fin\", rate = { bytes = \"x\" } }",
        Front {
            on_shed_for: vec![
                (Reason::Rate, OnShed::bytes("x")),
                (Reason::Draining, OnShed::Fin),
                (Reason::BackendDown, OnShed::http_503()),
            ],
            ..least()
        },
    );
    check(
        "linger_max = 9\nlinger_seconds = 2\nlinger_bytes = 0",
        Front {
            linger: Linger { max: Some(9), time: Duration::from_secs(2), bytes: 0 },
            ..least()
        },
    );
    check("adaptive = \"off\"", least());
    check("adaptive = \"codel\"", Front { adaptive: Some(Adaptive::codel()), ..least() });
    let codel =
        Adaptive::Codel { target: Duration::from_secs(1), interval: Duration::from_secs(1) };
    check(
        "adaptive = \"codel\"\nadaptive_target_seconds = 1\nadaptive_interval_seconds = 1",
        Front { adaptive: Some(codel), ..least() },
    );
}

#[test]
fn a_time_is_what_its_key_says_and_0_may_be_none() {
    let deadlines = Deadlines {
        first_byte: Some(Duration::from_secs(3)),
        idle: Some(Duration::from_millis(1_500)),
        write_stall: Some(Duration::from_secs(9)),
        min_rate: Some(MinRate { bytes_per_second: 50, over: Duration::from_secs(10) }),
        lifetime: Some(Duration::from_secs(604_800)),
        ..Deadlines::default()
    };
    check(
        "first_byte_seconds = 3\nidle_seconds = 1.5\nwrite_stall_seconds = 9\nmin_rate = 50\n\
         lifetime_seconds = 604800\nconnect_timeout_seconds = 0.5\ndrain_seconds = 0\n\
         drain_delay_seconds = 5\nhalf_close_seconds = 0.1",
        Front {
            deadlines,
            half_close: Some(Duration::from_millis(100)),
            connect_timeout: Duration::from_millis(500),
            drain_delay: Duration::from_secs(5),
            drain: Duration::ZERO,
            ..least()
        },
    );
    check(
        "first_byte_seconds = 0\nidle_seconds = 0.0\nwrite_stall_seconds = 0\nmin_rate = 0\n\
         lifetime_seconds = 0\nhalf_close_seconds = 0\ngive_up_after_seconds = 0",
        Front { deadlines: Deadlines::default(), half_close: None, ..least() },
    );
    assert_eq!(
        least().deadlines(),
        "first_byte 30s, idle 300s, write_stall 30s, half_close 60s",
        "a silent peer does not have its place for ever"
    );
}

#[test]
fn health_checks_are_answered_as_their_keys_say() {
    let listen = "127.0.0.1:9".parse().expect("an address");
    let config = HealthConfig::default();
    check(
        "health_listen = \"127.0.0.1:9\"",
        Front { health: Some(Health { listen, config }), ..least() },
    );
    for (word, fail_at) in
        [("never", FailAt::Never), ("soft", FailAt::Soft), ("hard", FailAt::Hard)]
    {
        let config = HealthConfig {
            fail_at,
            fail_after: Duration::ZERO,
            recover_after: Duration::from_millis(500),
            probe: None,
        };
        check(
            &format!(
                "health_listen = \"127.0.0.1:9\"\nhealth_fail_at = \"{word}\"\n\
                 health_fail_after_seconds = 0\nhealth_recover_after_seconds = 0.5\n\
                 health_probe_seconds = 0"
            ),
            Front { health: Some(Health { listen, config }), ..least() },
        );
    }
}

#[test]
fn a_value_out_of_range_is_named_with_its_place() {
    let (answer, ranges) = (Keys::takes("on_shed"), Keys::takes("exempt"));
    refuses(
        "hard = 11",
        "5:8: shed.hard: got 11, expected at least 12: 20 % above the soft limit, which is 10",
    );
    refuses("hard = 2097152", "5:8: shed.hard: got 2097152, expected connections, 1 to 2097151");
    let reserve = "expected descriptors, 0 to 1000000";
    refuses("fd_reserve = -1", &format!("5:14: shed.fd_reserve: got -1, {reserve}"));
    for (value, got) in [("0", "0"), ("65536", "65536"), ("1.5", "1.5")] {
        refuses(
            &format!("backlog = {value}"),
            &format!("5:11: shed.backlog: got {got}, expected connections, 1 to 65535"),
        );
    }
    for (value, got) in [
        ("\"close\"", "\"close\""),
        ("{ bytes = \"\" }", "a table"),
        ("{ bytes = \"x\", status = 1 }", "a table"),
    ] {
        refuses(
            &format!("on_shed = {value}"),
            &format!("5:11: shed.on_shed: got {got}, expected {answer}"),
        );
    }
    for (key, column) in [("exempt", 10), ("proxy_protocol_from", 23)] {
        refuses(
            &format!("{key} = \"10.0.0.0/8\""),
            &format!("5:{column}: shed.{key}: got \"10.0.0.0/8\", expected {ranges}"),
        );
        for (wrong, expected) in [
            ("\"10.0.0.1/33\"", "a prefix of 0 to 32 bits"),
            ("\"10.0.0.1/8\"", "\"10.0.0.0/8\", or one address"),
            ("\"localhost\"", "an IP range, such as \"10.0.0.0/8\""),
            ("10", "an IP range, such as \"10.0.0.0/8\""),
        ] {
            refuses(
                &format!("{key} = [\"::1\", {wrong}]"),
                &format!("5:{}: shed.{key}: got {wrong}, expected {expected}", column + 8),
            );
        }
    }
    let rate = Keys::takes("rate");
    refuses("rate = 0", &format!("5:8: shed.rate: got 0, expected {rate}"));
    refuses("per_ip = 0", "5:10: shed.per_ip: got 0, expected connections, 1 to 2097151");
    refuses("ipv6_prefix = 32", "5:15: shed.ipv6_prefix: got 32, expected bits, 48 to 128");
    for (key, least, most, more) in [
        ("first_byte_seconds", "0.1", 604_800, ", or 0 for never"),
        ("idle_seconds", "0.1", 604_800, ", or 0 for never"),
        ("write_stall_seconds", "0.1", 604_800, ", or 0 for never"),
        ("half_close_seconds", "0.1", 604_800, ", or 0 for never"),
        ("lifetime_seconds", "0.1", 604_800, ", or 0 for never"),
        ("give_up_after_seconds", "0.1", 604_800, ", or 0 for never"),
        ("health_probe_seconds", "0.1", 4, ", or 0 for never"),
        ("queue_max_wait_seconds", "0.01", 3_600, ""),
        ("linger_seconds", "0.001", 60, ""),
        ("proxy_protocol_seconds", "0.001", 60, ""),
        ("adaptive_target_seconds", "0.001", 1, ""),
        ("adaptive_interval_seconds", "0.01", 10, ""),
        ("connect_timeout_seconds", "0.01", 60, ""),
        ("health_fail_after_seconds", "0", 3_600, ""),
        ("health_recover_after_seconds", "0", 3_600, ""),
        ("drain_delay_seconds", "0", 3_600, ""),
        ("drain_seconds", "0", 3_600, ""),
    ] {
        let too_short = if least == "0" { "-1".to_owned() } else { "0.0009".to_owned() };
        for value in [too_short, "-1".to_owned(), "nan".to_owned(), (most + 1).to_string()] {
            let column = key.len() + 4;
            refuses(
                &format!("{key} = {value}"),
                &format!(
                    "5:{column}: shed.{key}: got {value}, \
                     expected a number of seconds, {least} to {most}{more}"
                ),
            );
        }
    }
}

#[test]
fn a_name_is_one_that_can_be_handed_over() {
    let longest = "n".repeat(128);
    // a colon and a percent sign, which are written otherwise among names that are handed over
    for name in ["web", "[::]:80", "100 %", "/metrics/", &longest] {
        check(&format!("name = \"{name}\""), Front { name: name.into(), ..least() });
    }
    for name in ["", "a\\u0000b", "a\\nb", "\\u007f", "\\u0085", &format!("{longest}n")] {
        let got = load(&format!("{LEAST}name = \"{name}\"")).expect_err(name);
        assert!(got.starts_with("f.toml:5:8: shed.name: got \""), "{name}: {got}");
        let expected = ", expected text of 1 to 128 bytes without control characters";
        assert!(got.ends_with(expected), "{name}: {got}");
    }
    for name in ["/metrics", "backlogd.socket"] {
        refuses(
            &format!("name = \"{name}\""),
            &format!(
                "5:8: shed.name: got \"{name}\", expected another one than /metrics and \
                 backlogd.socket, by which the socket for scrapes is inherited"
            ),
        );
    }
}

#[test]
fn a_number_or_a_word_that_cannot_be_is_named() {
    for (key, values) in [
        ("accept_sockets", &["0", "1025", "\"core\""][..]),
        ("accept_thread", &["1", "\"yes\""]),
        ("linger_max", &["0", "2097152"]),
        ("linger_bytes", &["-1", "1073741825"]),
        ("per_ip_burst", &["0", "1000001"]),
        ("per_ip_capacity", &["63", "1048577"]),
        ("per_ip_when_full", &["\"drop\"", "true"]),
        ("proxy_protocol_max", &["0", "65537"]),
        ("adaptive", &["\"on\""]),
        ("min_rate", &["-1", "1000000001", "0.5"]),
        ("health_listen", &["\"localhost:80\"", "80"]),
        ("health_fail_at", &["\"always\""]),
    ] {
        for value in values {
            let (column, takes) = (key.len() + 4, Keys::takes(key));
            refuses(
                &format!("{key} = {value}"),
                &format!("5:{column}: shed.{key}: got {value}, expected {takes}"),
            );
        }
    }
    refuses(
        "adaptive = \"gradient\"",
        "5:12: shed.adaptive: got \"gradient\", expected \"off\" or \"codel\": a gradient follows how \
         long requests take, of which a relay of bytes sees nothing",
    );
    refuses(
        "adaptive = \"codel\"\nadaptive_target_seconds = 0.5",
        "6:27: shed.adaptive_target_seconds: got 0.5, expected an interval that is at least the \
         target",
    );
    refuses(
        "accept_thread = true\naccept_sockets = 2",
        "6:18: shed.accept_sockets: got 2, expected 1, beside accept_thread",
    );
}

#[test]
fn an_answer_is_for_a_reason_that_there_is() {
    refuses("on_shed_for = \"fin\"", "5:15: shed.on_shed_for: got \"fin\", expected a table");
    refuses(
        "on_shed_for = { draining = \"fin\", emfile = \"fin\" }",
        "5:35: shed.on_shed_for: got unknown key `emfile`, expected one of soft, hard, per_ip, \
         per_ip_full, rate, stale, codel, draining, handoff, proxy_header, backend_down",
    );
    let takes = Keys::takes("on_shed");
    refuses(
        "on_shed_for = { draining = \"end\" }",
        &format!("5:28: shed.on_shed_for.draining: got \"end\", expected {takes}"),
    );
    let help = KEYS.iter().find(|key| key.name == "on_shed_for").expect("it is there").help;
    for reason in REASONS {
        assert!(help.contains(reason.as_str()), "{reason} is not in: {help}");
    }
}

#[test]
fn a_key_that_means_nothing_by_itself_is_named() {
    for (key, value, other) in [
        ("burst", "5", "rate"),
        ("per_ip_rate", "5", "per_ip"),
        ("per_ip_burst", "5", "per_ip_rate"),
        ("per_ip_capacity", "64", "per_ip"),
        ("per_ip_when_full", "\"shed\"", "per_ip"),
        ("ipv6_prefix", "64", "per_ip"),
        ("proxy_protocol_seconds", "1", "proxy_protocol_from"),
        ("proxy_protocol_max", "1", "proxy_protocol_from"),
        ("adaptive_target_seconds", "0.01", "adaptive"),
        ("adaptive_interval_seconds", "0.1", "adaptive"),
        ("health_fail_at", "\"soft\"", "health_listen"),
        ("health_fail_after_seconds", "1", "health_listen"),
        ("health_recover_after_seconds", "1", "health_listen"),
        ("health_probe_seconds", "1", "health_listen"),
    ] {
        let column = key.len() + 4;
        refuses(
            &format!("{key} = {value}"),
            &format!("5:{column}: shed.{key}: got {value}, expected {other} beside it"),
        );
    }
}

/// What of `lines` differs from the least: what is taken while it runs, and what is not.
#[track_caller]
fn check_changes(before: &str, after: &str, live: &[&str], fixed: &[&str]) {
    let front = |lines| load(&format!("{LEAST}{lines}")).expect("it is valid").remove(0);
    let (before, after) = (front(before), front(after));
    let changes = before.changes(&after);
    let of = |is_live| {
        changes.iter().filter(|it| it.is_live == is_live).map(|it| it.key).collect::<Vec<_>>()
    };
    assert_eq!((&*of(true), &*of(false)), (live, fixed), "{before:?} {after:?}");
    // what is taken is all that there is to take
    let taken = Front { limits: after.limits, ..before.changed(&after) };
    assert!(taken.changes(&after).iter().all(|it| !it.is_live), "{taken:?} {after:?}");
    assert_eq!(taken == after, fixed.is_empty(), "{taken:?} {after:?}");
}

#[test]
fn each_key_that_differs_is_named() {
    check_changes("", "", &[], &[]);
    for (key, value) in [
        ("hard", "20"),
        ("fd_reserve", "7"),
        ("backlog", "9"),
        ("half_close_seconds", "9"),
        ("connect_timeout_seconds", "9"),
        ("drain_delay_seconds", "9"),
        ("drain_seconds", "9"),
    ] {
        check_changes("", &format!("{key} = {value}"), &[key], &[]);
    }
    for (key, value) in [
        ("accept_sockets", "2"),
        ("accept_thread", "true"),
        ("give_up_after_seconds", "9"),
        ("queue_max_wait_seconds", "9"),
        ("on_shed", "\"fin\""),
        ("on_shed_for", "{ rate = \"fin\" }"),
        ("linger_max", "9"),
        ("linger_seconds", "9"),
        ("linger_bytes", "9"),
        ("exempt", "[\"10.0.0.0/8\"]"),
        ("rate", "9"),
        ("per_ip", "9"),
        ("proxy_protocol_from", "[\"10.0.0.0/8\"]"),
        ("adaptive", "\"codel\""),
        ("first_byte_seconds", "9"),
        ("idle_seconds", "9"),
        ("write_stall_seconds", "9"),
        ("lifetime_seconds", "9"),
        ("min_rate", "9"),
        ("health_listen", "\"127.0.0.1:9\""),
    ] {
        check_changes("", &format!("{key} = {value}"), &[], &[key]);
    }
    for (key, value, with) in [
        ("burst", "9", "rate = 5"),
        ("per_ip_rate", "9", "per_ip = 5"),
        ("per_ip_burst", "9", "per_ip = 5\nper_ip_rate = 5"),
        ("per_ip_capacity", "64", "per_ip = 5"),
        ("per_ip_when_full", "\"shed\"", "per_ip = 5"),
        ("ipv6_prefix", "48", "per_ip = 5"),
        ("proxy_protocol_seconds", "9", "proxy_protocol_from = []"),
        ("proxy_protocol_max", "9", "proxy_protocol_from = []"),
        ("adaptive_target_seconds", "0.01", "adaptive = \"codel\""),
        ("adaptive_interval_seconds", "9", "adaptive = \"codel\""),
        ("health_fail_at", "\"soft\"", "health_listen = \"127.0.0.1:9\""),
        ("health_fail_after_seconds", "9", "health_listen = \"127.0.0.1:9\""),
        ("health_recover_after_seconds", "9", "health_listen = \"127.0.0.1:9\""),
        ("health_probe_seconds", "0", "health_listen = \"127.0.0.1:9\""),
    ] {
        check_changes(with, &format!("{with}\n{key} = {value}"), &[], &[key]);
    }
}

#[test]
fn listeners_whose_connections_come_back_through_others_are_named() {
    let table = |port: u16, backend: u16| {
        format!(
            "[[shed]]\nlisten = \"127.0.0.1:{port}\"\nbackend = \"127.0.0.1:{backend}\"\nsoft = 9\n"
        )
    };
    let file = |tables: &[(u16, u16)]| -> String {
        tables.iter().map(|&(port, backend)| table(port, backend)).collect()
    };
    assert_eq!(load(&file(&[(80, 81), (81, 82), (83, 81)])).map(|fronts| fronts.len()), Ok(3));
    for (tables, message) in [
        (
            &[(80, 81), (81, 80)][..],
            "f.toml:3:11: shed.backend: got \"127.0.0.1:81\", expected an address that does not lead \
             back to listen, which is 127.0.0.1:80, through 127.0.0.1:81 (f.toml:5:1)",
        ),
        (
            &[(79, 80), (80, 81), (81, 82), (82, 80)],
            "f.toml:7:11: shed.backend: got \"127.0.0.1:81\", expected an address that does not lead \
             back to listen, which is 127.0.0.1:80, through 127.0.0.1:81 (f.toml:9:1), then \
             127.0.0.1:82 (f.toml:13:1)",
        ),
    ] {
        assert_eq!(load(&file(tables)), Err(message.to_owned()), "{tables:?}");
    }
}

#[test]
fn what_must_be_there_and_what_may_not_be_there_twice_is_named() {
    let refuses = |text: &str, message: &str| {
        assert_eq!(load(text), Err(format!("f.toml:{message}")), "{text}");
    };
    let (listen, backend) = ("[[shed]]\nlisten = \"[::]:80\"\n", "backend = \"unix:/s\"\n");
    refuses("[[shed]]", "1:1: shed: got no listen, expected IP:PORT, such as [::]:8080");
    refuses(
        "[[shed]]\nlisten = \"localhost:80\"",
        "2:10: shed.listen: got \"localhost:80\", expected IP:PORT, such as [::]:8080",
    );
    refuses(listen, &format!("1:1: shed: got no backend, expected {}", Backend::EXPECTED));
    refuses(
        &format!("{listen}backend = \"[::]:80\""),
        "3:11: shed.backend: got \"[::]:80\", expected an address that does not lead back to listen, \
         which is [::]:80",
    );
    refuses(
        &format!("{listen}backend = \"localhost:80\""),
        "3:11: shed.backend: got \"localhost:80\", expected an address that does not lead back to \
         listen, which is [::]:80",
    );
    refuses(
        &format!("{listen}backend = \"unix:s\""),
        &format!("3:11: shed.backend: got \"unix:s\", expected {}", Backend::EXPECTED),
    );
    let soft = "expected connections, 1 to 1747625";
    refuses(&format!("{listen}{backend}"), &format!("1:1: shed: got no soft, {soft}"));
    for n in [0, 1_747_626] {
        refuses(
            &format!("{listen}{backend}soft = {n}"),
            &format!("4:8: shed.soft: got {n}, {soft}"),
        );
    }
    let unknown = load(&format!("{LEAST}softer = 1")).expect_err("no such key");
    assert!(unknown.starts_with("f.toml:5:1: shed: got unknown key `softer`"), "{unknown}");
    let other = LEAST.replace(":80", ":79");
    refuses(
        &format!("{LEAST}name = \"a\"\n{other}name = \"a\""),
        "6:1: shed: got the name of f.toml:1:1 again, expected each once",
    );
    let many: String = (1..=65).map(|port| LEAST.replace(":80", &format!(":{port}"))).collect();
    refuses(&many, "257:1: shed: got one more, expected at most 64 of them");
}

#[test]
fn an_address_is_listened_on_once() {
    let refuses = |text: &str, message: &str| {
        assert_eq!(load(text), Err(format!("f.toml:{message}")), "{text}");
    };
    let table = |name: &str, listen: &str| {
        let listen = format!("[[shed]]\nlisten = \"{listen}\"\n");
        format!("{listen}name = \"{name}\"\nbackend = \"unix:/s\"\nsoft = 10\n")
    };
    refuses(
        &format!("{LEAST}{LEAST}"),
        "6:10: shed.listen: got 127.0.0.1:80, expected another address than 127.0.0.1:80 of \
         f.toml:2:10: shed.listen",
    );
    let (all, ipv4) = (table("a", "[::]:80"), table("b", "0.0.0.0:80"));
    refuses(
        &format!("{all}{ipv4}"),
        "7:10: shed.listen: got 0.0.0.0:80, expected another address than [::]:80 of f.toml:2:10: \
         shed.listen",
    );
    refuses(
        &format!("{all}health_listen = \"127.0.0.1:80\""),
        "6:17: shed.health_listen: got 127.0.0.1:80, expected another address than [::]:80 of \
         f.toml:2:10: shed.listen",
    );
    let checks = "health_listen = \"127.0.0.1:9\"\n";
    refuses(
        &format!("{all}{checks}{}", table("b", "127.0.0.1:9")),
        "8:10: shed.listen: got 127.0.0.1:9, expected another address than 127.0.0.1:9 of \
         f.toml:6:17: shed.health_listen",
    );
    refuses(
        &format!("{all}{checks}{}{checks}", table("b", "[::]:79")),
        "12:17: shed.health_listen: got 127.0.0.1:9, expected another address than 127.0.0.1:9 of \
         f.toml:6:17: shed.health_listen",
    );
    let any = ["a", "b"]
        .map(|name| format!("{}health_listen = \"127.0.0.1:0\"\n", table(name, "127.0.0.1:0")));
    assert_eq!(load(&any.concat()).map(|fronts| fronts.len()), Ok(2), "port 0 is another one");
}
