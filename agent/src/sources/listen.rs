//! The sockets of the agent's namespace that listen: by the sweep, else by the iterator or dumps.

use super::{Sources, Timer, ebpf::Look, sock_diag::SockDiagError};
use crate::{
    id::NetnsId,
    input::{Known, ListenSocket, SlotsSample, Source},
};

impl Sources {
    pub(super) fn sweep(&mut self, slots: &mut Known<SlotsSample>) -> bool {
        let (Ok(programs), Ok(slots)) = (&mut self.programs, slots) else { return false };
        let result = programs.sweep(slots);
        self.note("sweep", result).unwrap_or(false)
    }

    /// The sockets of the agent's namespace that listen: as the sweep saw them, and what has no
    /// record.
    pub(super) fn swept_sockets(
        &mut self,
        slots: &mut Known<SlotsSample>,
        timer: &mut Timer,
    ) -> Vec<ListenSocket> {
        let mut sockets = swept(slots, self.netns);
        let no_slot = slots.as_ref().map_or(0, |slots| slots.no_slot);
        // without a dump those that have a record are known all the same
        if self.extra.is_due(no_slot)
            && let Ok(dumped) = timer.time(Source::SockDiag, || self.dump())
        {
            let n_listeners = dumped.len();
            self.extra.dumped(dumped, &sockets);
            if self.extra.any() {
                // gives them records, if there is room
                timer.time(Source::Ebpf, || self.look(slots, n_listeners));
            }
        }
        sockets.extend(self.extra.sockets());
        sockets.sort_unstable_by_key(|socket| socket.cookie);
        sockets
    }

    /// The sockets that listen: as the iterator saw them, or a dump.
    pub(super) fn read_sockets(
        &mut self,
        slots: &mut Known<SlotsSample>,
        timer: &mut Timer,
    ) -> Known<Vec<ListenSocket>> {
        let no_slot = slots.as_ref().map_or(0, |slots| slots.no_slot);
        if self.live.is_trusted(no_slot) {
            let look = timer.time(Source::Ebpf, || self.look(slots, self.live.len()));
            if let Some(sockets) = look.and_then(|look| self.live.seen_again(&look)) {
                return Ok(sockets);
            }
        }
        let sockets = timer.time(Source::SockDiag, || self.dump());
        self.live.dumped(sockets.as_deref().unwrap_or_default());
        // for the SYN queues, and for listeners that have no slot so far
        timer.time(Source::Ebpf, || self.look(slots, self.live.len()));
        sockets
    }

    fn dump(&mut self) -> Known<Vec<ListenSocket>> {
        let mut sockets = Vec::new();
        let result = self.sock_diag.listen(&mut sockets);
        let absent = result.as_ref().map_err(SockDiagError::absent).err();
        let known = self.note("sock_diag", result).map(|()| sockets);
        known.map_err(|unreadable| absent.unwrap_or(unreadable))
    }

    pub(super) fn look(
        &mut self,
        slots: &mut Known<SlotsSample>,
        n_listeners: usize,
    ) -> Option<Look> {
        let (Ok(programs), Ok(slots)) = (&mut self.programs, slots) else { return None };
        let result = programs.look(slots, self.netns, n_listeners);
        self.note("iterator", result).ok().flatten()
    }
}

/// The listeners of a namespace, as the sweep saw them.
fn swept(slots: &Known<SlotsSample>, netns: NetnsId) -> Vec<ListenSocket> {
    let records = slots.as_ref().map_or(&[][..], |slots| &slots.records);
    records.iter().filter(|record| record.netns == netns).filter_map(|record| record.live).collect()
}
