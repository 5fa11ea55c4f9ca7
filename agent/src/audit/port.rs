//! The local ports that connect(2) chooses from: too few, TIME_WAIT among them, a listener's port among
//! them.

use std::collections::BTreeMap;

use super::{Finding, Host, of_namespace};
use crate::{
    detect::{
        command::{port_range, reserve_ports, widen_ports},
        phase::Severity,
    },
    model::snapshot::{Listener, Namespace, PortUse},
};

/// Ports of the kernel's own range, 32768 to 60999.
const USUAL: u64 = 28_232;
/// From this share of the usable ports on, the range matters.
const MUCH: f64 = 0.5;
/// From this share on, it is soon too late.
const NEARLY_ALL: f64 = 0.8;
/// Most ports that are named.
const NAMED: usize = 8;

pub(super) fn look(host: &Host<'_>, findings: &mut Vec<Finding>) {
    for namespace in &host.snapshot.namespaces {
        let worst = namespace.ports.as_ref().ok().and_then(|ports| {
            ports
                .iter()
                .max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
                .filter(|it| MUCH <= it.ratio())
        });
        if let Some(worst) = worst {
            findings.extend(reuse(host, namespace, worst));
            findings.extend(narrow(host, namespace, worst));
        }
        findings.extend(taken(host, namespace));
    }
}

fn severity(of: &PortUse) -> Severity {
    if NEARLY_ALL <= of.ratio() { Severity::Warning } else { Severity::Info }
}

/// The use of ports, in words.
fn used(of: &PortUse) -> String {
    let to = of.destination;
    format!(
        "{} of {} usable ports in use from {} to {} port {}, {} of them in TIME_WAIT",
        of.used, of.usable, to.source, to.addr, to.port, to.time_wait
    )
}

/// `tcp_tw_reuse` 0 is never, 1 always, 2 on loopback alone (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c).
fn reuse(host: &Host<'_>, namespace: &Namespace, worst: &PortUse) -> Option<Finding> {
    let value = *namespace.sysctls.get("tcp_tw_reuse")?;
    let to = worst.destination;
    let applies = value == 0 || (value == 2 && !to.addr.to_canonical().is_loopback());
    if !applies || to.time_wait < worst.used / 2 {
        return None;
    }
    let timestamps = namespace.sysctls.get("tcp_timestamps") == Some(&0);
    let setting = if timestamps {
        "net.ipv4.tcp_tw_reuse=1 net.ipv4.tcp_timestamps=1"
    } else {
        "net.ipv4.tcp_tw_reuse=1"
    };
    Some(Finding {
        name: "TimeWaitNotReused",
        severity: severity(worst),
        subject: of_namespace(namespace.netns),
        seen: format!("tcp_tw_reuse = {value}; {}", used(worst)),
        why: "Each connection that was closed here keeps its port for 60 s: when none is left, connect \
              fails with EADDRNOTAVAIL. With 1, a port is taken again after a second where both ends use \
              timestamps. Better still: keep connections open."
            .to_owned(),
        mend: host.set(namespace.netns, setting),
        restart: false,
    })
}

fn narrow(host: &Host<'_>, namespace: &Namespace, worst: &PortUse) -> Option<Finding> {
    if USUAL <= worst.usable {
        return None;
    }
    let (low, high) = port_range(namespace)?;
    Some(Finding {
        name: "NarrowPortRange",
        severity: severity(worst),
        subject: of_namespace(namespace.netns),
        seen: format!("ip_local_port_range = {low} {high}; {}", used(worst)),
        why: "When none is left, connect to that destination fails with EADDRNOTAVAIL.".to_owned(),
        mend: widen_ports(host.snapshot, namespace)?,
        restart: false,
    })
}

/// A port with a listener is not chosen; one whose listener is away for a moment may be, and the bind of
/// the next one fails (`inet_csk_bind_conflict`, net/ipv4/inet_connection_sock.c).
fn taken(host: &Host<'_>, namespace: &Namespace) -> Option<Finding> {
    let (low, high) = port_range(namespace)?;
    let is_reserved = |port: u16| namespace.reserved_ports.iter().any(|it| it.contains(&port));
    let inside = |port: u16| (low..=high).contains(&port) && !is_reserved(port);
    let listeners = host.listeners(namespace.netns).filter(|it| inside(it.key.port));
    let listeners: BTreeMap<u16, &Listener> = listeners.map(|it| (it.key.port, it)).collect();
    let first = host.listener(listeners.values().next()?).name;
    let ports = listeners.keys().copied();
    let list =
        ports.clone().take(NAMED).map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
    let more = listeners.len().saturating_sub(NAMED);
    let and_more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let reserve = reserve_ports(namespace, ports)?;
    Some(Finding {
        name: "ListenerInPortRange",
        severity: Severity::Info,
        subject: of_namespace(namespace.netns),
        seen: format!(
            "ip_local_port_range = {low} {high} has the ports of listeners: {list}{and_more} ({first})"
        ),
        why: "While such a program restarts, an outbound connection may take its port, and it cannot listen \
              again (EADDRINUSE). Ports that the kernel chose for it are no concern."
            .to_owned(),
        mend: reserve.mend(host.snapshot, namespace.netns, ""),
        restart: false,
    })
}
