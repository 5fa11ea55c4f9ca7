//! All other network namespaces in a sample.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use thiserror::Error;

use super::{Sources, ebpf::Programs, inside};
use crate::{
    id::Cookie,
    input::{Absent, Known, NamespaceSample, SlotsSample},
    sys::clock,
    time::Monotonic,
};

/// Why other namespaces cannot be looked at.
#[derive(Debug, Error)]
#[error("other network namespaces cannot be entered (needs CAP_SYS_ADMIN and CAP_SYS_PTRACE)")]
struct Refused(#[source] io::Error);

impl Sources {
    /// Follows the listeners from before the agent, and the connections that they have: once, right
    /// after the programs are loaded.
    pub(super) fn adopt(&mut self) {
        let at = clock::monotonic();
        if let Some(spaces) = &mut self.spaces {
            let found = spaces.find_now(self.netns, at);
            let _ = self.note("namespaces", found);
        }
        let mut sockets = Vec::new();
        let dumped = self.sock_diag.listen(&mut sockets);
        if self.note("sock_diag", dumped).is_ok()
            && let Ok(programs) = &mut self.programs
        {
            let adopted = programs.adopt(self.netns, sockets.len(), true);
            let _ = self.note("adopt", adopted);
        }
        self.enter_spaces(at, &Err(Absent::TooEarly), false);
    }

    /// The counters of the other namespaces, of those whose turn it is.
    pub(super) fn read_spaces(&mut self, at: Monotonic) {
        let Some(spaces) = &mut self.spaces else { return };
        let active = self.programs.as_ref().map_or_else(|_| BTreeMap::new(), Programs::activity);
        spaces.update(self.netns, at, &active);
        spaces.read(at, &active);
        let result = match spaces.unreadable() {
            0 => Ok(()),
            _ => {
                Err("namespaces of some processes cannot be told: listeners from before the start \
                      may be missing there (needs CAP_SYS_PTRACE, and no security module that \
                      refuses all the same)")
            }
        };
        let _ = self.note("processes", result);
    }

    /// Enters the other namespaces whose turn it is: for what can only be read inside, and to follow
    /// listeners that have no record.
    pub(super) fn enter_spaces(&mut self, at: Monotonic, slots: &Known<SlotsSample>, swept: bool) {
        let Some(spaces) = &mut self.spaces else { return };
        let due = spaces.enter_next(at, swept, self.passes == 0);
        if due.is_empty() {
            return;
        }
        let known: BTreeSet<Cookie> = match slots {
            Ok(slots) => slots.records.iter().map(|record| record.cookie).collect(),
            Err(_) => BTreeSet::new(),
        };
        let mut refused = Ok(());
        for (netns, inside) in inside::look(due, &mut self.programs, &known) {
            match inside {
                Ok(inside) => spaces.entered(netns, at, inside),
                Err(err) => {
                    if err.kind() == io::ErrorKind::PermissionDenied {
                        refused = Err(Refused(err));
                    }
                    spaces.lost(netns, at);
                }
            }
        }
        let _ = self.note("namespaces", refused);
    }

    /// The agent's own namespace, and the others as they were last read.
    pub(super) fn namespaces(
        &mut self,
        own: NamespaceSample,
        slots: &Known<SlotsSample>,
        swept: bool,
    ) -> Vec<NamespaceSample> {
        let mut all = vec![own];
        let Some(spaces) = &mut self.spaces else { return all };
        let records = slots.as_ref().map_or(&[][..], |slots| &slots.records);
        all.extend(spaces.samples(records, swept));
        all.sort_unstable_by_key(|namespace| namespace.netns);
        all
    }
}
