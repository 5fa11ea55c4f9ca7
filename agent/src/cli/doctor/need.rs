//! The least that each way of getting numbers needs; pure.
//!
//! Measured as uid 65534, one capability more or less at a time: on 6.18, but kprobes in Debian's
//! 5.10, 6.1 and 6.12. Not measured: fentry; `bpf_prog_load` (kernel/bpf/syscall.c) asks for the
//! same as for a tracepoint with BTF.

use crate::{
    input::Tier,
    sources::machine::{Capabilities, Capability},
};

/// What one way of getting numbers needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// The tier it belongs to; `None` for what is beside the tiers.
    pub(super) tier: Option<Tier>,
    /// What it gives.
    pub(super) gives: &'static str,
    /// All of them.
    pub(super) capabilities: &'static [Capability],
    /// What else.
    pub(super) also: &'static str,
}

/// For a tracing program: `bpf_prog_load` (kernel/bpf/syscall.c).
pub(super) const PROGRAM: &[Capability] = &[Capability::Bpf, Capability::Perfmon];

/// For whom descriptors of other users' processes are listed: `proc_fd_permission` asks for the
/// one, `proc_fd_access_allowed` for the other (fs/proc/fd.c, fs/proc/base.c).
pub(super) const OWNERS: &[Capability] = &[Capability::SysPtrace, Capability::DacReadSearch];

/// The best first.
pub(super) const NEEDS: [Need; 8] = [
    Need {
        tier: Some(Tier::Fentry),
        gives: "every event, at the least cost",
        capabilities: PROGRAM,
        also: "BTF",
    },
    Need {
        tier: Some(Tier::Kprobe),
        gives: "every event but failed accepts",
        capabilities: PROGRAM,
        also: "CONFIG_KPROBE_EVENTS, CONFIG_BPF_EVENTS, no lockdown=confidentiality; CAP_SYS_ADMIN \
               where kernel.perf_event_paranoid is 3 or more",
    },
    Need {
        tier: Some(Tier::Tracepoint),
        gives: "handshakes, peaks, closes, SYN queue",
        capabilities: PROGRAM,
        also: "BTF",
    },
    Need {
        tier: Some(Tier::Tracepoint),
        gives: "what accept(2) and connect(2) returned",
        // the last for tracefs, whose files belong to uid 0 and are for nobody else
        capabilities: &[Capability::Bpf, Capability::Perfmon, Capability::DacReadSearch],
        also: "tracefs, no lockdown=confidentiality; uid 0 stands for CAP_DAC_READ_SEARCH; \
               CAP_SYS_ADMIN where kernel.perf_event_paranoid is 3 or more",
    },
    Need {
        tier: Some(Tier::Sampled),
        gives: "queue length, limit, drops (sock_diag)",
        capabilities: &[],
        also: "tcp_diag, built in or as a module",
    },
    Need { tier: None, gives: "owners that run as another user", capabilities: OWNERS, also: "" },
    Need {
        tier: None,
        gives: "entering other network namespaces",
        capabilities: &[Capability::SysAdmin, Capability::SysPtrace],
        also: "",
    },
    Need {
        tier: None,
        gives: "BPF statistics of the agent's own programs",
        capabilities: &[Capability::SysAdmin],
        also: "or kernel.bpf_stats_enabled = 1",
    },
];

/// Those that are not there.
pub(super) fn missing(
    capabilities: &[Capability],
    effective: Capabilities,
) -> impl Iterator<Item = Capability> {
    capabilities.iter().copied().filter(move |&capability| !effective.allows(capability))
}
