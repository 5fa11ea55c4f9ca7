use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    thread,
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::rate::ticks;

fn limit(connections: usize) -> PerIp {
    PerIp { capacity: 64, ..PerIp::connections(connections) }
}

fn map(limit: PerIp) -> PeerMap {
    PeerMap::new(limit).expect("it holds")
}

/// A table of one set.
fn one_set(limit: PerIp) -> PeerMap {
    let mut map = map(limit);
    map.sets = Box::new([Mutex::new([Peer::FREE; WAYS])]);
    map
}

fn v4(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(n).into()
}

#[test]
fn refuses_what_cannot_hold() {
    #[track_caller]
    fn check(limit: PerIp, expected: &str) {
        assert_eq!(PeerMap::new(limit).expect_err("out of range").to_string(), expected);
    }
    check(limit(0), "limit per peer is 0, expected 1 to 2097151");
    let prefix = |ipv6_prefix| PerIp { ipv6_prefix, ..limit(1) };
    check(prefix(47), "IPv6 prefix of a peer is 47, expected 48 to 128");
    check(prefix(129), "IPv6 prefix of a peer is 129, expected 48 to 128");
    let capacity = |capacity| PerIp { capacity, ..limit(1) };
    check(capacity(63), "capacity for peers is 63, expected 64 to 1048576");
    let rate = PerIp { rate: Some(Rate::per_second(1).burst(0)), ..limit(1) };
    check(rate, "burst per peer is 0, expected 1 to 1000000");
}

#[test]
fn a_network_is_one_peer_and_others_are_untouched() {
    let map = map(limit(100));
    let network = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0).to_bits();
    let mut places = Vec::new();
    for n in 0..1_000_000_u128 {
        match map.take(Ipv6Addr::from_bits(network | n << 40 | n).into(), 0) {
            Ok(place) => places.extend(place),
            Err(reason) => assert_eq!(reason, Reason::PerIp),
        }
    }
    assert_eq!((places.len(), map.tracked(0)), (100, 1));
    let other = Ipv6Addr::from_bits(network + (1 << 64));
    places.extend(map.take(other.into(), 0).expect("another network"));
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    places.extend(map.take(mapped.into(), 0).expect("an IPv4 address"));
    places.extend(map.take(Ipv4Addr::LOCALHOST.into(), 0).expect("the same one"));
    assert_eq!((places.len(), map.tracked(0)), (103, 3));
    places.into_iter().for_each(|place| map.give_back(place));
    assert_eq!((map.tracked(0), map.full()), (0, 0));
}

#[test]
fn a_hundred_thousand_peers_have_no_more_places_than_there_are() {
    assert!(size_of::<Mutex<Set>>() <= 272, "{}", size_of::<Mutex<Set>>());
    for (when_full, expected) in
        [(WhenFull::Admit, Ok(None)), (WhenFull::Shed, Err(Reason::PerIpFull))]
    {
        let map = map(PerIp { capacity: 4_096, when_full, ..limit(1) });
        let (mut places, mut n_full) = (Vec::new(), 0);
        for n in 0..100_000 {
            match map.take(v4(n), 0) {
                Ok(Some(place)) => places.push(place),
                full => {
                    assert_eq!(full, expected);
                    n_full += 1;
                }
            }
        }
        assert_eq!((places.len(), map.tracked(0), map.sets.len()), (4_096, 4_096, 512));
        assert_eq!((n_full, map.full(), map.evicted()), (95_904, 95_904, 0));
        places.into_iter().for_each(|place| map.give_back(place));
        assert_eq!(map.tracked(0), 0);
    }
}

#[test]
fn who_only_has_a_bucket_makes_room_for_others() {
    let map = map(PerIp { rate: Some(Rate::per_second(1)), when_full: WhenFull::Shed, ..limit(1) });
    for n in 0..100_000 {
        let place = map.take(v4(n), u64::from(n)).expect("room").expect("a place");
        map.give_back(place);
    }
    assert_eq!((map.tracked(100_000), map.evicted(), map.full()), (64, 99_936, 0));
    assert_eq!(map.tracked(ticks(Duration::from_secs(2))), 0);
}

