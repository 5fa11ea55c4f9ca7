//! The table of hooks: for each event the ways to obtain it, best first, and what each needs.
//!
//! Nothing here compares versions: a way is tried, and the kernel's answer decides (`attach.rs`).
//! Long because it is a flat table.

use crate::input::Tier;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// A tracepoint with BTF.
    Tracepoint,
    /// A function's entry, with typed arguments.
    Fentry,
    /// A function's return, likewise.
    Fexit,
    /// A function's entry.
    Kprobe,
    /// A function's return; never of one that can block, since instances run out
    /// (`register_kretprobe`, kernel/kprobes.c).
    Kretprobe,
    /// A system call's exit, by tracefs. While any such tracepoint is on, every system call of the
    /// host takes the slow way (`syscall_trace_enter`, kernel/entry/common.c).
    Syscall,
    /// An iterator, attached each time it is read.
    Iterator,
    /// Nothing: the agent runs it.
    Run,
}

/// One program of the object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Its name in the object.
    pub(super) name: &'static str,
    pub(super) attach: Attach,
    /// What it is attached to.
    pub(super) target: &'static str,
    /// Which structures the target's arguments must point to, by position, as far as the program
    /// reads them.
    pub(super) arguments: &'static [(usize, &'static str)],
    /// How many arguments the target must have, where what it returns is read behind them.
    pub(super) n_arguments: Option<usize>,
    /// Whether the way serves without it. For what a kernel need not have: IPv6, io_uring.
    pub(super) is_optional: bool,
}

/// What a way needs besides its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// `bpf_probe_read_kernel`, which lockdown=confidentiality refuses.
    Probe,
    /// `net.ipv4.sysctl_tcp_syncookies`
    Syncookies,
    /// `sk_buff.protocol`
    SkbProtocol,
    /// `socket.sk`
    SocketSk,
    /// The fields that lead from a descriptor to a socket.
    Descriptor,
    /// A drop reason for a full accept queue (6.15).
    ListenOverflow,
    /// `socket_alloc.vfs_inode` and `sock_common.skc_ipv6only`.
    Socket,
    /// The setting `accept_tracepoints`.
    Switch,
}

/// One way to obtain an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) tier: Tier,
    pub(super) programs: &'static [Program],
    pub(super) needs: &'static [Need],
    /// Whether its programs know a child by its address alone.
    pub(super) by_address: bool,
}

/// Events that are obtained together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Their names; the first stands for all in messages.
    pub(super) events: &'static [&'static str],
    pub(super) ways: &'static [Way],
    /// What stands for it where no way serves: `(Tier::None, "", "")` for nothing.
    pub(super) otherwise: (Tier, &'static str, &'static str),
}

const fn program(name: &'static str, attach: Attach, target: &'static str) -> Program {
    Program { name, attach, target, arguments: &[], n_arguments: None, is_optional: false }
}

const fn with(mut program: Program, arguments: &'static [(usize, &'static str)]) -> Program {
    program.arguments = arguments;
    program
}

const fn counted(mut program: Program, n_arguments: usize) -> Program {
    program.n_arguments = Some(n_arguments);
    program
}

const fn optional(mut program: Program) -> Program {
    program.is_optional = true;
    program
}

const fn way(tier: Tier, programs: &'static [Program], needs: &'static [Need]) -> Way {
    Way { tier, programs, needs, by_address: false }
}

const fn by_address(tier: Tier, programs: &'static [Program], needs: &'static [Need]) -> Way {
    Way { tier, programs, needs, by_address: true }
}

const NOTHING: (Tier, &str, &str) = (Tier::None, "", "");

/// Without these no listener is followed. `_2` is the same program again, for what the kernel
/// skips. Attached last, the ends of connections before their beginnings, so that no difference
/// runs below zero.
pub(super) const REQUIRED: &[Program] = &[
    program("destroy", Attach::Tracepoint, "tcp_destroy_sock"),
    program("destroy_2", Attach::Tracepoint, "tcp_destroy_sock"),
    program("state", Attach::Tracepoint, "inet_sock_set_state"),
    program("state_2", Attach::Tracepoint, "inet_sock_set_state"),
];

/// The events that they serve.
pub(super) const REQUIRED_EVENTS: &[(&str, &str)] = &[
    ("listen", "state"),
    ("established", "state"),
    ("reset", "state"),
    ("discard", "state"),
    ("close", "destroy"),
];

