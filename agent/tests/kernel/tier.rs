//! What differs from machine to machine: the tier that the agent is held to, and how much load.

use std::{env, ffi::OsString, process::Command};

use backlogd::{
    input::Tier,
    sources::{Namespaces, Options},
};

/// The sources as `BACKLOGD_TEST_TIER` wants them: the best hooks that the kernel has, or at best
/// those of the tier it names; `syscalls` is the tracepoint tier with `accept_tracepoints`.
pub(crate) fn options(slots: u32) -> Options {
    let (tier, accept_tracepoints) = match wanted().as_deref() {
        None | Some("fentry") => (Tier::Fentry, false),
        Some("kprobe") => (Tier::Kprobe, false),
        Some("tracepoint") => (Tier::Tracepoint, false),
        Some("syscalls") => (Tier::Tracepoint, true),
        Some("sampled") => (Tier::Sampled, false),
        Some(other) => panic!(
            "BACKLOGD_TEST_TIER is {other}, expected fentry, kprobe, tracepoint, syscalls or sampled"
        ),
    };
    let ebpf = tier != Tier::Sampled;
    // what others on this host do is none of most tests' business
    let namespaces = Namespaces::Own;
    Options { ebpf, slots, tier, accept_tracepoints, namespaces, ..Options::default() }
}

/// The binary under test, held to the same tier: the one that cargo built, or what
/// `BACKLOGD_TEST_BINARY` names.
pub(crate) fn backlogd() -> Command {
    let Options { tier, accept_tracepoints, .. } = options(0);
    let mut command = Command::new(binary());
    command
        .env("BACKLOGD_TIER", tier.name())
        .env("BACKLOGD_ACCEPT_TRACEPOINTS", accept_tracepoints.to_string());
    command
}

/// Its path.
pub(crate) fn binary() -> OsString {
    env::var_os("BACKLOGD_TEST_BINARY").unwrap_or(env!("CARGO_BIN_EXE_backlogd").into())
}

/// Whether `event` must be served by a program where a tier is asked for by name. Without one, what
/// the kernel takes is what is tested.
pub(crate) fn must_serve(event: &str) -> bool {
    const FUNCTIONS: [&str; 6] =
        ["accept", "syn", "syn_drop", "syn_cookie", "ack_drop", "connect_error"];
    const CALLS: [&str; 3] = ["accept", "accept_error", "connect_error"];
    match wanted().as_deref() {
        Some("fentry") => FUNCTIONS.contains(&event) || event == "accept_error",
        Some("kprobe") => FUNCTIONS.contains(&event),
        Some("syscalls") => CALLS.contains(&event),
        _ => false,
    }
}

/// Whether the tier under test is that of the tracepoints of system calls.
pub(crate) fn needs_tracefs() -> bool {
    wanted().as_deref() == Some("syscalls")
}

fn wanted() -> Option<String> {
    env::var("BACKLOGD_TEST_TIER").ok()
}

/// `n` events, or a part of them where the processor is emulated: `BACKLOGD_TEST_SCALE` divides.
pub(crate) fn scaled(n: u64) -> u64 {
    let scale: u64 = env::var("BACKLOGD_TEST_SCALE")
        .map_or(1, |text| text.parse().expect("BACKLOGD_TEST_SCALE: a whole number"));
    n / scale
}