#[test]
fn threads_never_go_over_the_limit_of_a_peer() {
    let map = map(limit(3));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..5_000 {
                    let taken = map.take(v4(n % 3), 0).ok().flatten();
                    assert!(
                        map.sets.iter().all(|it| it.lock().unwrap().iter().all(|it| it.count <= 3))
                    );
                    if let Some(place) = taken {
                        map.give_back(place);
                    }
                }
            });
        }
    });
    assert_eq!(map.tracked(0), 0);
}

/// What a table of one set should do, told with a map.
#[derive(Default)]
struct Model {
    /// Connections, and when the bucket is full.
    peers: HashMap<u128, (u32, u64)>,
    evicted: u64,
    full: u64,
}

impl Model {
    fn take(&mut self, limit: &PerIp, pace: Option<Pace>, key: u128, now: u64) -> Option<Reason> {
        self.peers.retain(|_, (count, full_at)| *count != 0 || now < *full_at);
        if !self.peers.contains_key(&key) && self.peers.len() == WAYS {
            let idle = self.peers.iter().filter(|(_, (count, _))| *count == 0);
            let Some((&key, _)) = idle.min_by_key(|(key, (_, full_at))| (*full_at, **key)) else {
                self.full += 1;
                return Some(Reason::PerIpFull);
            };
            self.peers.remove(&key);
            self.evicted += 1;
        }
        let (count, full_at) = self.peers.entry(key).or_default();
        if limit.connections <= *count as usize {
            return Some(Reason::PerIp);
        }
        match pace.map_or(Some(0), |pace| pace.take(*full_at, now)) {
            None => Some(Reason::PerIp),
            Some(bucket) => {
                (*count, *full_at) = (*count + 1, bucket);
                None
            }
        }
    }
}

proptest! {
    #[test]
    fn does_what_a_map_of_a_set_does(
        connections in 1_usize..4,
        rate in prop::option::of((1_u32..4, 1_u32..4)),
        steps in prop::collection::vec((0_u32..12, 0_u8..4, 0_u64..500), 1..300),
    ) {
        let rate = rate.map(|(per_second, burst)| Rate { per_second, burst });
        let limit = PerIp { rate, when_full: WhenFull::Shed, ..limit(connections) };
        let (map, mut model) = (one_set(limit), Model::default());
        let (mut now, mut places) = (0, Vec::<(u128, Place)>::new());
        for (peer, action, wait) in steps {
            now += ticks(Duration::from_millis(wait));
            let key = cidr::key(v4(peer), 64);
            if action < 2 {
                let expected = model.take(&limit, map.pace, key, now);
                match map.take(v4(peer), now) {
                    Ok(place) => {
                        prop_assert_eq!(expected, None);
                        places.push((key, place.expect("sheds when full")));
                    }
                    Err(reason) => prop_assert_eq!(expected, Some(reason)),
                }
            } else if !places.is_empty() {
                let (key, place) = places.swap_remove(peer as usize % places.len());
                let (count, full_at) = model.peers.get_mut(&key).expect("it has connections");
                *count -= 1;
                if action == 2 {
                    map.give_back(place);
                } else {
                    map.undo(place);
                    *full_at = map.pace.map_or(0, |pace| pace.give_back(*full_at));
                }
            }
            let is_live = |(count, full_at): &&(_, _)| *count != 0 || now < *full_at;
            let n_live = model.peers.values().filter(is_live).count();
            prop_assert_eq!(map.tracked(now), n_live as u64);
            prop_assert_eq!((map.evicted(), map.full()), (model.evicted, model.full));
        }
        places.into_iter().for_each(|(_, place)| map.give_back(place));
        prop_assert_eq!(map.tracked(now + ticks(Duration::from_secs(5))), 0);
    }
}
