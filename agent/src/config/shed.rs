//! `[[shed]]`: listeners of this process that shed, and their backends.

mod key;
mod read;
#[cfg(test)]
mod tests;

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use backlogd_shed::{
    Deadlines, Limits, Linger, MinRate, OnShed, PerIp, ProxyProtocol, Rate, Reason, WhenFull,
    adaptive::Adaptive,
    health::{FailAt, HealthConfig},
};

use self::{
    key::KEYS,
    read::{Keys, address, answer, bits, one_of, ranged, small, truth},
};
use super::{ConfigError, table::Entry};
use crate::shed::{
    Accept, Backend, Front, Health, MAX_SOFT, SCRAPES, check_backend, check_limits, elsewhere,
    leads_back,
};

/// What a connection moves is averaged over so long.
const RATE_OVER: Duration = Duration::from_secs(10);

/// For which a front sheds, but for the want of descriptors, where a reset is all there is.
const REASONS: [Reason; 11] = [
    Reason::Soft,
    Reason::Hard,
    Reason::PerIp,
    Reason::PerIpFull,
    Reason::Rate,
    Reason::Stale,
    Reason::Codel,
    Reason::Draining,
    Reason::Handoff,
    Reason::ProxyHeader,
    Reason::BackendDown,
];

/// One table.
pub(super) fn front(entry: &Entry<'_>) -> Result<Front, ConfigError> {
    entry.refuse_unknown(&KEYS.map(|key| key.name))?;
    let keys = Keys(entry);
    let listen = keys.need("listen", address)?;
    let backend: Backend = keys.need("backend", |value| value.as_str()?.parse().ok())?;
    check_backend(listen, &backend).map_err(|wrong| entry.refuse(wrong.key, &wrong.expected))?;
    let soft = keys.need("soft", |value| ranged(value, 1, MAX_SOFT))?;
    let least = Front::new(listen, backend, soft);
    let limits = limits(keys, least.limits)?;
    Ok(Front {
        name: name(keys)?.unwrap_or(least.name),
        listen,
        backend: least.backend,
        limits,
        backlog: keys.get("backlog", |value| small(value, 1, u16::MAX))?,
        accept: accept(keys)?,
        give_up_after: keys.deadline("give_up_after_seconds", None)?,
        queue_max_wait: keys.seconds(
            "queue_max_wait_seconds",
            0.01,
            3_600.0,
            least.queue_max_wait,
        )?,
        on_shed: keys.get("on_shed", answer)?.unwrap_or(least.on_shed),
        on_shed_for: answers(keys)?,
        linger: linger(keys)?,
        exempt: keys.ranges("exempt")?.unwrap_or_default(),
        per_ip: per_ip(keys)?,
        rate: rate(keys, "rate", "burst")?,
        proxy_protocol: proxy_protocol(keys)?,
        adaptive: adaptive(keys)?,
        deadlines: deadlines(keys, least.deadlines)?,
        half_close: keys.deadline("half_close_seconds", least.half_close)?,
        connect_timeout: keys.seconds(
            "connect_timeout_seconds",
            0.01,
            60.0,
            least.connect_timeout,
        )?,
        health: health(keys)?,
        drain_delay: keys.seconds("drain_delay_seconds", 0.0, 3_600.0, least.drain_delay)?,
        drain: keys.seconds("drain_seconds", 0.0, 3_600.0, least.drain)?,
    })
}

/// Where it listens, and by which keys.
pub(super) fn addresses(front: &Front) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    let checks = front.health.as_ref().map(|health| ("health_listen", health.listen));
    [("listen", front.listen)].into_iter().chain(checks)
}

