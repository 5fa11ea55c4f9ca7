//! The programs, what each is attached to, and which event it serves.

use std::sync::Arc;

use crate::input::{Hook, Tier};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// A tracepoint with BTF, for as long as the agent runs.
    Tracepoint(&'static str),
    /// An iterator, attached each time it is read.
    Iterator(&'static str),
}

/// Whether the agent counts anything without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Without it no listener is followed.
    Required,
    /// Without it its own event is absent.
    Optional,
}

/// One program of the object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Its name in the object.
    pub(super) name: &'static str,
    /// The first event that it serves.
    pub(super) event: &'static str,
    pub(super) attach: Attach,
    pub(super) need: Need,
}

const fn tracepoint(
    name: &'static str,
    event: &'static str,
    target: &'static str,
    need: Need,
) -> Program {
    Program { name, event, attach: Attach::Tracepoint(target), need }
}

/// In the order of attaching: the ends of connections before their beginnings, so that no
/// difference runs below zero. `_2` is the same program again, for what the kernel skips.
pub(super) const PROGRAMS: &[Program] = &[
    tracepoint("destroy", "close", "tcp_destroy_sock", Need::Required),
    tracepoint("destroy_2", "close", "tcp_destroy_sock", Need::Required),
    tracepoint("state", "established", "inet_sock_set_state", Need::Required),
    tracepoint("state_2", "established", "inet_sock_set_state", Need::Required),
    tracepoint("enqueue", "enqueue", "sk_data_ready", Need::Optional),
    Program {
        name: "adopt",
        event: "syn_queue",
        attach: Attach::Iterator("tcp"),
        need: Need::Optional,
    },
];

/// How each event is obtained while the programs run. `failed` names optional programs that do
/// not run, and why.
pub(super) fn with_programs(failed: &[(&'static str, Arc<str>)]) -> Arc<[Hook]> {
    let optional = |event, program: &'static str| {
        let why = failed.iter().find(|(name, _)| *name == program).map(|(_, why)| why.clone());
        match why {
            None => hook(event, Tier::Tracepoint, program, ""),
            Some(why) => {
                Hook { event, tier: Tier::None, program: "", why, refused: Arc::default() }
            }
        }
    };
    Arc::new([
        hook("listen", Tier::Tracepoint, "state", ""),
        hook("established", Tier::Tracepoint, "state", ""),
        optional("enqueue", "enqueue"),
        hook("accept", Tier::Sampled, "established - length", "exact at every quiet instant"),
        hook("reset", Tier::Tracepoint, "state", ""),
        hook("close", Tier::Tracepoint, "destroy", ""),
        optional("syn_queue", "adopt"),
        hook("drop", Tier::Sampled, "sk_drops", "the reasons are not told apart"),
    ])
}

/// How each event is obtained without any program.
pub(super) fn without_programs(why: &str) -> Arc<[Hook]> {
    let none = |event| hook(event, Tier::None, "", why);
    Arc::new([
        hook("listen", Tier::Sampled, "sock_diag", why),
        none("established"),
        none("enqueue"),
        none("accept"),
        none("reset"),
        none("close"),
        none("syn_queue"),
        hook("drop", Tier::Sampled, "sk_drops", "the reasons are not told apart"),
    ])
}

fn hook(event: &'static str, tier: Tier, program: &'static str, why: &str) -> Hook {
    Hook { event, tier, program, why: why.into(), refused: Arc::default() }
}
