//! Errors in words.

use std::{error::Error, iter};

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(Some(error), |err| (**err).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
