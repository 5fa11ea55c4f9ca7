//! The threads of a process, as JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    threads::{self, ThreadState},
    time::Monotonic,
};

/// What the threads of a process did when somebody looked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Threads {
    /// Time since then.
    pub age_seconds: f64,
    /// How many there are.
    pub total: u64,
    /// How many of them were looked at; the others are in no group.
    pub looked_at: u64,
    /// Whether a debugger is attached.
    pub traced: bool,
    /// Whether the process's control group is frozen; null: not known.
    pub frozen: Option<bool>,
    /// Those that did the same, most first.
    pub groups: Vec<ThreadGroup>,
}

/// Threads that did the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadGroup {
    /// Whether they ran or slept.
    pub state: ThreadState,
    /// The kernel's function that they slept in; null: none, or not permitted.
    pub wchan: Option<String>,
    /// The name of the system call that they slept in, or its number; null likewise.
    pub call: Option<String>,
    /// How many they are.
    pub count: u64,
}

impl Threads {
    pub(super) fn new(threads: &threads::Threads, now: Monotonic) -> Self {
        let group = |group: &threads::ThreadGroup| ThreadGroup {
            state: group.state,
            wchan: group.wchan.as_deref().map(str::to_owned),
            call: group.call.map(|call| call.to_string()),
            count: group.count,
        };
        Self {
            age_seconds: (now - threads.at).as_seconds(),
            total: threads.total,
            looked_at: threads.looked_at,
            traced: threads.traced,
            frozen: threads.frozen,
            groups: threads.groups.iter().map(group).collect(),
        }
    }
}
