//! How fast each source sends, in a table that does not grow. Pure: time is passed in.
//!
//! One number says all of a token bucket: when it will be full again. One that is full already is
//! as good as unknown, so its place is free.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher as _,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use super::config::SourceRate;

/// Places for one source: those of its set.
const WAYS: usize = 4;

#[derive(Clone, Copy, Default)]
struct Bucket {
    key: u64,
    /// Nanoseconds.
    full_at: u64,
}

/// The buckets of all sources.
pub(super) struct Sources {
    /// Sources that nobody can foresee the places of.
    hasher: RandomState,
    sets: Box<[[Bucket; WAYS]]>,
    /// Nanoseconds until a datagram's token is there again, and until all of them are.
    each: u64,
    all: u64,
}

impl Sources {
    pub(super) fn new(rate: SourceRate) -> Self {
        let each = 1_000_000_000 / u64::from(rate.per_second);
        Self {
            hasher: RandomState::new(),
            sets: vec![[Bucket::default(); WAYS]; rate.sources.div_ceil(WAYS)].into(),
            each,
            all: each * u64::from(rate.burst),
        }
    }

    /// Whether a datagram from `source` is within its rate; if so, it is counted. One for which
    /// there is no place is admitted: nobody is refused for what others do. `now` never goes back.
    pub(super) fn admits(&mut self, source: IpAddr, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let key = self.hasher.hash_one(network(source));
        let n = self.sets.len() as u64;
        let set = usize::try_from(key % n).expect("below a length");
        let set = &mut self.sets[set];
        let known = set.iter().position(|it| it.key == key && now < it.full_at);
        let free = || set.iter().position(|it| it.full_at <= now);
        let Some(place) = known.or_else(free) else {
            return true;
        };
        let begins = if known.is_some() { set[place].full_at } else { now };
        let full_at = begins + self.each;
        if self.all < full_at - now {
            return false;
        }
        set[place] = Bucket { key, full_at };
        true
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("sets", &self.sets.len()).finish_non_exhaustive()
    }
}

/// An IPv4 address, or the /64 of an IPv6 one: who has one address of it has all.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}
