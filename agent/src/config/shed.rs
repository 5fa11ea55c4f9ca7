//! `[[shed]]`: listeners of this process that shed, and their backends.

use std::{net::SocketAddr, time::Duration};

use backlogd_shed::{Cidr, Limits, MAX_LIMIT, OnShed, PerIp, ProxyProtocol, Rate};
use toml::de::DeValue;

use super::{
    ConfigError,
    table::{Entry, number, whole},
};
use crate::shed::{Backend, Front, MAX_SOFT, check_limits};

const KEYS: [&str; 22] = [
    "name",
    "listen",
    "backend",
    "soft",
    "hard",
    "fd_reserve",
    "backlog",
    "on_shed",
    "exempt",
    "per_ip",
    "per_ip_rate",
    "rate",
    "burst",
    "proxy_protocol_from",
    "first_byte_seconds",
    "idle_seconds",
    "write_stall_seconds",
    "lifetime_seconds",
    "connect_timeout_seconds",
    "drain_delay_seconds",
    "drain_seconds",
    "ipv6_prefix",
];

const RANGES: &str = "an array of IP ranges, such as [\"10.0.0.0/8\", \"2001:db8::/32\"]";
const RATE: &str = "connections per second, 1 to 1000000";
const ANSWER: &str = "\"rst\", \"fin\", \"http-503\", \"http-429\", or { bytes = \"TEXT\" }";

/// One table.
pub(super) fn front(entry: &Entry<'_>) -> Result<Front, ConfigError> {
    entry.refuse_unknown(&KEYS)?;
    let listen = entry.need("listen", "IP:PORT, such as [::]:8080", |value| {
        value.as_str()?.parse::<SocketAddr>().ok()
    })?;
    let backend = entry.need("backend", Backend::EXPECTED, |value| value.as_str()?.parse().ok())?;
    let soft = entry.need("soft", &format!("connections, 1 to {MAX_SOFT}"), |value| {
        ranged(value, 1, MAX_SOFT)
    })?;
    let mut front = Front::new(listen, backend, soft);
    front.name = entry
        .get("name", "text of 1 to 128 bytes", |value| {
            value.as_str().filter(|name| (1..=128).contains(&name.len())).map(str::to_owned)
        })?
        .unwrap_or(front.name);
    front.limits = Limits {
        hard: entry.get("hard", &format!("connections, 1 to {MAX_LIMIT}"), |value| {
            ranged(value, 1, MAX_LIMIT)
        })?,
        fd_reserve: entry
            .get("fd_reserve", "descriptors, 0 to 1000000", |value| ranged(value, 0, 1_000_000))?,
        ..front.limits
    };
    // as many descriptors as may be: those of this process are looked at when it starts
    check_limits(front.limits).map_err(|wrong| entry.refuse(wrong.key, &wrong.expected))?;
    front.backlog = entry.get("backlog", "connections, 1 to 65535", |value| {
        u16::try_from(ranged(value, 1, 65_535)?).ok()
    })?;
    if let Some(answer) = entry.get("on_shed", ANSWER, answer)? {
        front.on_shed = answer;
    }
    front.exempt = entry.get("exempt", RANGES, ranges)?.unwrap_or_default();
    front.rate = rate(entry)?;
    front.per_ip = per_ip(entry)?;
    front.proxy_protocol =
        entry.get("proxy_protocol_from", RANGES, ranges)?.map(ProxyProtocol::from);
    times(entry, &mut front)?;
    Ok(front)
}

fn rate(entry: &Entry<'_>) -> Result<Option<Rate>, ConfigError> {
    let rate = entry.get("rate", RATE, per_second)?;
    let burst = entry.get("burst", "connections, 1 to 1000000", per_second)?;
    match (rate, burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(entry.refuse("burst", "rate beside it")),
        (Some(rate), burst) => Ok(Some(Rate::per_second(rate).burst(burst.unwrap_or(rate)))),
    }
}

fn per_ip(entry: &Entry<'_>) -> Result<Option<PerIp>, ConfigError> {
    let expected = format!("connections, 1 to {MAX_LIMIT}");
    let connections = entry.get("per_ip", &expected, |value| ranged(value, 1, MAX_LIMIT))?;
    let rate = entry.get("per_ip_rate", RATE, per_second)?;
    let prefix = entry.get("ipv6_prefix", "bits, 48 to 128", |value| {
        u8::try_from(ranged(value, 48, 128)?).ok()
    })?;
    match (connections, rate, prefix) {
        (None, None, None) => Ok(None),
        (None, Some(_), _) => Err(entry.refuse("per_ip_rate", "per_ip beside it")),
        (None, None, Some(_)) => Err(entry.refuse("ipv6_prefix", "per_ip beside it")),
        (Some(connections), rate, prefix) => {
            let unsaid = PerIp::connections(connections);
            let ipv6_prefix = prefix.unwrap_or(unsaid.ipv6_prefix);
            Ok(Some(PerIp { rate: rate.map(Rate::per_second), ipv6_prefix, ..unsaid }))
        }
    }
}

fn times(entry: &Entry<'_>, front: &mut Front) -> Result<(), ConfigError> {
    const WEEK: f64 = 604_800.0;
    let seconds = |key, least: f64, most: f64| {
        let expected = format!("a number of seconds, {least} to {most}");
        entry.get(key, &expected, |value| {
            let seconds = number(value).filter(|seconds| (least..=most).contains(seconds))?;
            Duration::try_from_secs_f64(seconds).ok()
        })
    };
    front.deadlines.first_byte = seconds("first_byte_seconds", 0.1, WEEK)?;
    front.deadlines.idle = seconds("idle_seconds", 0.1, WEEK)?;
    front.deadlines.write_stall = seconds("write_stall_seconds", 0.1, WEEK)?;
    front.deadlines.lifetime = seconds("lifetime_seconds", 0.1, WEEK)?;
    if let Some(limit) = seconds("connect_timeout_seconds", 0.01, 60.0)? {
        front.connect_timeout = limit;
    }
    if let Some(delay) = seconds("drain_delay_seconds", 0.0, 3_600.0)? {
        front.drain_delay = delay;
    }
    if let Some(drain) = seconds("drain_seconds", 0.0, 3_600.0)? {
        front.drain = drain;
    }
    Ok(())
}

