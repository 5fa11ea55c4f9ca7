//! A fact, or why it is missing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a fact is missing. Unknown is a value; it is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// No eBPF program runs: switched off, not permitted, or refused by this kernel.
    NoEbpf,
    /// The programs run, but this listener found no free slot.
    NoSlot,
    /// This kernel does not give it.
    NotOnThisKernel,
    /// The agent may not read it.
    NotPermitted,
    /// It went away, or could not be read this time.
    Unreadable,
    /// Needs more history than there is so far.
    TooEarly,
    /// Part of what it is computed from happened before the agent started.
    BeforeStart,
    /// The configuration does not want it.
    SwitchedOff,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEbpf => "no eBPF program runs",
            Self::NoSlot => "no free slot for this listener",
            Self::NotOnThisKernel => "this kernel does not give it",
            Self::NotPermitted => "not permitted",
            Self::Unreadable => "could not be read",
            Self::TooEarly => "not enough history so far",
            Self::BeforeStart => "began before the agent",
            Self::SwitchedOff => "switched off by the configuration",
        })
    }
}

/// A fact, or why there is none.
pub type Known<T> = Result<T, Absent>;
