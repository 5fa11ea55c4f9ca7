//! `[[shed]]`: listeners of this process that shed, and their backends.

use std::{net::SocketAddr, time::Duration};

use backlogd_shed::{Cidr, Limits, MAX_LIMIT, OnShed, PerIp, ProxyProtocol, Rate};
use toml::de::DeValue;

use super::{
    ConfigError,
    table::{Entry, number, whole},
};
use crate::shed::{Backend, Front, MAX_SOFT, check_limits};

const KEYS: [&str; 21] = [
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
