//! What a connection takes while it is decided about: all of it, or nothing.

use std::{mem, net::IpAddr};

use crate::{peer_map::Place, reason::Reason, shared::Shared};

/// Places that were taken so far, in the order of taking. Dropped, they are given back as if they
/// had never been taken.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    shared: &'a Shared,
    has_soft: bool,
    has_rate: bool,
    peer: Option<Place>,
}

impl<'a> Places<'a> {
    /// Takes a place of the hard limit, which holds for everybody.
    pub(crate) fn hard(shared: &'a Shared) -> Result<Self, Reason> {
        if !shared.gate.take_hard() {
            return Err(Reason::Hard);
        }
        Ok(Self { shared, has_soft: false, has_rate: false, peer: None })
    }

    /// Takes a place of the soft limit.
    pub(crate) fn soft(&mut self) -> Result<(), Reason> {
        self.has_soft = self.shared.gate.take_soft();
        if self.has_soft { Ok(()) } else { Err(Reason::Soft) }
    }

    /// Takes a token of the listener's rate.
    pub(crate) fn rate(&mut self) -> Result<(), Reason> {
        self.has_rate = self.shared.policy.take_rate();
        if self.has_rate { Ok(()) } else { Err(Reason::Rate) }
    }

    /// Takes one of what its peer may have.
    pub(crate) fn peer(&mut self, address: IpAddr) -> Result<(), Reason> {
        self.peer = self.shared.policy.take_peer(address)?;
        Ok(())
    }

    /// The connection is admitted: they are its permit's, which gives them back.
    pub(crate) fn keep(mut self) -> Option<Place> {
        let peer = self.peer.take();
        mem::forget(self);
        peer
    }
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        let Shared { gate, policy, .. } = self.shared;
        if let Some(place) = self.peer.take() {
            policy.undo_peer(place);
        }
        if self.has_rate {
            policy.give_back_rate();
        }
        if self.has_soft {
            gate.give_back_soft();
        }
        gate.give_back_hard();
    }
}
