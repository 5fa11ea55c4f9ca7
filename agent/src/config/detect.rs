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
        expected::is_matched,
        rule::{About, Range},
        subject::SubjectKind,
        tuning::{Contradiction, Entry, Expected, Match, Pattern, Tuning},
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
/// How long a listener may be missing unless something else is configured.
const WITHIN: Nanos = Nanos(60_000_000_000);

/// One `[[detect]]`.
pub(super) fn detect(entry: &table::Entry<'_>) -> Result<Entry, ConfigError> {
    let kinds = detect::kinds();
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
        let range = threshold.range;
        let limit = |value: &DeValue<'_>| number(value).filter(|&n| range.takes(n));
        let expected = format!("a number, {range}");
        let value = entry.get(threshold.name, &expected, limit).transpose()?;
        Some(value.map(|value| (threshold.name, value)))
    });
    let matching = entry.inner("match")?;
    let only = matching.as_ref().map_or(Ok(Match::default()), only)?;
    if let (Some(about), Some(matching)) = (about, &matching) {
        let kind = kinds.iter().find(|(_, abouts)| abouts.contains(&about));
        refuse_unmatchable(matching, about, kind.map(|(kind, _)| *kind))?;
    }
    let found = Entry {
        alert: about.map(|about| about.name),
        only,
        silence: entry.get("silence", "true or false", switch)?,
        raise_for: entry.get("raise_for_seconds", LASTS, |value| seconds(value, 604_800.0))?,
        clear_for: entry.get("clear_for_seconds", LASTS, |value| seconds(value, 604_800.0))?,
        thresholds: values.collect::<Result<_, _>>()?,
        place: format!(
            "{}: [[detect]]{}{}",
            entry.origin(),
            entry.written("", |key| key == "alert"),
            matching.map_or_else(String::new, |it| it.written("match.", |_| true)),
        ),
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
    let got = format!("a threshold of {}", owners.join(", "));
    Some(ConfigError::Value { place: entry.place_of(key)?, got, expected })
}

/// Refuses what no subject of the detection can be matched by.
fn refuse_unmatchable(
    entry: &table::Entry<'_>,
    about: &About,
    kind: Option<SubjectKind>,
) -> Result<(), ConfigError> {
    let known = kind.map_or(&MATCH[..], SubjectKind::matched_by);
    let Some(key) = entry.keys().into_iter().find(|key| !known.contains(key)) else {
        return Ok(());
    };
    let expected = match known {
        [] => format!("no match: there is one subject of {}", about.name),
        known => format!("of {} a match by {}", about.name, known.join(", ")),
    };
    Err(entry.refuse(key, &expected))
}

/// Refuses entries that contradict each other, or that none of the listeners of `[[expect]]` is for.
/// `tables` are those of `tuning.entries`.
pub(super) fn refuse_contradictions(
    tuning: &Tuning,
    tables: &[table::Entry<'_>],
) -> Result<(), ConfigError> {
    let Some(found) = tuning.contradiction(&detect::all()) else { return Ok(()) };
    let Contradiction { entry, key, other, value, by, range } = found;
    let is_lower = match range {
        Range::Of(..) | Range::Below(_) => "less than",
        Range::From(..) => "at least",
        Range::UpTo(_) => "at most",
    };
    let side = match (range.partner() == Some(other), is_lower) {
        (true, side) => side,
        (false, "less than") => "more than",
        (false, "at least") => "at most",
        (false, _) => "at least",
    };
    let whence = match by {
        None => " by default".to_owned(),
        Some(by) if by == entry => String::new(),
        Some(by) => format!(" by {}", tables[by].place()),
    };
    Err(tables[entry].refuse(key, &format!("{side} {other}, which is {value}{whence}")))
}

/// Refuses what is for listeners of `[[expect]]` and takes none of them.
pub(super) fn refuse_unexpected(tuning: &Tuning) -> Result<(), ConfigError> {
    let kinds = detect::kinds();
    let is_ours = |entry: &&Entry| {
        kinds.iter().any(|(kind, abouts)| {
            *kind == SubjectKind::Expected && abouts.iter().any(|it| Some(it.name) == entry.alert)
        })
    };
    let takes_none = |entry: &&Entry| {
        entry.only != Match::default()
            && !tuning.expected.iter().any(|expected| is_matched(&entry.only, expected))
    };
    tuning.entries.iter().filter(is_ours).find(takes_none).map_or(Ok(()), |entry| {
        Err(ConfigError::Value {
            place: entry.place.clone(),
            got: "a match that takes no [[expect]]".to_owned(),
            expected: "one that does".to_owned(),
        })
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
        look: None,
        place: format!(
            "{}: [[expect]]{}",
            entry.origin(),
            entry.written("", |key| key != "within_seconds")
        ),
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
    let text = value.as_str()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
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
