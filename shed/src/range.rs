//! Numbers that are out of the range in which they can hold.

use std::{error::Error, fmt};

/// A number that cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutOfRange {
    /// What it is of, with its unit where that is not connections.
    pub what: &'static str,
    /// What was given.
    pub got: u64,
    /// The least that it can be.
    pub least: u64,
    /// The most that it can be.
    pub most: u64,
}

impl OutOfRange {
    pub(crate) fn check(what: &'static str, got: u64, least: u64, most: u64) -> Result<(), Self> {
        if (least..=most).contains(&got) { Ok(()) } else { Err(Self { what, got, least, most }) }
    }
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, got, least, most } = self;
        write!(f, "{what} is {got}, expected {least} to {most}")
    }
}

impl Error for OutOfRange {}
