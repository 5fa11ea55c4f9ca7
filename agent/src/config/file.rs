//! The TOML file: keys and values with their places.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use toml::{Spanned, de::DeTable};

use super::{
    ConfigError, Loaded, TABLES, detect,
    key::{KEYS, Raw},
    table::Text,
};

/// The most that is read; a path such as /dev/zero has no end.
const LARGEST: u64 = 1 << 20;

/// Reads a file as text.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let name = || path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigError::Read { path: name(), source })?;
    if LARGEST < bytes.len() as u64 {
        return Err(ConfigError::TooLarge { path: name(), limit: LARGEST });
    }
    String::from_utf8(bytes).map_err(|err| {
        let (valid, _) = err.as_bytes().split_at(err.utf8_error().valid_up_to());
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        ConfigError::Encoding { place: format!("{}:{line}", name()) }
    })
}

/// Sets what `text` says; `path` is for messages.
pub(super) fn apply(loaded: &mut Loaded, path: &Path, text: &str) -> Result<(), ConfigError> {
    let file = Text { path, text };
    let place = |offset: usize| file.place(offset);
    let syntax = |err: toml::de::Error| ConfigError::Syntax {
        place: place(err.span().map_or(text.len(), |span| span.start)),
        message: one_line(err.message()),
    };
    let table: BTreeMap<Spanned<String>, Spanned<toml::Value>> =
        toml::from_str(text).map_err(syntax)?;
    // the same with the places of what is within tables
    let inner = DeTable::parse(text).map_err(syntax)?;
    // In the order of the file, so that the first mistake is the one that is told.
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in entries {
        if let (true, Some(tables)) = (
            TABLES.contains(&name.get_ref().as_str()),
            inner.get_ref().get(name.get_ref().as_str()),
        ) {
            loaded.add(file, name.get_ref(), tables)?;
            continue;
        }
        let keyed = KEYS.iter().enumerate().find(|(_, key)| key.name == name.get_ref());
        let Some(keyed) = keyed else {
            return Err(ConfigError::UnknownKey {
                place: place(name.span().start),
                key: name.get_ref().clone(),
                expected: [&KEYS.map(|key| key.name)[..], &TABLES].concat().join(", "),
            });
        };
        let from = file.origin(name.span().start);
        loaded.set(keyed, Raw::Toml(value.get_ref()), from).map_err(|err| match err {
            ConfigError::Value { got, expected, .. } => {
                let place = format!("{}: {}", place(value.span().start), keyed.1.name);
                ConfigError::Value { place, got, expected }
            }
            other => other,
        })?;
    }
    detect::refuse_unexpected(&loaded.config.tuning)
}

/// The parser puts what it expected on a line of its own.
fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ")
}
