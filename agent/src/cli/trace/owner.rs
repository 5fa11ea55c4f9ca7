//! Who owns which listener, for events of which the hook saw no task; pure.

use std::collections::BTreeMap;

use crate::{
    event::{Event, EventKind, Filter, Task},
    id::{Cookie, NetnsId},
    input::{ListenSocket, Sample},
};

/// The owners of listeners, by the listener's cookie: those that listen, and those that are gone
/// while a record still counts their connections.
#[derive(Debug, Default)]
pub(super) struct Owners {
    listeners: BTreeMap<Cookie, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Lowest pid first.
    owners: Vec<Task>,
    /// Was not in the newest sample. Forgotten when it is not in the next one either.
    missed: bool,
}

impl Owners {
    /// Takes over what a sample shows.
    pub(super) fn update(&mut self, sample: &Sample) {
        self.listeners.retain(|_, known| !std::mem::replace(&mut known.missed, true));
        for (_, socket) in sockets(sample) {
            let known = self.listeners.entry(socket.cookie).or_default();
            known.missed = false;
            let pids = sample.owners.get(&socket.inode).map(Vec::as_slice).unwrap_or_default();
            let named = pids.iter().filter_map(|pid| {
                let process = sample.processes.get(pid)?;
                Some(Task { pid: *pid, comm: process.comm.to_string() })
            });
            let owners: Vec<_> = named.collect();
            // not looked for so far: what listen(2) told is better than nothing
            if !owners.is_empty() {
                known.owners = owners;
            }
        }
        for record in sample.slots.iter().flat_map(|slots| &slots.records) {
            if let Some(known) = self.listeners.get_mut(&record.cookie) {
                known.missed = false;
            }
        }
    }

    /// Takes over who called listen(2), until a sample shows who holds the socket.
    pub(super) fn learn(&mut self, event: &Event) {
        if let (EventKind::Listen, Some(cookie), Some(task)) =
            (event.kind, event.cookie, &event.task)
        {
            let known = self.listeners.entry(cookie).or_default();
            known.missed = false;
            if known.owners.is_empty() {
                known.owners.push(task.clone());
            }
        }
    }

    /// The owner with the lowest pid.
    pub(super) fn of(&self, cookie: Cookie) -> Option<&Task> {
        self.listeners.get(&cookie)?.owners.first()
    }

    /// Whether events of this listener are wanted for the sake of its owners.
    pub(super) fn are_watched(&self, cookie: Cookie, filter: &Filter) -> bool {
        let known = self.listeners.get(&cookie);
        let owners = known.map(|known| known.owners.as_slice()).unwrap_or_default();
        filter.watches(owners.iter().map(|owner| (owner.pid, owner.comm.as_str())))
    }

    /// How many of the sockets that listen `filter` takes, whatever happens to them.
    pub(super) fn count(&self, sample: &Sample, filter: &Filter) -> usize {
        let takes = |&(netns, socket): &(NetnsId, &ListenSocket)| {
            filter.port.is_none_or(|port| port == socket.port)
                && filter.netns.is_none_or(|wanted| wanted == netns)
                && (!filter.by_owner() || self.are_watched(socket.cookie, filter))
        };
        sockets(sample).filter(takes).count()
    }
}

fn sockets(sample: &Sample) -> impl Iterator<Item = (NetnsId, &ListenSocket)> {
    sample.namespaces.iter().flat_map(|namespace| {
        let sockets = namespace.sockets.as_deref().unwrap_or_default();
        sockets.iter().map(|socket| (namespace.netns, socket))
    })
}
