//! How the values of `[[shed]]` are read.

use std::{net::SocketAddr, time::Duration};

use backlogd_shed::{Cidr, CidrError, MAX_LIMIT, OnShed};
use toml::de::DeValue;

use super::key::KEYS;
use crate::config::{
    ConfigError,
    table::{Entry, number, whole},
};

/// The longest time of a deadline.
const WEEK: f64 = 604_800.0;

/// A table, whose keys are those of [`KEYS`]; what they take is in their errors.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a>(pub(super) &'a Entry<'a>);

impl Keys<'_> {
    /// What `key` takes, for people.
    pub(super) fn takes(key: &str) -> &'static str {
        KEYS.iter().find(|it| it.name == key).expect("all that is read is among them").takes
    }

    pub(super) fn get<T>(
        self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.0.get(key, Self::takes(key), read)
    }

    pub(super) fn need<T>(
        self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.0.need(key, Self::takes(key), read)
    }

    /// A number of connections.
    pub(super) fn limit(self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.get(key, |value| ranged(value, 1, MAX_LIMIT))
    }

    /// An array of IP ranges.
    pub(super) fn ranges(self, key: &str) -> Result<Option<Vec<Cidr>>, ConfigError> {
        self.0.each(key, Self::takes(key), range)
    }

    pub(super) fn seconds(
        self,
        key: &str,
        least: f64,
        most: f64,
        unsaid: Duration,
    ) -> Result<Duration, ConfigError> {
        Ok(self.get(key, |value| seconds(value, least, most))?.unwrap_or(unsaid))
    }

    /// A time of at least 0.1 s and at most a week, where 0 is none.
    pub(super) fn deadline(
        self,
        key: &str,
        unsaid: Option<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        self.or_never(key, WEEK, unsaid)
    }

    /// A time of at least 0.1 s, where 0 is none.
    pub(super) fn or_never(
        self,
        key: &str,
        most: f64,
        unsaid: Option<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        let read = |value: &DeValue<'_>| match number(value) {
            Some(0.0) => Some(None),
            _ => seconds(value, 0.1, most).map(Some),
        };
        Ok(self.get(key, read)?.unwrap_or(unsaid))
    }

    /// `key` by `read`; without it, there may be none of `rest`.
    pub(super) fn with<T>(
        self,
        key: &str,
        rest: &[&str],
        read: impl FnOnce(Self, &str) -> Result<Option<T>, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        match (read(self, key)?, rest.iter().find(|rest| self.0.place_of(rest).is_some())) {
            (None, Some(rest)) => Err(self.alone(rest, key)),
            (read, _) => Ok(read),
        }
    }

    /// That `key` means nothing without `other`.
    pub(super) fn alone(self, key: &str, other: &str) -> ConfigError {
        self.0.refuse(key, &format!("{other} beside it"))
    }
}

pub(super) fn address(value: &DeValue<'_>) -> Option<SocketAddr> {
    value.as_str()?.parse().ok()
}

pub(super) fn answer(value: &DeValue<'_>) -> Option<OnShed> {
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

fn range(value: &DeValue<'_>) -> Result<Cidr, String> {
    const EXPECTED: &str = "an IP range, such as \"10.0.0.0/8\"";
    value.as_str().ok_or(EXPECTED)?.parse().map_err(|err| match err {
        CidrError::Prefix { most, .. } => format!("a prefix of 0 to {most} bits"),
        CidrError::Bits { prefix, first, .. } => format!("\"{first}/{prefix}\", or one address"),
        _ => EXPECTED.to_owned(),
    })
}

pub(super) fn one_of<T, const N: usize>(value: &DeValue<'_>, words: [(&str, T); N]) -> Option<T> {
    let text = value.as_str()?;
    words.into_iter().find(|(word, _)| *word == text).map(|(_, it)| it)
}

pub(super) fn truth(value: &DeValue<'_>) -> Option<bool> {
    value.as_bool()
}

/// Of an IPv6 network.
pub(super) fn bits(value: &DeValue<'_>) -> Option<u8> {
    small(value, 48, 128)
}

/// A number of a type that holds all from `least` to `most`.
pub(super) fn small<T: TryFrom<i64> + PartialOrd>(
    value: &DeValue<'_>,
    least: T,
    most: T,
) -> Option<T> {
    T::try_from(whole(value)?).ok().filter(|n| (least..=most).contains(n))
}

pub(super) fn ranged(value: &DeValue<'_>, least: usize, most: usize) -> Option<usize> {
    small(value, least, most)
}

fn seconds(value: &DeValue<'_>, least: f64, most: f64) -> Option<Duration> {
    let seconds = number(value).filter(|seconds| (least..=most).contains(seconds))?;
    Duration::try_from_secs_f64(seconds).ok()
}
