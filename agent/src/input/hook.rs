//! By which hook an event is obtained, and what was refused.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::intern::{self, Name};

/// By which hook an event is obtained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The event: `listen`, `established`, `enqueue`, `accept`, `close`, `drop`, …
    #[serde(deserialize_with = "intern::name")]
    pub event: Name,
    /// What serves it.
    pub tier: Tier,
    /// The program, or what stands for it; empty for none.
    #[serde(deserialize_with = "intern::name")]
    pub program: Name,
    /// What there is to say of it, beside what was refused; empty when there is nothing.
    pub why: Arc<str>,
    /// What was tried before, best first, and why it does not serve.
    pub refused: Arc<[Refused]>,
}

impl Hook {
    /// Why there is no better one, on one line: what was refused, and what there is to say.
    #[must_use]
    pub fn reasons(&self) -> String {
        let refused = self.refused.iter().map(|it| format!("{}: {}", it.tier.name(), it.why));
        let note = Some(self.why.to_string()).filter(|why| !why.is_empty());
        note.into_iter().chain(refused).collect::<Vec<_>>().join("; ")
    }
}

/// A hook that this kernel did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its kind.
    pub tier: Tier,
    /// The program.
    #[serde(deserialize_with = "intern::name")]
    pub program: Name,
    /// What the kernel answered, or what it lacks.
    pub why: Arc<str>,
}

/// How an event is obtained, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// fentry or fexit.
    Fentry,
    /// kprobe.
    Kprobe,
    /// A tracepoint or an iterator.
    Tracepoint,
    /// Computed from what is read each second.
    Sampled,
    /// Not at all.
    None,
}

impl Tier {
    /// The label's value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Sampled => "sampled",
            Self::None => "none",
        }
    }
}
