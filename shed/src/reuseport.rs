//! Several sockets on one address, each with an accept loop, and one pair of limits.
//!
//! The kernel chooses a member for each handshake (SO_REUSEPORT, socket(7)). A member that leaves
//! would take with it what is queued there; so handshakes are steered to the others first, its
//! queue is emptied, and then it is closed. The last one leaves first: the kernel puts the last
//! member in the place of one that closes, and steering goes by places.

use std::{net::SocketAddr, sync::Arc};

use socket2::Socket;

use crate::{
    build_error::BuildError,
    drain::Stage,
    handle::Handle,
    leave,
    listener::ShedListener,
    plan::Plan,
    socket::{self, Reuse},
};

/// Members of one listener. Made by [`Builder::build_group`](crate::Builder::build_group).
#[derive(Debug)]
pub struct Group {
    plan: Plan,
    address: SocketAddr,
    /// A member left: from then on they are chosen by chance among a number that is told, and not
    /// by a hash among all.
    is_steered: bool,
}

impl Group {
    pub(crate) fn new(plan: Plan, address: SocketAddr) -> Self {
        Self { plan, address, is_steered: false }
    }

    /// What watches and steers all members.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.plan.shared))
    }

    /// How many members there are.
    #[must_use]
    pub fn members(&self) -> usize {
        self.plan.shared.life.n_members()
    }

    pub(crate) fn member(&self, socket: Socket) -> Result<ShedListener, BuildError> {
        self.plan.listener(socket)
    }

    /// One more member, the last one.
    ///
    /// # Errors
    /// There is no socket for it, the listener was closed or ends by a drain, or a member is
    /// leaving: one whose [`shrink`](Self::shrink) was dropped, say.
    pub fn grow(&mut self) -> Result<ShedListener, BuildError> {
        let shared = &self.plan.shared;
        if shared.is_closed() || Stage::Closing <= shared.life.stage() {
            return Err(BuildError::Closed);
        }
        if shared.life.is_leaving() {
            return Err(BuildError::Leaving);
        }
        let member = self.member(socket::bind(self.address, Reuse::Join)?)?;
        // last: a member that fails before is closed, and must not get anything
        if self.is_steered {
            let members = u32::try_from(self.members()).unwrap_or(u32::MAX);
            member
                .socket()
                .and_then(|socket| leave::steer(socket, members))
                .map_err(|source| BuildError::call("SO_ATTACH_REUSEPORT_CBPF", source))?;
        }
        Ok(member)
    }

    /// Has the last member leave, without a connection lost: its
    /// [`accept`](ShedListener::accept) gives what is queued and then ends with
    /// [`AcceptError::Closed`](crate::AcceptError::Closed). Ends when it is gone; gives `false`, if
    /// it is the only one. Who knocks in the very moment of its close may have to knock again,
    /// which TCP does a second later.
    pub async fn shrink(&mut self) -> bool {
        let life = &self.plan.shared.life;
        let Some(n_others) = life.leave_last() else { return false };
        self.is_steered = true;
        self.plan.shared.gate.wake();
        life.at_most(n_others).await;
        true
    }
}
