//! `[[detect]]`, which tunes or silences detections, and `[[expect]]`, listeners that must be there.

use std::{net::IpAddr, ops::RangeInclusive};

use toml::de::DeValue;

use super::{
    ConfigError,
    table::{self, number, whole},
};
use crate::{
    detect::{
        self,
        rule::About,
        tuning::{Entry, Expected, Match, Pattern},
    },
    id::NetnsId,
    time::Nanos,
};

/// What can be set of every detection.
const ALWAYS: [&str; 5] = ["alert", "match", "silence", "raise_for_seconds", "clear_for_seconds"];
/// What subjects are matched by.
const MATCH: [&str; 8] = ["addr", "port", "netns", "comm", "namespace", "pod", "container", "unit"];
/// The keys of `[[expect]]`.
const EXPECT: [&str; 4] = ["addr", "port", "namespace", "within_seconds"];

const ADDRESS: &str = "an IP address such as 0.0.0.0";
const PATTERN: &str = "text that is not empty, in which * stands for any text";
const PORT: &str = "a port, 1 to 65535";
const PORTS: &str = "a port, 1 to 65535, or a range of them such as \"8000-8099\"";
const NETNS: &str = "the inode number of a network namespace such as 4026531840";
const LASTS: &str = "a number of seconds, 0 to 604800";
const LIMIT: &str = "a number of at least 0";
/// How long a listener may be missing unless something else is configured.
const WITHIN: Nanos = Nanos(60_000_000_000);

/// One `[[detect]]`.
pub(super) fn detect(entry: &table::Entry<'_>) -> Result<Entry, ConfigError> {
    let all = detect::all();
    let names: Vec<&str> = all.iter().map(|about| about.name).collect();
    let expected = format!("one of {}", names.join(", "));
    let about = entry.get("alert", &expected, |value| {
        let name = value.as_str()?;
        all.iter().copied().find(|about| about.name == name)
    })?;
    let thresholds = about.map_or(&[][..], |about| about.thresholds);
    let known: Vec<&str> = ALWAYS.into_iter().chain(thresholds.iter().map(|it| it.name)).collect();
    if let Some(known_elsewhere) = elsewhere(entry, about, &known, &all) {
        return Err(known_elsewhere);
    }
    entry.refuse_unknown(&known)?;
    let values = thresholds.iter().filter_map(|threshold| {
        let limit = |value: &DeValue<'_>| number(value).filter(|&n| n.is_finite() && 0.0 <= n);
        let value = entry.get(threshold.name, LIMIT, limit).transpose()?;
        Some(value.map(|value| (threshold.name, value)))
    });
    let found = Entry {
        alert: about.map(|about| about.name),
        only: entry.inner("match")?.map_or(Ok(Match::default()), |inner| only(&inner))?,
        silence: entry.get("silence", "true or false", switch)?,
        raise_for: entry.get("raise_for_seconds", LASTS, |value| seconds(value, 604_800.0))?,
        clear_for: entry.get("clear_for_seconds", LASTS, |value| seconds(value, 604_800.0))?,
        thresholds: values.collect::<Result<_, _>>()?,
        place: entry.origin().to_string(),
    };
    let sets = [found.silence.is_some(), found.raise_for.is_some(), found.clear_for.is_some()];
    if found.thresholds.is_empty() && !sets.contains(&true) {
        let expected = known[2..].join(", ");
        return Err(entry.wrong("a table that changes nothing", &format!("one of {expected}")));
    }
    Ok(found)
}

/// That a threshold is there which belongs to other detections.
fn elsewhere(
    entry: &table::Entry<'_>,
    about: Option<&About>,
    known: &[&str],
    all: &[&About],
) -> Option<ConfigError> {
    let has = |about: &&&About, key: &str| about.thresholds.iter().any(|it| it.name == key);
    let is_other = |key: &&str| !known.contains(key) && all.iter().any(|about| has(&about, key));
    let key = entry.keys().into_iter().find(is_other)?;
    let owners: Vec<&str> =
        all.iter().filter(|about| has(about, key)).map(|about| about.name).collect();
    let expected = match about {
        None => format!("alert = \"{}\" beside it", owners.join("\" or \"")),
        Some(about) => format!("of {} one of {}", about.name, known[1..].join(", ")),
    };
    entry.get(key, &expected, |_| None::<()>).err().map(|err| match err {
        ConfigError::Value { place, expected, .. } => {
            let got = format!("a threshold of {}", owners.join(", "));
            ConfigError::Value { place, got, expected }
        }
        other => other,
    })
}

/// Which subjects it is for.
fn only(entry: &table::Entry<'_>) -> Result<Match, ConfigError> {
    entry.refuse_unknown(&MATCH)?;
    let like = |key| entry.get(key, PATTERN, pattern);
    let netns = |value: &DeValue<'_>| u32::try_from(whole(value)?).ok().map(NetnsId);
    Ok(Match {
        addr: entry.get("addr", ADDRESS, address)?,
        port: entry.get("port", PORTS, ports)?,
        netns: entry.get("netns", NETNS, netns)?,
        comm: like("comm")?,
        namespace: like("namespace")?,
        pod: like("pod")?,
        container: like("container")?,
        unit: like("unit")?,
    })
}

/// One `[[expect]]`.
pub(super) fn expect(entry: &table::Entry<'_>) -> Result<Expected, ConfigError> {
    entry.refuse_unknown(&EXPECT)?;
    let within = |value: &DeValue<'_>| seconds(value, 86_400.0);
    Ok(Expected {
        addr: entry.get("addr", ADDRESS, address)?,
        port: entry.need("port", PORT, port)?,
        namespace: entry.get("namespace", PATTERN, pattern)?,
        within: entry
            .get("within_seconds", "a number of seconds, 0 to 86400", within)?
            .unwrap_or(WITHIN),
    })
}

fn address(value: &DeValue<'_>) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn pattern(value: &DeValue<'_>) -> Option<Pattern> {
    value.as_str().filter(|text| !text.is_empty()).map(|text| Pattern(text.into()))
}

fn port(value: &DeValue<'_>) -> Option<u16> {
    u16::try_from(whole(value)?).ok().filter(|&port| port != 0)
}

fn ports(value: &DeValue<'_>) -> Option<RangeInclusive<u16>> {
    if let Some(port) = port(value) {
        return Some(port..=port);
    }
    let (first, last) = value.as_str()?.split_once('-')?;
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port != 0);
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

fn switch(value: &DeValue<'_>) -> Option<bool> {
    value.as_bool()
}

fn seconds(value: &DeValue<'_>, most: f64) -> Option<Nanos> {
    Nanos::from_seconds(number(value).filter(|seconds| *seconds <= most)?)
}