/// Refuses listeners whose connections come back to them through each other, since one would fill them
/// all; `fronts` are those of `entries`.
pub(super) fn refuse_circles(fronts: &[Front], entries: &[Entry<'_>]) -> Result<(), ConfigError> {
    let Some(way) = leads_back(fronts) else { return Ok(()) };
    let (first, others) = way.split_first().expect("a way begins at the first");
    let named = |&it: &usize| format!("{} ({})", fronts[it].name, entries[it].place());
    let others: Vec<_> = others.iter().map(named).collect();
    let expected = elsewhere(fronts[*first].listen, &others);
    Err(entries[*first].refuse("backend", &expected))
}

/// By it, the next generation of the program finds its socket, and its place among the limits.
fn name(keys: Keys<'_>) -> Result<Option<String>, ConfigError> {
    // no variable of an environment can have a zero in it, and lines of logs have one line
    let is_name =
        |name: &&str| (1..=128).contains(&name.len()) && !name.chars().any(char::is_control);
    let name = keys.get("name", |value| value.as_str().filter(is_name).map(str::to_owned))?;
    if name.as_ref().is_some_and(|name| SCRAPES.contains(&&**name)) {
        let taken = SCRAPES.join(" and ");
        let expected =
            format!("another one than {taken}, by which the socket for scrapes is inherited");
        return Err(keys.0.refuse("name", &expected));
    }
    Ok(name)
}

fn limits(keys: Keys<'_>, least: Limits) -> Result<Limits, ConfigError> {
    let limits = Limits {
        hard: keys.limit("hard")?,
        fd_reserve: keys.get("fd_reserve", |value| ranged(value, 0, 1_000_000))?,
        ..least
    };
    // as many descriptors as may be: those of this process are looked at when it starts
    check_limits(limits).map_err(|wrong| keys.0.refuse(wrong.key, &wrong.expected))?;
    Ok(limits)
}

fn accept(keys: Keys<'_>) -> Result<Accept, ConfigError> {
    let sockets = keys.get("accept_sockets", |value| match value.as_str() {
        Some("cores") => Some(Accept::Cores),
        _ => ranged(value, 1, 1_024).map(Accept::Sockets),
    })?;
    match (keys.get("accept_thread", truth)?, sockets) {
        (Some(true), None | Some(Accept::Sockets(1))) => Ok(Accept::Thread),
        (Some(true), Some(_)) => Err(keys.0.refuse("accept_sockets", "1, beside accept_thread")),
        (Some(false) | None, sockets) => Ok(sockets.unwrap_or(Accept::Sockets(1))),
    }
}

fn answers(keys: Keys<'_>) -> Result<Vec<(Reason, OnShed)>, ConfigError> {
    let Some(entry) = keys.0.inner("on_shed_for")? else { return Ok(Vec::new()) };
    entry.refuse_unknown(&REASONS.map(Reason::as_str))?;
    let of = |reason: Reason| {
        let answer = entry.get(reason.as_str(), Keys::takes("on_shed"), answer);
        answer.map(|answer| Some((reason, answer?))).transpose()
    };
    REASONS.into_iter().filter_map(of).collect()
}

fn linger(keys: Keys<'_>) -> Result<Linger, ConfigError> {
    let unsaid = Linger::default();
    Ok(Linger {
        max: keys.limit("linger_max")?,
        time: keys.seconds("linger_seconds", 0.001, 60.0, unsaid.time)?,
        bytes: keys.get("linger_bytes", |value| ranged(value, 0, 1 << 30))?.unwrap_or(unsaid.bytes),
    })
}

fn rate(keys: Keys<'_>, rate: &str, burst: &str) -> Result<Option<Rate>, ConfigError> {
    let at_once = keys.get(burst, |value| small(value, 1, 1_000_000))?;
    match (keys.get(rate, |value| small(value, 1, 1_000_000))?, at_once) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(keys.alone(burst, rate)),
        (Some(rate), burst) => Ok(Some(Rate::per_second(rate).burst(burst.unwrap_or(rate)))),
    }
}

fn per_ip(keys: Keys<'_>) -> Result<Option<PerIp>, ConfigError> {
    const REST: [&str; 5] =
        ["per_ip_rate", "per_ip_burst", "per_ip_capacity", "per_ip_when_full", "ipv6_prefix"];
    let unsaid = PerIp::connections(1);
    let capacity = keys.get("per_ip_capacity", |value| ranged(value, 64, 1 << 20))?;
    let when_full = keys.get("per_ip_when_full", |value| {
        one_of(value, [("admit", WhenFull::Admit), ("shed", WhenFull::Shed)])
    })?;
    let per_ip = PerIp {
        connections: 0,
        rate: rate(keys, "per_ip_rate", "per_ip_burst")?,
        ipv6_prefix: keys.get("ipv6_prefix", bits)?.unwrap_or(unsaid.ipv6_prefix),
        capacity: capacity.unwrap_or(unsaid.capacity),
        when_full: when_full.unwrap_or(unsaid.when_full),
    };
    let connections = keys.with("per_ip", &REST, Keys::limit)?;
    Ok(connections.map(|connections| PerIp { connections, ..per_ip }))
}

