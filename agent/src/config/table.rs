//! Arrays of tables of the file: one `[[name]]` with the places of its keys and values.

use std::path::Path;

use serde_json::{Map, Number, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Origin};

/// A file that is being read.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Text<'_> {
    /// File, line and column of a byte, for messages.
    pub(super) fn place(self, offset: usize) -> String {
        let (line, column) = self.position(offset);
        format!("{}:{line}:{column}", self.path.display())
    }

    /// File and line of a byte.
    pub(super) fn origin(self, offset: usize) -> Origin {
        Origin::File { path: self.path.into(), line: self.position(offset).0 }
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    fn position(self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (1 + before.matches('\n').count(), 1 + before[start..].chars().count())
    }
}

/// One table: an element of an array of tables, or one within such an element.
pub(super) struct Entry<'a> {
    pub(super) file: Text<'a>,
    /// `detect`, `detect.match`.
    name: String,
    table: &'a DeTable<'a>,
    /// Where it begins.
    start: usize,
}

impl<'a> Entry<'a> {
    /// The elements of the array of tables `name`, in the order of the file.
    pub(super) fn all(
        file: Text<'a>,
        name: &str,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Result<Vec<Self>, ConfigError> {
        let wrong = |value: &Spanned<DeValue<'_>>| ConfigError::Value {
            place: format!("{}: {name}", file.place(value.span().start)),
            got: quoted(value.get_ref()),
            expected: format!("tables that begin with [[{name}]]"),
        };
        let array = value.get_ref().as_array().ok_or_else(|| wrong(value))?;
        let entry = |value: &'a Spanned<DeValue<'a>>| match value.get_ref().as_table() {
            Some(table) => {
                Ok(Self { file, name: name.to_owned(), table, start: value.span().start })
            }
            None => Err(wrong(value)),
        };
        array.iter().map(entry).collect()
    }

    /// File and line, for messages at run time.
    pub(super) fn origin(&self) -> Origin {
        self.file.origin(self.start)
    }

    /// Refuses keys beside `known`, the first in the file.
    pub(super) fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        let unknown = self.table.keys().filter(|key| !known.contains(&&**key.get_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(()),
            Some(key) => Err(ConfigError::UnknownKey {
                place: format!("{}: {}", self.file.place(key.span().start), self.name),
                key: key.get_ref().to_string(),
                expected: known.join(", "),
            }),
        }
    }

    /// What `read` makes of a value, if the key is there.
    pub(super) fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&DeValue<'_>) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        match read(value.get_ref()) {
            Some(it) => Ok(Some(it)),
            None => Err(self.refuse(key, expected)),
        }
    }

    /// What `read` makes of each element of an array, if the key is there; `read` says what it
    /// expected of one that is wrong.
    pub(super) fn each<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let array = value.get_ref().as_array().ok_or_else(|| self.refuse(key, expected))?;
        let element = |value: &Spanned<DeValue<'_>>| {
            read(value.get_ref()).map_err(|expected| ConfigError::Value {
                place: format!("{}: {}.{key}", self.file.place(value.span().start), self.name),
                got: quoted(value.get_ref()),
                expected,
            })
        };
        array.iter().map(element).collect::<Result<_, _>>().map(Some)
    }

    /// That a value is not what it should be.
    pub(super) fn refuse(&self, key: &str, expected: &str) -> ConfigError {
        let (Some(place), Some(value)) = (self.place_of(key), self.table.get(key)) else {
            return self.wrong(&format!("no {key}"), expected);
        };
        let got = quoted(value.get_ref());
        ConfigError::Value { place, got, expected: expected.to_owned() }
    }

    /// The same of a key that must be there.
    pub(super) fn need<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&DeValue<'_>) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.get(key, expected, read)?.ok_or_else(|| self.wrong(&format!("no {key}"), expected))
    }

    /// A table within this one.
    pub(super) fn inner(&self, key: &str) -> Result<Option<Entry<'a>>, ConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        self.get(key, "a table", |value| value.as_table().map(drop))?;
        Ok(value.get_ref().as_table().map(|table| Entry {
            file: self.file,
            name: format!("{}.{key}", self.name),
            table,
            start: value.span().start,
        }))
    }

    /// File, line and column of the table, for messages.
    pub(super) fn place(&self) -> String {
        self.file.place(self.start)
    }

    /// The same of a value, and the key; `None` where it is not.
    pub(super) fn place_of(&self, key: &str) -> Option<String> {
        let value = self.table.get(key)?;
        Some(format!("{}: {}.{key}", self.file.place(value.span().start), self.name))
    }

    /// Some keys and their values as they are written, on one line: ` port = 443 addr = "::"`.
    pub(super) fn written(&self, prefix: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let keys = self.keys().into_iter().filter(|key| is_wanted(key));
        let value = |key| self.table.get(key).map(|value| json(value.get_ref()));
        keys.filter_map(|key| Some(format!(" {prefix}{key} = {}", value(key)?))).collect()
    }

    /// All keys, in the order of the file.
    pub(super) fn keys(&self) -> Vec<&'a str> {
        let mut keys: Vec<_> = self.table.keys().collect();
        keys.sort_by_key(|key| key.span().start);
        keys.into_iter().map(|key| &**key.get_ref()).collect()
    }

    /// That something is wrong with the table as a whole.
    pub(super) fn wrong(&self, got: &str, expected: &str) -> ConfigError {
        ConfigError::Value {
            place: format!("{}: {}", self.place(), self.name),
            got: got.to_owned(),
            expected: expected.to_owned(),
        }
    }

    /// As it is written.
    pub(super) fn value(&self) -> Value {
        object(self.table)
    }
}

/// A number, whole or not.
pub(super) fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(_) => json(value).as_f64(),
        DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
        DeValue::String(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}

/// A whole number.
pub(super) fn whole(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// As it is written, and short.
fn quoted(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Table(_) => "a table".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().into(),
        DeValue::Float(float) => float.as_str().into(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::String(_) | DeValue::Boolean(_) | DeValue::Integer(_) => json(value).to_string(),
    }
}

fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => (**text).into(),
        DeValue::Integer(integer) => match whole(value) {
            Some(n) => n.into(),
            None => integer.as_str().into(),
        },
        DeValue::Float(float) => {
            let n = number(value).and_then(Number::from_f64);
            n.map_or_else(|| float.as_str().into(), Value::Number)
        }
        DeValue::Boolean(is) => (*is).into(),
        DeValue::Datetime(datetime) => datetime.to_string().into(),
        DeValue::Array(array) => array.iter().map(|value| json(value.get_ref())).collect(),
        DeValue::Table(table) => object(table),
    }
}

fn object(table: &DeTable<'_>) -> Value {
    let pairs = table.iter().map(|(key, value)| (key.get_ref().to_string(), json(value.get_ref())));
    Value::Object(pairs.collect::<Map<String, Value>>())
}
