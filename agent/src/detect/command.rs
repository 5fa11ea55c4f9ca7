//! Commands that show or mend something, for where it has to be done.

use std::{collections::BTreeSet, ops::RangeInclusive};

use super::shell::noted;
use crate::{
    id::{NetnsId, Pid},
    model::snapshot::{Listener, Namespace, Snapshot},
};

/// What a change of a limit needs to show.
pub const RESTART: &str = "then restart the program: the limit is latched at listen(2)";
/// What helps where accept is slow.
pub const ACCEPT_FASTER: &str = "let the program accept faster: more workers or threads, or less work from one accept to the next";

/// The kernel's own default of somaxconn since Linux 5.4: as much is always right.
pub const SOMAXCONN: u64 = 4096;

/// The ports that connect(2) may be given; an even and an odd end, as the kernel prefers them
/// (`ipv4_local_port_range`, net/ipv4/sysctl_net_ipv4.c).
const WIDEST: RangeInclusive<u16> = 10_000..=65_535;
/// Most spans of ports in one command.
const MOST_SPANS: usize = 64;

/// `command` for a network namespace. The first namespace that the kernel makes, the host's, has the
/// lowest number; any other is entered by a process that listens there.
#[must_use]
pub fn inside(now: &Snapshot, netns: NetnsId, command: &str) -> String {
    if now.namespaces.first().is_some_and(|first| first.netns == netns) {
        return command.to_owned();
    }
    let mut ours =
        now.listeners.iter().filter(|it| it.key.netns == netns && !it.members.is_empty());
    match ours.find_map(|listener| listener.owners.first()) {
        Some(pid) => format!("nsenter --target {pid} --net {command}"),
        None => noted("", &format!("in the network namespace {netns}: {command}")),
    }
}

/// The command that sets a sysctl in a network namespace, such as `net.core.somaxconn=4096`.
#[must_use]
pub fn set_sysctl(now: &Snapshot, netns: NetnsId, setting: &str) -> String {
    inside(now, netns, &format!("sysctl -w {setting}"))
}

/// What raises somaxconn where a listener is, to what is wanted or the default.
#[must_use]
pub fn raise_somaxconn(now: &Snapshot, listener: &Listener, wanted: u64) -> String {
    let wanted = wanted.max(SOMAXCONN);
    if listener.workload.pod.is_some() {
        let set =
            format!("set net.core.somaxconn to {wanted} in the pod's securityContext.sysctls");
        return noted("", &set);
    }
    set_sysctl(now, listener.key.netns, &format!("net.core.somaxconn={wanted}"))
}

/// The command that gives connect(2) more ports, and keeps the listeners' own from it: a port with a
/// listener is not chosen (`__inet_hash_connect`, net/ipv4/inet_hashtables.c), but one whose listener is
/// away for a moment is, unless it is reserved (`inet_is_local_reserved_port`). `None`: there are none to
/// give, or what there is now is not known.
#[must_use]
pub fn widen_ports(now: &Snapshot, namespace: &Namespace) -> Option<String> {
    let (low, high) = port_range(namespace)?;
    let wide = low.min(*WIDEST.start())..=high.max(*WIDEST.end());
    if wide == (low..=high) {
        return None;
    }
    let netns = namespace.netns;
    let ports = now.listeners.iter().filter(|it| it.key.netns == netns && !it.members.is_empty());
    let ports = ports.map(|it| it.key.port);
    let is_met = |port: &u16| wide.contains(port) && !(low..=high).contains(port);
    let widen = format!("net.ipv4.ip_local_port_range='{} {}'", wide.start(), wide.end());
    Some(match reserve_ports(namespace, ports.filter(is_met)) {
        None => set_sysctl(now, netns, &widen),
        // in this order: no port is given away between the two
        Some(reserve) => reserve.mend(now, netns, &format!(" {widen}")),
    })
}

/// Ports to be kept from connect(2).
pub struct Reserve {
    setting: String,
    /// How many spans found no room in it.
    left_out: usize,
}

impl Reserve {
    /// The command that reserves them, and sets what is in `also`.
    #[must_use]
    pub fn mend(&self, now: &Snapshot, netns: NetnsId, also: &str) -> String {
        let command = set_sysctl(now, netns, &format!("{}{also}", self.setting));
        match self.left_out {
            0 => command,
            n => noted(&command, &format!("{n} more are not in this list")),
        }
    }
}

/// What reserves `ports`, besides those that are; `None`: they all are.
#[must_use]
pub fn reserve_ports(
    namespace: &Namespace,
    ports: impl IntoIterator<Item = u16>,
) -> Option<Reserve> {
    let before = &namespace.reserved_ports;
    let is_new = |port: &u16| !before.iter().any(|it| it.contains(port));
    let new: BTreeSet<u16> = ports.into_iter().filter(is_new).collect();
    if new.is_empty() {
        return None;
    }
    let mut spans: Vec<RangeInclusive<u16>> = Vec::new();
    for port in new {
        match spans.last_mut() {
            Some(last) if *last.end() + 1 == port => *last = *last.start()..=port,
            Some(_) | None => spans.push(port..=port),
        }
    }
    let left_out = spans.len().saturating_sub(MOST_SPANS);
    let text = |span: &RangeInclusive<u16>| match (span.start(), span.end()) {
        (start, end) if start == end => start.to_string(),
        (start, end) => format!("{start}-{end}"),
    };
    let list: Vec<String> = before.iter().chain(spans.iter().take(MOST_SPANS)).map(text).collect();
    let setting = format!("net.ipv4.ip_local_reserved_ports={}", list.join(","));
    Some(Reserve { setting, left_out })
}