const REQUEST: &[(usize, &str)] = &[(2, "sock"), (3, "sk_buff")];
const ACK: &[(usize, &str)] = &[(0, "sock"), (1, "sk_buff"), (2, "request_sock")];
const COOKIE: &[(usize, &str)] = &[(0, "sk_buff")];
const SOCK: &[(usize, &str)] = &[(0, "sock")];

const EXIT_ACCEPT: Program = program("exit_accept", Attach::Syscall, "sys_exit_accept");
const EXIT_ACCEPT4: Program = program("exit_accept4", Attach::Syscall, "sys_exit_accept4");
const EXIT_CONNECT: Program = program("exit_connect", Attach::Syscall, "sys_exit_connect");

const ACCEPTS: &[Program] = &[EXIT_ACCEPT, EXIT_ACCEPT4];

/// The system calls' exits, as they are switched on for a closer look.
pub(super) const SYSCALLS: &[Program] = &[EXIT_ACCEPT, EXIT_ACCEPT4, EXIT_CONNECT];

/// What they need, but for the setting.
pub(super) const SYSCALL_NEEDS: &[Need] = &[Need::Probe, Need::Descriptor, Need::SocketSk];

const SWITCHED: &[Need] = &[Need::Switch, Need::Probe, Need::Descriptor, Need::SocketSk];

/// Everything else, in the order of attaching.
pub(super) const GROUPS: &[Group] = &[
    Group {
        events: &["accept"],
        ways: &[
            way(Tier::Fentry, &[with(program("accept", Attach::Fentry, GRAFT), SOCK)], &[]),
            by_address(
                Tier::Kprobe,
                &[with(program("accept_kprobe", Attach::Kprobe, GRAFT), SOCK)],
                &[Need::Probe],
            ),
            by_address(Tier::Tracepoint, ACCEPTS, SWITCHED),
        ],
        otherwise: (Tier::Sampled, "established - length", "exact at every quiet instant"),
    },
    Group {
        events: &["accept_error"],
        ways: &[
            way(
                Tier::Fentry,
                &[
                    counted(program("accept_error", Attach::Fexit, "__sys_accept4"), 4),
                    optional(counted(
                        with(
                            program("accept_error_uring", Attach::Fexit, "io_accept"),
                            &[(0, "io_kiocb")],
                        ),
                        2,
                    )),
                ],
                &[],
            ),
            by_address(Tier::Tracepoint, ACCEPTS, SWITCHED),
        ],
        otherwise: NOTHING,
    },
    Group {
        events: &["connect_error"],
        ways: &[
            way(
                Tier::Fentry,
                &[counted(
                    with(
                        program("connect", Attach::Fexit, "inet_stream_connect"),
                        &[(0, "socket")],
                    ),
                    4,
                )],
                &[Need::SocketSk],
            ),
            way(
                Tier::Kprobe,
                &[
                    program("connect_v4_kprobe", Attach::Kretprobe, "tcp_v4_connect"),
                    optional(program("connect_v6_kprobe", Attach::Kretprobe, "tcp_v6_connect")),
                ],
                &[],
            ),
            way(Tier::Tracepoint, &[EXIT_CONNECT], SWITCHED),
        ],
        otherwise: NOTHING,
    },
    Group {
        events: &["ack_drop"],
        ways: &[
            way(
                Tier::Fentry,
                &[
                    with(program("ack_v4", Attach::Fentry, "tcp_v4_syn_recv_sock"), ACK),
                    optional(with(program("ack_v6", Attach::Fentry, "tcp_v6_syn_recv_sock"), ACK)),
                ],
                &[Need::SkbProtocol],
            ),
            way(
                Tier::Kprobe,
                &[
                    with(program("ack_v4_kprobe", Attach::Kprobe, "tcp_v4_syn_recv_sock"), ACK),
                    optional(with(
                        program("ack_v6_kprobe", Attach::Kprobe, "tcp_v6_syn_recv_sock"),
                        ACK,
                    )),
                ],
                &[Need::Probe, Need::SkbProtocol],
            ),
            way(
                Tier::Tracepoint,
                &[with(
                    program("ack_freed", Attach::Tracepoint, "kfree_skb"),
                    &[(0, "sk_buff"), (3, "sock")],
                )],
                &[Need::ListenOverflow],
            ),
        ],
        otherwise: NOTHING,
    },
    Group {
        events: &["syn_cookie"],
        ways: &[
            way(
                Tier::Fentry,
                &[
                    with(program("cookie_v4", Attach::Fentry, "cookie_v4_init_sequence"), COOKIE),
                    optional(with(
                        program("cookie_v6", Attach::Fentry, "cookie_v6_init_sequence"),
                        COOKIE,
                    )),
                ],
                &[],
            ),
            way(
                Tier::Kprobe,
                &[
                    with(
                        program("cookie_v4_kprobe", Attach::Kprobe, "cookie_v4_init_sequence"),
                        COOKIE,
                    ),
                    optional(with(
                        program("cookie_v6_kprobe", Attach::Kprobe, "cookie_v6_init_sequence"),
                        COOKIE,
                    )),
                ],
                &[Need::Probe],
            ),
        ],
        otherwise: NOTHING,
    },
    Group {
        events: &["syn", "syn_drop"],
        ways: &[
            way(
                Tier::Fentry,
                &[with(program("syn", Attach::Fentry, "tcp_conn_request"), REQUEST)],
                &[Need::Syncookies],
            ),
            way(
                Tier::Kprobe,
                &[with(program("syn_kprobe", Attach::Kprobe, "tcp_conn_request"), REQUEST)],
                &[Need::Probe, Need::Syncookies],
            ),
        ],
        otherwise: NOTHING,
    },
    Group {
        events: &["enqueue"],
        ways: &[
            // the program for the state reads the listener's queue itself
            way(Tier::Tracepoint, &[], &[Need::Probe]),
            way(
                Tier::Tracepoint,
                &[with(program("enqueue", Attach::Tracepoint, "sk_data_ready"), SOCK)],
                &[],
            ),
            way(
                Tier::Fentry,
                &[with(program("enqueue_fentry", Attach::Fentry, "sock_def_readable"), SOCK)],
                &[],
            ),
        ],
        otherwise: NOTHING,
    },
    // listeners and connections from before the agent
    Group {
        events: &["adopt"],
        ways: &[way(Tier::Tracepoint, &[program("adopt", Attach::Iterator, "tcp")], &[])],
        otherwise: NOTHING,
    },
    // what the ends of connections are checked against
    Group {
        events: &["census"],
        ways: &[way(
            Tier::Tracepoint,
            &[program(super::CENSUS, Attach::Iterator, "bpf_sk_storage_map")],
            &[],
        )],
        otherwise: NOTHING,
    },
    Group {
        events: &["syn_queue"],
        ways: &[
            way(Tier::Tracepoint, SWEEP, &[Need::Probe, Need::Socket]),
            way(Tier::Tracepoint, &[program("adopt", Attach::Iterator, "tcp")], &[]),
        ],
        otherwise: NOTHING,
    },
];

