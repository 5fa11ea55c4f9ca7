//! Who listens, or did.

use super::MEMBERS;
use crate::{
    audit::subject_of,
    detect::some,
    id::Pid,
    input::Workload,
    model::snapshot::{Listener, Snapshot},
};

pub(super) fn who(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let place = place(&listener.workload);
    let address = subject_of(listener, now).name;
    let address = address.rsplit(' ').next().unwrap_or_default();
    let comm = listener.comm.as_deref();
    if listener.members.is_empty() {
        let name = comm.unwrap_or("a process that is not known");
        let mut lines = vec![format!(
            "Nobody listens on {address} any more; {name}{place} did. Clients that connect are refused."
        )];
        if let Ok(n @ 1..) = listener.counters.aborted_listener_closed {
            let aborted = some(n, "connection that waited was", "connections that waited were");
            lines.push(format!("{aborted} reset when it closed."));
        }
        return lines;
    }
    let name = comm.unwrap_or("A process that is not known");
    let mut lines = vec![format!("{name}{}{place} listens on {address}.", pids(&listener.owners))];
    if listener.owners.is_empty() {
        lines.push("Which process that is cannot be seen without more privileges.".to_owned());
    }
    if 1 < listener.members.len() {
        let n = listener.members.len();
        lines.push(format!(
            "{n} sockets share the address (SO_REUSEPORT): the kernel gives each connection to one of them, \
             and a socket that nobody serves keeps its share."
        ));
    }
    lines
}

/// The processes that hold it.
fn pids(owners: &[Pid]) -> String {
    let pids: Vec<String> = owners.iter().take(MEMBERS).map(|pid| pid.0.to_string()).collect();
    let more = owners.len().saturating_sub(MEMBERS);
    match (&pids[..], more) {
        ([], _) => String::new(),
        ([pid], _) => format!(" (pid {pid})"),
        (pids, 0) => format!(" (pids {})", pids.join(", ")),
        (pids, more) => format!(" (pids {} and {more} more)", pids.join(", ")),
    }
}

/// The pod or the unit that it belongs to.
fn place(work: &Workload) -> String {
    let pod = work.pod.as_deref().map(|pod| {
        let namespace = work.namespace.as_deref().map_or_else(String::new, |it| format!("{it}/"));
        let container = work.container.as_deref();
        let container = container.map_or_else(String::new, |it| format!(", container {it}"));
        format!(" in pod {namespace}{pod}{container}")
    });
    let place = pod.or_else(|| work.unit.as_deref().map(|unit| format!(" of {unit}")));
    place.unwrap_or_default()
}