fn answer(value: &DeValue<'_>) -> Option<OnShed> {
    if let Some(text) = value.as_str() {
        return match text {
            "rst" => Some(OnShed::Rst),
            "fin" => Some(OnShed::Fin),
            "http-503" => Some(OnShed::http_503()),
            "http-429" => Some(OnShed::http_429()),
            _ => None,
        };
    }
    let table = value.as_table().filter(|table| table.len() == 1)?;
    let text = table.get("bytes")?.get_ref().as_str()?;
    (1..=4_096).contains(&text.len()).then(|| OnShed::bytes(text))
}

fn ranges(value: &DeValue<'_>) -> Option<Vec<Cidr>> {
    value.as_array()?.iter().map(|range| range.get_ref().as_str()?.parse().ok()).collect()
}

fn per_second(value: &DeValue<'_>) -> Option<u32> {
    u32::try_from(ranged(value, 1, 1_000_000)?).ok()
}

fn ranged(value: &DeValue<'_>, least: usize, most: usize) -> Option<usize> {
    usize::try_from(whole(value)?).ok().filter(|n| (least..=most).contains(n))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backlogd_shed::Deadlines;

    use super::*;
    use crate::config::{Loaded, file};

    const LEAST: &str =
        "[[shed]]\nlisten = \"127.0.0.1:80\"\nbackend = \"127.0.0.1:81\"\nsoft = 10\n";

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
        let deadlines = Deadlines {
            first_byte: Some(Duration::from_secs(3)),
            idle: Some(Duration::from_millis(1_500)),
            write_stall: Some(Duration::from_secs(30)),
            lifetime: Some(Duration::from_secs(604_800)),
            ..Deadlines::default()
        };
        check(
            "first_byte_seconds = 3\nidle_seconds = 1.5\nwrite_stall_seconds = 30\n\
             lifetime_seconds = 604800\nconnect_timeout_seconds = 0.5\ndrain_seconds = 0\n\
             drain_delay_seconds = 5",
            Front {
                deadlines,
                connect_timeout: Duration::from_millis(500),
                drain_delay: Duration::from_secs(5),
                drain: Duration::ZERO,
                ..least()
            },
        );
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_place() {
        refuses("name = \"\"", "5:8: shed.name: got \"\", expected text of 1 to 128 bytes");
        refuses(
            "hard = 11",
            "5:8: shed.hard: got 11, expected at least 12: 20 % above the soft limit, which is 10",
        );
        refuses(
            "hard = 2097152",
            "5:8: shed.hard: got 2097152, expected connections, 1 to 2097151",
        );
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
                &format!("5:11: shed.on_shed: got {got}, expected {ANSWER}"),
            );
        }
        for (key, column) in [("exempt", 10), ("proxy_protocol_from", 23)] {
            for (value, got) in
                [("\"10.0.0.0/8\"", "\"10.0.0.0/8\""), ("[\"10.0.0.0/33\"]", "an array")]
            {
                refuses(
                    &format!("{key} = {value}"),
                    &format!("5:{column}: shed.{key}: got {got}, expected {RANGES}"),
                );
            }
        }
        refuses("rate = 0", &format!("5:8: shed.rate: got 0, expected {RATE}"));
        refuses("burst = 5", "5:9: shed.burst: got 5, expected rate beside it");
        refuses("per_ip = 0", "5:10: shed.per_ip: got 0, expected connections, 1 to 2097151");
        refuses("per_ip_rate = 5", "5:15: shed.per_ip_rate: got 5, expected per_ip beside it");
        refuses("ipv6_prefix = 64", "5:15: shed.ipv6_prefix: got 64, expected per_ip beside it");
        refuses("ipv6_prefix = 32", "5:15: shed.ipv6_prefix: got 32, expected bits, 48 to 128");
        for (key, least, most) in [
            ("first_byte_seconds", "0.1", 604_800),
            ("idle_seconds", "0.1", 604_800),
            ("write_stall_seconds", "0.1", 604_800),
            ("lifetime_seconds", "0.1", 604_800),
            ("connect_timeout_seconds", "0.01", 60),
            ("drain_delay_seconds", "0", 3_600),
            ("drain_seconds", "0", 3_600),
        ] {
            for value in ["-1".to_owned(), "nan".to_owned(), (most + 1).to_string()] {
                let column = key.len() + 4;
                refuses(
                    &format!("{key} = {value}"),
                    &format!(
                        "5:{column}: shed.{key}: got {value}, \
                         expected a number of seconds, {least} to {most}"
                    ),
                );
            }
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
        refuses(
            &format!("{LEAST}{LEAST}"),
            "5:1: shed: got the listen of f.toml:1:1 again, expected each once",
        );
        let other = LEAST.replace(":80", ":79");
        refuses(
            &format!("{LEAST}name = \"a\"\n{other}name = \"a\""),
            "6:1: shed: got the name of f.toml:1:1 again, expected each once",
        );
        let many: String = (1..=65).map(|port| LEAST.replace(":80", &format!(":{port}"))).collect();
        refuses(&many, "257:1: shed: got one more, expected at most 64 of them");
    }
}
