//! What decides about a connection beside the soft and the hard limit: who is exempt, the rate,
//! what one peer may have, and who passes connections of others on.

use std::{net::IpAddr, time::Duration};

use tokio::time::Instant;

use crate::{
    cidr::Cidr,
    peer_map::{PeerMap, PerIp, Place},
    range::OutOfRange,
    rate::{self, Bucket, Pace, Rate},
    reason::Reason,
    stats::Stats,
};

/// Who passes connections of others on, and says whose in a header of the PROXY protocol.
///
/// Their connections have to begin with a header; what others send is left alone. The peer of such
/// a connection is who the header names, for [`PerIp`] and [`Decide`](crate::Decide), too. Where it
/// names nobody, it is the proxy, whose own connections are not limited by peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// The proxies' own addresses.
    pub from: Vec<Cidr>,
    /// By when the whole header has to be there. 1 ms to 60 s.
    pub deadline: Duration,
    /// Connections whose header is awaited at once; others are shed. 1 to 65,536.
    pub max: usize,
}

impl ProxyProtocol {
    /// From these proxies, within 3 s, 1,024 at once.
    #[must_use]
    pub fn from(proxies: impl IntoIterator<Item = Cidr>) -> Self {
        let from = proxies.into_iter().collect();
        Self { from, deadline: Duration::from_secs(3), max: 1_024 }
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let ms = u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX);
        OutOfRange::check("deadline of PROXY headers in ms", ms, 1, 60_000)?;
        OutOfRange::check("PROXY headers awaited at once", self.max as u64, 1, 65_536)
    }
}

/// As it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) exempt: Vec<Cidr>,
    pub(crate) rate: Option<Rate>,
    pub(crate) per_ip: Option<PerIp>,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
}

impl Settings {
    /// # Errors
    /// A number is out of its range.
    pub(crate) fn check(self) -> Result<Policy, OutOfRange> {
        let pace = self.rate.map(|it| Pace::new(it, ["rate", "burst"])).transpose()?;
        self.proxy_protocol.as_ref().map_or(Ok(()), ProxyProtocol::check)?;
        Ok(Policy {
            since: Instant::now(),
            exempt: self.exempt.into(),
            rate: pace.map(Bucket::new),
            peers: self.per_ip.map(PeerMap::new).transpose()?,
            proxy_protocol: self.proxy_protocol,
        })
    }
}

/// In force.
#[derive(Debug)]
pub(crate) struct Policy {
    /// When the buckets' time began.
    since: Instant,
    exempt: Box<[Cidr]>,
    rate: Option<Bucket>,
    peers: Option<PeerMap>,
    proxy_protocol: Option<ProxyProtocol>,
}

impl Policy {
    pub(crate) fn is_exempt(&self, address: IpAddr) -> bool {
        self.exempt.iter().any(|range| range.contains(address))
    }

    /// Whether a connection from `address` begins with a header.
    pub(crate) fn has_header(&self, address: IpAddr) -> bool {
        self.proxy_protocol
            .as_ref()
            .is_some_and(|it| it.from.iter().any(|range| range.contains(address)))
    }

    pub(crate) fn proxy_protocol(&self) -> Option<&ProxyProtocol> {
        self.proxy_protocol.as_ref()
    }

    /// Takes a token; whether there was one.
    pub(crate) fn take_rate(&self) -> bool {
        self.rate.as_ref().is_none_or(|bucket| bucket.take(self.now()))
    }

    pub(crate) fn give_back_rate(&self) {
        if let Some(bucket) = &self.rate {
            bucket.give_back();
        }
    }

    /// Takes a place of the peer; `None`: it needs none.
    pub(crate) fn take_peer(&self, address: IpAddr) -> Result<Option<Place>, Reason> {
        self.peers.as_ref().map_or(Ok(None), |peers| peers.take(address, self.now()))
    }

    /// The connection ended.
    pub(crate) fn give_back_peer(&self, place: Place) {
        if let Some(peers) = &self.peers {
            peers.give_back(place);
        }
    }

    /// The connection was not admitted after all.
    pub(crate) fn undo_peer(&self, place: Place) {
        if let Some(peers) = &self.peers {
            peers.undo(place);
        }
    }

    /// Adds what it knows to `stats`.
    pub(crate) fn count(&self, stats: &mut Stats) {
        if let Some(peers) = &self.peers {
            stats.peers_tracked = peers.tracked(self.now());
            stats.peers_evicted = peers.evicted();
            stats.peers_full = peers.full();
        }
    }

    fn now(&self) -> u64 {
        rate::ticks(self.since.elapsed())
    }
}
