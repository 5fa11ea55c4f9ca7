//! `[[alertmanager]]` and `[[webhook]]`: who is told of alerts.

use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeValue;

use super::{
    ConfigError,
    table::{Entry, number},
};
use crate::outlet::{Auth, Form, Outlet, Url, files};

const KEYS: [&str; 8] = [
    "url",
    "ca_file",
    "bearer_token_file",
    "username",
    "password_file",
    "timeout_seconds",
    "resend_seconds",
    "labels",
];
/// Labels that are the alert's own.
const OWN: [&str; 11] = [
    "alertname",
    "severity",
    "netns",
    "addr",
    "port",
    "comm",
    "namespace",
    "pod",
    "container",
    "dst",
    "dst_port",
];

const FILE: &str = "an absolute path of at most 4095 bytes";
const TIMEOUT: RangeInclusive<f64> = 0.1..=60.0;
const RESEND: RangeInclusive<f64> = 1.0..=3600.0;

/// One table.
pub(super) fn outlet(form: Form, entry: &Entry<'_>) -> Result<Outlet, ConfigError> {
    entry.refuse_unknown(&KEYS)?;
    let url = entry.need("url", Url::EXPECTED, |value| Url::parse(value.as_str()?))?;
    let seconds = |key, range: RangeInclusive<f64>, default| {
        let expected = format!("a number of seconds, {} to {}", range.start(), range.end());
        let read = |value: &DeValue<'_>| {
            let seconds = number(value).filter(|seconds| range.contains(seconds))?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        Ok(entry.get(key, &expected, read)?.unwrap_or(Duration::from_secs(default)))
    };
    Ok(Outlet {
        form,
        url,
        ca_file: entry.get("ca_file", FILE, path)?,
        auth: auth(entry)?,
        timeout: seconds("timeout_seconds", TIMEOUT, 10)?,
        resend: seconds("resend_seconds", RESEND, 60)?,
        labels: entry.inner("labels")?.map_or(Ok(Vec::new()), |labels| self::labels(&labels))?,
    })
}

/// A file that a table names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NamedFile {
    /// File, line, column and key of what names it.
    place: String,
    path: PathBuf,
    /// Of [`FILES`].
    kind: usize,
}

/// How a file is looked at.
type Read = fn(&Path) -> io::Result<()>;

/// The keys of files, what these hold, and what reads them.
const FILES: [(&str, &str, Read); 3] = [
    ("ca_file", "a file of PEM certificates", |path| files::roots(path).map(drop)),
    ("bearer_token_file", "a file with a token", |path| files::token(path).map(drop)),
    ("password_file", "a file with a password", |path| files::secret(path).map(drop)),
];

impl NamedFile {
    /// Whether it can be read and holds what it should.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let (_, expected, read) = FILES[self.kind];
        read(&self.path).map_err(|source| ConfigError::File {
            place: self.place.clone(),
            path: self.path.clone(),
            expected,
            source,
        })
    }
}

/// The files that a table names, once its values are checked.
pub(super) fn files(entry: &Entry<'_>) -> Result<Vec<NamedFile>, ConfigError> {
    let named = (0..).zip(FILES).filter_map(|(kind, (key, ..))| {
        let path = entry.get(key, FILE, path).transpose()?;
        let place = entry.place_of(key)?;
        Some(path.map(|path| NamedFile { place, path, kind }))
    });
    named.collect()
}

fn auth(entry: &Entry<'_>) -> Result<Auth, ConfigError> {
    let bearer = entry.get("bearer_token_file", FILE, path)?;
    let username = entry.get("username", "a name that is not empty and has no colon", |value| {
        value.as_str().filter(|name| !name.is_empty() && !name.contains(':')).map(str::to_owned)
    })?;
    let password_file = entry.get("password_file", FILE, path)?;
    match (bearer, username, password_file) {
        (None, None, None) => Ok(Auth::None),
        (Some(file), None, None) => Ok(Auth::Bearer(file)),
        (None, Some(username), Some(password_file)) => Ok(Auth::Basic { username, password_file }),
        (None, Some(_), None) => Err(entry.wrong("username alone", "password_file beside it")),
        (None, None, Some(_)) => Err(entry.wrong("password_file alone", "username beside it")),
        (Some(_), _, _) => {
            let expected = "either bearer_token_file, or username and password_file";
            Err(entry.wrong("two ways to say who we are", expected))
        }
    }
}

fn labels(entry: &Entry<'_>) -> Result<Vec<(String, String)>, ConfigError> {
    let label = |key: &str| {
        if !is_label(key) || OWN.contains(&key) {
            let expected =
                format!("a name of letters, digits and _, and none of {}", OWN.join(", "));
            return Err(entry.wrong(&format!("the label {key:?}"), &expected));
        }
        let text = |value: &DeValue<'_>| {
            value.as_str().filter(|text| !text.is_empty() && text.len() <= 1024).map(str::to_owned)
        };
        let value = entry.need(key, "text of 1 to 1024 bytes", text)?;
        Ok((key.to_owned(), value))
    };
    if 32 < entry.keys().len() {
        return Err(entry.wrong(&format!("{} labels", entry.keys().len()), "at most 32"));
    }
    entry.keys().into_iter().map(label).collect()
}

/// As Prometheus has it; names that begin with two underscores are its own.
fn is_label(name: &str) -> bool {
    let is_inner = |c: char| c == '_' || c.is_ascii_alphanumeric();
    name.starts_with(|c: char| is_inner(c) && !c.is_ascii_digit())
        && name.chars().all(is_inner)
        && !name.starts_with("__")
        && name.len() <= 128
}

fn path(value: &DeValue<'_>) -> Option<PathBuf> {
    let is_path = |path: &&str| path.starts_with('/') && path.len() <= 4095 && !path.contains('\0');
    value.as_str().filter(is_path).map(PathBuf::from)
}
