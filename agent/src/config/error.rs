//! What can be wrong with a configuration.

use std::{io, path::PathBuf};

/// Why nothing was loaded. Each message says where, what was got and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot read the configuration")]
    Read {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Something that is no configuration.
    #[error("{path}: larger than {limit} bytes, which no configuration is")]
    TooLarge {
        /// Its path.
        path: String,
        /// The most that is read.
        limit: u64,
    },
    /// Bytes that are no text.
    #[error("{place}: got bytes that are not UTF-8, expected text")]
    Encoding {
        /// File and line, or variable.
        place: String,
    },
    /// Not TOML.
    #[error("{place}: malformed TOML: {message}")]
    Syntax {
        /// File, line and column.
        place: String,
        /// What the parser got and expected.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: got unknown key `{key}`, expected one of {expected}")]
    UnknownKey {
        /// File, line and column.
        place: String,
        /// The key as it is written.
        key: String,
        /// Those that exist.
        expected: String,
    },
    /// A file that the configuration names.
    #[error("{place}: got {path:?}, expected {expected}")]
    File {
        /// File, line, column and key of what names it.
        place: String,
        /// Its path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        source: io::Error,
    },
    /// It has no listener that sheds, and is for nothing else.
    #[error("nothing to shed for, expected --listen, or a file with [[shed]] tables")]
    NothingToShed,
    /// The file that was named for its listeners has none.
    #[error("{}: no table [[shed]], expected at least one", .0.display())]
    NoShed(PathBuf),
    /// A wrong type, or a value out of range.
    #[error("{place}: got {got}, expected {expected}")]
    Value {
        /// File, line, column and key; or variable; or flag.
        place: String,
        /// The value as it is written.
        got: String,
        /// What it may be.
        expected: String,
    },
}