/// Descriptors that are wanted where `max` are too few.
#[must_use]
pub fn ample_fds(max: u64) -> u64 {
    max.saturating_mul(2).max(65_536)
}

/// What gives a process more descriptors than `max`: the soft limit, and the hard one only where it is
/// lower, for that alone makes the first command fail and not the second.
#[must_use]
pub fn raise_nofile(pid: Pid, max: u64) -> String {
    let wanted = ample_fds(max);
    let set = |limits: &str| format!("prlimit --pid {pid} --nofile={limits}");
    format!("{} || {}", set(&format!("{wanted}:")), set(&format!("{wanted}:{wanted}")))
}

/// Lowest and highest port that connect(2) chooses; `None`: not known.
#[must_use]
pub fn port_range(namespace: &Namespace) -> Option<(u16, u16)> {
    let end = |name| u16::try_from(*namespace.sysctls.get(name)?).ok();
    Some((end("ip_local_port_range_low")?, end("ip_local_port_range_high")?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::detect::fixture::{listener, snapshot};

    /// A host whose listeners have these ports, whose range this is, and what is reserved there.
    fn host(ports: &[u16], range: (u16, u16), reserved: &[RangeInclusive<u16>]) -> Snapshot {
        let mut now = snapshot(ports.iter().map(|&port| listener(port)).collect());
        now.namespaces[0].reserved_ports = reserved.into();
        let (low, high) = (i64::from(range.0), i64::from(range.1));
        let sysctls = [("ip_local_port_range_low", low), ("ip_local_port_range_high", high)];
        now.namespaces[0].sysctls = Arc::new(sysctls.into());
        now
    }

    #[track_caller]
    fn check(
        ports: &[u16],
        range: (u16, u16),
        reserved: &[RangeInclusive<u16>],
        expected: Option<&str>,
    ) {
        let now = host(ports, range, reserved);
        let got = widen_ports(&now, &now.namespaces[0]);
        assert_eq!(expected, got.as_deref(), "{ports:?} {range:?} {reserved:?}");
    }

    #[test]
    fn more_ports_are_given_and_those_of_listeners_kept() {
        let usual = (32_768, 60_999);
        let widen = "net.ipv4.ip_local_port_range='10000 65535'";
        check(&[80, 443], usual, &[], Some(&format!("sysctl -w {widen}")));
        // one that the range holds already may be of the kernel's choice
        check(&[9100, 40_000], usual, &[], Some(&format!("sysctl -w {widen}")));
        let reserve = "net.ipv4.ip_local_reserved_ports=10250-10251,27017,61000";
        let ports = [61_000, 27_017, 10_250, 10_251, 80];
        check(&ports, usual, &[], Some(&format!("sysctl -w {reserve} {widen}")));
        let reserved = [10_250..=10_260, 30_000..=30_000];
        let reserve = "net.ipv4.ip_local_reserved_ports=10250-10260,30000,27017";
        check(&[10_250, 27_017], usual, &reserved, Some(&format!("sysctl -w {reserve} {widen}")));
        check(&[10_250], usual, &reserved, Some(&format!("sysctl -w {widen}")));
        let widen = "net.ipv4.ip_local_port_range='1024 65535'";
        check(&[8080], (1024, 20_000), &[], Some(&format!("sysctl -w {widen}")));
        check(&[12_000], (10_000, 65_535), &[], None);
        check(&[12_000], (1024, 65_535), &[], None);
    }

    #[test]
    fn a_long_list_of_ports_is_cut_and_the_cut_is_told() {
        let ports: Vec<u16> = (0..100).map(|i| 11_000 + 2 * i).collect();
        let now = host(&ports, (32_768, 60_999), &[]);
        let got = widen_ports(&now, &now.namespaces[0]).expect("there are ports to give");
        assert!(got.contains("11124,11126 net"), "{got}");
        assert!(got.ends_with("65535' # 36 more are not in this list"), "{got}");
    }

    #[test]
    fn a_command_enters_the_namespace_it_is_for() {
        let mut now = host(&[80], (1, 2), &[]);
        let netns = now.namespaces[0].netns;
        assert_eq!("ss -ltn", inside(&now, netns, "ss -ltn"));
        let mut first = now.namespaces[0].clone();
        first.netns = NetnsId(1);
        now.namespaces.insert(0, first);
        assert_eq!("nsenter --target 100 --net ss -ltn", inside(&now, netns, "ss -ltn"));
        now.listeners[0].members.clear();
        assert_eq!("# in the network namespace net:[7]: ss -ltn", inside(&now, netns, "ss -ltn"));
    }
}
