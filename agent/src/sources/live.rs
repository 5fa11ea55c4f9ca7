//! Which sockets listen, from pass to pass.
//!
//! A dump by sock_diag costs 0.5 µs per listener and shows what never changes (inode, user,
//! address) together with what does. While the iterator comes by exactly the sockets of the last
//! dump, what does change is taken from it, and there is no dump.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    id::Cookie,
    input::ListenSocket,
    sources::ebpf::{Look, maps::Visit},
};

/// In this many passes at least one has a dump, whatever the iterator says.
const DUMP_EVERY: u32 = 30;

/// The sockets of the last dump.
#[derive(Debug, Default)]
pub(super) struct Live {
    sockets: BTreeMap<Cookie, ListenSocket>,
    /// Passes that may go without a dump.
    trust: u32,
    no_slot: u64,
}

impl Live {
    /// Whether the iterator is to be asked before a dump. `no_slot` counts listeners that found no
    /// slot: it might not come by the newest of them.
    pub(super) fn is_trusted(&mut self, no_slot: u64) -> bool {
        let same = no_slot == std::mem::replace(&mut self.no_slot, no_slot);
        same && 0 < self.trust && !self.sockets.is_empty()
    }

    /// How many there were.
    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Takes in a dump.
    pub(super) fn dumped(&mut self, sockets: &[ListenSocket]) {
        self.sockets = sockets.iter().map(|socket| (socket.cookie, *socket)).collect();
        self.trust = DUMP_EVERY;
    }

    /// The sockets as the iterator saw them; `None` when it came by other sockets than those of the
    /// last dump, and a dump is needed.
    pub(super) fn seen_again(&mut self, look: &Look) -> Option<Vec<ListenSocket>> {
        self.trust -= 1;
        if 0 < look.unfollowed || 0 < look.missed || look.visits.len() != self.sockets.len() {
            return None;
        }
        let again = |(cookie, visit): &(Cookie, _)| {
            let Visit { length, limit, drops, .. } = *visit;
            Some(ListenSocket { length, limit, drops: Ok(drops), ..*self.sockets.get(cookie)? })
        };
        look.visits.iter().map(again).collect()
    }
}

/// Sockets of the newest dump that have no record, where the sweep sees all others.
#[derive(Debug, Default)]
pub(super) struct Extra {
    sockets: Vec<ListenSocket>,
    passes: u32,
    no_slot: u64,
}

impl Extra {
    /// Whether there may be one: the newest dump had one, a listener found no slot since, or the
    /// newest dump is long ago.
    pub(super) fn is_due(&mut self, no_slot: u64) -> bool {
        let more = no_slot != std::mem::replace(&mut self.no_slot, no_slot);
        let is_turn = self.passes.is_multiple_of(DUMP_EVERY);
        self.passes = self.passes.wrapping_add(1);
        more || is_turn || self.any()
    }

    /// Takes in a dump, without those that the sweep saw.
    pub(super) fn dumped(&mut self, mut sockets: Vec<ListenSocket>, swept: &[ListenSocket]) {
        let swept: BTreeSet<Cookie> = swept.iter().map(|socket| socket.cookie).collect();
        sockets.retain(|socket| !swept.contains(&socket.cookie));
        self.sockets = sockets;
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        !self.sockets.is_empty()
    }

    /// They.
    pub(super) fn sockets(&self) -> &[ListenSocket] {
        &self.sockets
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::id::Inode;

    fn socket(cookie: u64, length: u32) -> ListenSocket {
        ListenSocket {
            cookie: Cookie(cookie),
            inode: Inode(cookie),
            addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 80,
            v6only: false,
            length,
            limit: 5,
            drops: Ok(0),
        }
    }

    fn look(cookies: &[u64], unfollowed: u64, missed: u64) -> Look {
        let visit = Visit { length: 3, limit: 7, drops: 9, ..Visit::default() };
        let visits = cookies.iter().map(|cookie| (Cookie(*cookie), visit)).collect();
        Look { visits, unfollowed, missed }
    }

    #[track_caller]
    fn check(look: &Look, again: bool) {
        let mut live = Live::default();
        live.dumped(&[socket(1, 0), socket(2, 0)]);
        let expected = ListenSocket { limit: 7, drops: Ok(9), ..socket(1, 3) };
        assert_eq!(again.then_some(expected), live.seen_again(look).map(|s| s[0]), "{look:?}");
    }

    #[test]
    fn the_same_sockets_need_no_dump_and_any_other_set_does() {
        check(&look(&[1, 2], 0, 0), true);
        check(&look(&[1], 0, 0), false);
        check(&look(&[1, 3], 0, 0), false);
        check(&look(&[1, 2], 1, 0), false);
        check(&look(&[1, 2], 0, 1), false);
    }

    #[test]
    fn trust_ends() {
        let mut live = Live::default();
        assert!(!live.is_trusted(0));
        live.dumped(&[]);
        assert!(!live.is_trusted(0));
        live.dumped(&[socket(1, 0)]);
        for _ in 0..DUMP_EVERY {
            assert!(live.is_trusted(0));
            live.seen_again(&look(&[1], 0, 0)).expect("the same");
        }
        assert!(!live.is_trusted(0));
        live.dumped(&[socket(1, 0)]);
        assert!(!live.is_trusted(1));
        assert!(live.is_trusted(1));
    }
}
