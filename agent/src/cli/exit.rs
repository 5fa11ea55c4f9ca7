//! Exit codes: the same for every verb, and those that monitoring plugins use.

use std::process::ExitCode;

use super::out::WriteError;
use crate::{config::ConfigError, daemon::DaemonError};

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: fine.
    Fine,
    /// 1: a warning.
    Warning,
    /// 2: critical.
    Critical,
    /// 3: cannot tell: not permitted, not supported, unreachable.
    CannotTell,
    /// 64: wrong usage (`EX_USAGE`).
    Usage,
    /// 78: wrong configuration (`EX_CONFIG`).
    Configuration,
}

impl Exit {
    /// The code of an error. A closed standard output is none: the reader has what it wanted.
    #[must_use]
    pub fn of(err: &anyhow::Error) -> Self {
        let daemon = err.downcast_ref::<DaemonError>();
        if err.is::<ConfigError>() || daemon.is_some_and(DaemonError::is_configuration) {
            Self::Configuration
        } else if let Some(DaemonError::Dead(_)) = daemon {
            Self::Warning
        } else if let Some(WriteError::Closed) = err.downcast_ref() {
            Self::Fine
        } else {
            Self::CannotTell
        }
    }

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::CannotTell => 3,
            Self::Usage => 64,
            Self::Configuration => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}
