//! Since when nobody listens, who did, and how often the listener came back.

use std::sync::Arc;

use crate::{
    detect::{
        history::History,
        rule::{COUNTERS, minutes},
    },
    id::{Cookie, Pid},
    model::snapshot::Listener,
    time::{Monotonic, Nanos},
};

/// Times it came back that are remembered.
const RETURNS: usize = 8;

/// What is remembered of a listener's coming and going.
#[derive(Default)]
pub(super) struct Presence {
    gone: Option<Gone>,
    /// The first of its sockets.
    socket: Option<Cookie>,
    members: usize,
    /// What was accepted until the newest sample, and what of that before these sockets came.
    accepted: u64,
    accepted_before: u64,
    /// Who held it last.
    owners: Option<Arc<[Pid]>>,
    /// When it came back with other sockets, the newest first.
    returns: [Option<Monotonic>; RETURNS],
}

/// A listener that nobody listens at any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    /// Since when.
    pub(super) since: Monotonic,
    /// Connections accepted in the hour before.
    pub(super) accepted: u64,
}

impl Presence {
    /// Takes in who is there.
    pub(super) fn see(&mut self, at: Monotonic, it: &Listener, history: &History<COUNTERS>) {
        let accepted = it.counters.accepted.unwrap_or(self.accepted);
        let accepted_until_now = std::mem::replace(&mut self.accepted, accepted);
        let Some(first) = it.members.first() else {
            // what was never there is not gone
            if self.socket.is_some() && self.gone.is_none() {
                let accepted = history.growth_within(minutes(60)).by[super::ACCEPTED];
                self.gone = Some(Gone { since: at, accepted });
            }
            return;
        };
        let was_gone = self.gone.take().is_some();
        // of a group, members come and go
        let is_alone = self.members == 1 && it.members.len() == 1;
        let is_other = self
            .socket
            .is_some_and(|socket| it.members.iter().all(|member| member.cookie != socket));
        if is_other && (was_gone || is_alone) {
            self.returns.rotate_right(1);
            self.returns[0] = Some(at);
            self.accepted_before = accepted_until_now;
        }
        if is_other || self.socket.is_none() {
            self.socket = Some(first.cookie);
        }
        self.members = it.members.len();
        let is_same = |owners: &Arc<[Pid]>| Arc::ptr_eq(owners, &it.owners);
        if !it.owners.is_empty() && !self.owners.as_ref().is_some_and(is_same) {
            self.owners = Some(it.owners.clone());
        }
    }

    /// Since when it is gone, and what it did before.
    pub(super) fn gone(&self) -> Option<Gone> {
        self.gone
    }

    /// How many of `accepted` were accepted by the sockets that came last.
    pub(super) fn accepted(&self, accepted: u64) -> u64 {
        accepted.saturating_sub(self.accepted_before)
    }

    /// Who held it last, as text: ` by pid 100`.
    pub(super) fn last_held(&self) -> String {
        let pid = self.owners.as_ref().and_then(|owners| owners.first());
        pid.map_or_else(String::new, |pid| format!(" by pid {pid}"))
    }

    /// How often it came back since `within`, as far as is remembered.
    pub(super) fn returns(&self, at: Monotonic, within: Nanos) -> usize {
        let is_recent = |then: &&Option<Monotonic>| then.is_some_and(|then| at - then <= within);
        self.returns.iter().filter(is_recent).count()
    }
}