fn proxy_protocol(keys: Keys<'_>) -> Result<Option<ProxyProtocol>, ConfigError> {
    const REST: [&str; 2] = ["proxy_protocol_seconds", "proxy_protocol_max"];
    let unsaid = ProxyProtocol::from([]);
    let deadline = keys.seconds(REST[0], 0.001, 60.0, unsaid.deadline)?;
    let max = keys.get(REST[1], |value| ranged(value, 1, 65_536))?.unwrap_or(unsaid.max);
    let from = keys.with("proxy_protocol_from", &REST, Keys::ranges)?;
    Ok(from.map(|from| ProxyProtocol { from, deadline, max }))
}

fn adaptive(keys: Keys<'_>) -> Result<Option<Adaptive>, ConfigError> {
    const REST: [&str; 2] = ["adaptive_target_seconds", "adaptive_interval_seconds"];
    let (target, interval) = (
        keys.seconds(REST[0], 0.001, 1.0, Duration::from_millis(20))?,
        keys.seconds(REST[1], 0.01, 10.0, Duration::from_millis(100))?,
    );
    if keys.with("adaptive", &REST, codel)?.is_none() {
        return Ok(None);
    }
    if interval < target {
        let said = REST.into_iter().rev().find(|key| keys.0.place_of(key).is_some());
        let expected = "an interval that is at least the target";
        return Err(keys.0.refuse(said.unwrap_or(REST[1]), expected));
    }
    Ok(Some(Adaptive::Codel { target, interval }))
}

/// Whether it is on.
fn codel(keys: Keys<'_>, key: &str) -> Result<Option<()>, ConfigError> {
    let expected = "\"off\" or \"codel\": a gradient follows how long requests take, of which a \
                    relay of bytes sees nothing";
    let word = keys.0.get(key, Keys::takes(key), |value| value.as_str().map(str::to_owned))?;
    match word.as_deref() {
        None | Some("off") => Ok(None),
        Some("codel") => Ok(Some(())),
        Some("gradient") => Err(keys.0.refuse(key, expected)),
        Some(_) => Err(keys.0.refuse(key, Keys::takes(key))),
    }
}

fn deadlines(keys: Keys<'_>, least: Deadlines) -> Result<Deadlines, ConfigError> {
    let rate = keys.get("min_rate", |value| small(value, 0, 1_000_000_000))?.unwrap_or(0);
    let rate = MinRate { bytes_per_second: rate, over: RATE_OVER };
    Ok(Deadlines {
        first_byte: keys.deadline("first_byte_seconds", least.first_byte)?,
        idle: keys.deadline("idle_seconds", least.idle)?,
        write_stall: keys.deadline("write_stall_seconds", least.write_stall)?,
        lifetime: keys.deadline("lifetime_seconds", least.lifetime)?,
        min_rate: Some(rate).filter(|rate| rate.bytes_per_second != 0),
        ..least
    })
}

fn health(keys: Keys<'_>) -> Result<Option<Health>, ConfigError> {
    const REST: [&str; 4] = [
        "health_fail_at",
        "health_fail_after_seconds",
        "health_recover_after_seconds",
        "health_probe_seconds",
    ];
    let unsaid = HealthConfig::default();
    let fail_at = keys.get(REST[0], |value| {
        let words = [("never", FailAt::Never), ("soft", FailAt::Soft), ("hard", FailAt::Hard)];
        one_of(value, words)
    })?;
    let config = HealthConfig {
        fail_at: fail_at.unwrap_or(unsaid.fail_at),
        fail_after: keys.seconds(REST[1], 0.0, 3_600.0, unsaid.fail_after)?,
        recover_after: keys.seconds(REST[2], 0.0, 3_600.0, unsaid.recover_after)?,
        probe: keys.or_never(REST[3], 4.0, unsaid.probe)?,
    };
    let listen = keys.with("health_listen", &REST, |keys, key| keys.get(key, address))?;
    Ok(listen.map(|listen| Health { listen, config }))
}

/// What the example file has of them: each key with its help, range and default.
pub(super) fn example(wrapped: fn(&str) -> String) -> String {
    let mut text = String::from("#[[shed]]\n");
    for key in &KEYS {
        let unsaid = match key.unsaid {
            "" => "it must be there".to_owned(),
            unsaid => format!("without it: {unsaid}"),
        };
        text.push_str(&wrapped(&format!("{}. Takes {}; {unsaid}.", key.help, key.takes)));
        // writing to a String cannot fail
        let _ = writeln!(text, "#{} = {}", key.name, key.example);
    }
    text
}
