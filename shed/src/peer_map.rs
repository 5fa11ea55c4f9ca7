//! How many connections each peer has open, and how many it opened of late.
//!
//! A table that whoever attacks cannot make grow: its size is fixed when it is built. It has sets
//! of a few places each; which set a peer belongs to is hashed with a random seed, so that nobody
//! can aim at one. A peer has a place only as long as it has connections open or its bucket is not
//! full. Where a set has no free place, the peer without connections that is nearest to a full
//! bucket gives way; where all have connections, the table is full for the one who comes.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    cidr,
    limits::MAX_LIMIT,
    range::OutOfRange,
    rate::{Pace, Rate},
    reason::Reason,
};

/// What one peer may have. A peer is an IPv4 address or an IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerIp {
    /// Connections that it may have open. 1 to [`MAX_LIMIT`].
    pub connections: usize,
    /// How fast it may open them. `None`: as fast as it likes.
    pub rate: Option<Rate>,
    /// Bits of an IPv6 address that are the network of one peer. 48 to 128.
    pub ipv6_prefix: u8,
    /// Peers that are kept in mind at once, 34 bytes each. 64 to 1,048,576.
    pub capacity: usize,
    /// What becomes of those for whom there is no place.
    pub when_full: WhenFull,
}

impl PerIp {
    /// So many connections, at any rate; IPv6 by /64, 65,536 peers, admits when full.
    #[must_use]
    pub const fn connections(n: usize) -> Self {
        Self {
            connections: n,
            rate: None,
            ipv6_prefix: 64,
            capacity: 65_536,
            when_full: WhenFull::Admit,
        }
    }
}

/// What becomes of a peer for whom the table has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It is not limited.
    Admit,
    /// It is shed: [`Reason::PerIpFull`].
    Shed,
}

/// Places of a set: 256 bytes.
const WAYS: usize = 8;

/// A peer; free where it has no connections and a full bucket.
#[derive(Clone, Copy, Debug)]
struct Peer {
    key: u128,
    /// When the bucket is full, in ticks.
    bucket: u64,
    count: u32,
}

impl Peer {
    const FREE: Self = Self { key: 0, bucket: 0, count: 0 };

    fn is_free(&self, now: u64) -> bool {
        self.count == 0 && self.bucket <= now
    }
}

type Set = [Peer; WAYS];

/// A connection's place in the table, which stays where it is until it is given back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is not given back counts for ever"]
pub(crate) struct Place {
    set: usize,
    way: usize,
}

/// The table.
#[derive(Debug)]
pub(crate) struct PeerMap {
    sets: Box<[Mutex<Set>]>,
    seed: RandomState,
    connections: u32,
    pace: Option<Pace>,
    ipv6_prefix: u8,
    when_full: WhenFull,
    evicted: AtomicU64,
    full: AtomicU64,
}

impl PeerMap {
    /// # Errors
    /// A number is out of its range.
    pub(crate) fn new(limit: PerIp) -> Result<Self, OutOfRange> {
        let PerIp { connections, rate, ipv6_prefix, capacity, when_full } = limit;
        let most = MAX_LIMIT as u64;
        OutOfRange::check("limit per peer", connections as u64, 1, most)?;
        OutOfRange::check("IPv6 prefix of a peer", ipv6_prefix.into(), 48, 128)?;
        OutOfRange::check("capacity for peers", capacity as u64, 64, 1 << 20)?;
        let pace = rate.map(|it| Pace::new(it, ["rate per peer", "burst per peer"])).transpose()?;
        let sets = capacity.div_ceil(WAYS);
        Ok(Self {
            sets: (0..sets).map(|_| Mutex::new([Peer::FREE; WAYS])).collect(),
            seed: RandomState::new(),
            connections: u32::try_from(connections).expect("at most 21 bits"),
            pace,
            ipv6_prefix,
            when_full,
            evicted: AtomicU64::new(0),
            full: AtomicU64::new(0),
        })
    }

    /// Takes a connection, and a token, of `address`. `None`: it is not limited, since the table is
    /// full.
    pub(crate) fn take(&self, address: IpAddr, now: u64) -> Result<Option<Place>, Reason> {
        let key = cidr::key(address, self.ipv6_prefix);
        let set = self.set_of(key);
        let mut peers = self.lock(set);
        // where it is free, it is as good as another
        let known = peers.iter().position(|peer| peer.key == key);
        let Some(way) = known.or_else(|| self.make_room(&mut peers, key, now)) else {
            self.full.fetch_add(1, Ordering::Relaxed);
            return match self.when_full {
                WhenFull::Admit => Ok(None),
                WhenFull::Shed => Err(Reason::PerIpFull),
            };
        };
        let peer = &mut peers[way];
        if self.connections <= peer.count {
            return Err(Reason::PerIp);
        }
        if let Some(pace) = self.pace {
            peer.bucket = pace.take(peer.bucket, now).ok_or(Reason::PerIp)?;
        }
        peer.count += 1;
        Ok(Some(Place { set, way }))
    }

    /// The way of a place that is free, or was made so, for `key`.
    fn make_room(&self, peers: &mut Set, key: u128, now: u64) -> Option<usize> {
        let free = peers.iter().position(|peer| peer.is_free(now));
        let way = free.or_else(|| {
            let idle = peers.iter().enumerate().filter(|(_, peer)| peer.count == 0);
            let nearest = idle.min_by_key(|(_, peer)| (peer.bucket, peer.key));
            self.evicted.fetch_add(nearest.is_some().into(), Ordering::Relaxed);
            nearest.map(|(way, _)| way)
        })?;
        peers[way] = Peer { key, ..Peer::FREE };
        Some(way)
    }

    /// A connection ended.
    pub(crate) fn give_back(&self, place: Place) {
        self.change(place, |_| {});
    }

    /// A connection was not admitted after all: its token comes back, too.
    pub(crate) fn undo(&self, place: Place) {
        self.change(place, |peer| {
            if let Some(pace) = self.pace {
                peer.bucket = pace.give_back(peer.bucket);
            }
        });
    }

    #[expect(clippy::needless_pass_by_value, reason = "a place is given back once")]
    fn change(&self, place: Place, more: impl FnOnce(&mut Peer)) {
        let peer = &mut self.lock(place.set)[place.way];
        debug_assert_ne!(peer.count, 0, "given back once more than taken");
        peer.count -= 1;
        more(peer);
    }

    /// Peers that have a place.
    pub(crate) fn tracked(&self, now: u64) -> u64 {
        let of_set = |set| self.lock(set).iter().filter(|peer| !peer.is_free(now)).count() as u64;
        (0..self.sets.len()).map(of_set).sum()
    }

    /// Peers that lost their place to others, and with it what their bucket knew.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Connections for whose peers there was no place.
    pub(crate) fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    fn set_of(&self, key: u128) -> usize {
        let n = self.sets.len() as u64;
        usize::try_from(self.seed.hash_one(key) % n).expect("below a length")
    }

    fn lock(&self, set: usize) -> MutexGuard<'_, Set> {
        self.sets[set].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