/// Looks at all followed listeners at once.
const SWEEP: &[Program] = &[program(super::SWEEP, Attach::Run, "")];

/// Runs after the wait, for every way to accept.
const GRAFT: &str = "security_sock_graft";

/// The program that stands for a way in messages.
pub(super) fn face(way: &Way) -> &'static str {
    way.programs.first().map_or("state", |program| program.name)
}

/// Every program, with the first event that it serves.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let required = REQUIRED.iter().map(|program| {
        let event = if program.target == "tcp_destroy_sock" { "close" } else { "established" };
        (event, program.name)
    });
    let others = GROUPS.iter().flat_map(|group| {
        let programs = group.ways.iter().flat_map(|way| way.programs);
        programs.map(|program| (group.events[0], program.name))
    });
    required.chain(others)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_event_stands_in_one_group() {
        let mut events: BTreeSet<_> = REQUIRED_EVENTS.iter().map(|(event, _)| *event).collect();
        for event in GROUPS.iter().flat_map(|group| group.events) {
            assert!(events.insert(event), "{event} is there twice");
        }
    }

    #[test]
    fn a_kernel_function_that_can_block_has_no_kretprobe() {
        let programs = GROUPS.iter().flat_map(|group| group.ways).flat_map(|way| way.programs);
        for program in programs.filter(|program| program.attach == Attach::Kretprobe) {
            assert!(matches!(program.target, "tcp_v4_connect" | "tcp_v6_connect"), "{program:?}");
        }
    }
}
