//! Commands that mend something, for where it has to be mended.

use crate::{id::NetnsId, model::snapshot::Snapshot};

/// The command that sets a sysctl in a network namespace, such as `net.core.somaxconn=4096`. The first
/// namespace that the kernel makes, the host's, has the lowest number; any other is entered by a process
/// that listens there.
#[must_use]
pub fn set_sysctl(now: &Snapshot, netns: NetnsId, setting: &str) -> String {
    if now.namespaces.first().is_some_and(|first| first.netns == netns) {
        return format!("sysctl -w {setting}");
    }
    let mut ours =
        now.listeners.iter().filter(|it| it.key.netns == netns && !it.members.is_empty());
    match ours.find_map(|listener| listener.owners.first()) {
        Some(pid) => format!("nsenter --target {pid} --net sysctl -w {setting}"),
        None => format!("in the network namespace {netns}: sysctl -w {setting}"),
    }
}
