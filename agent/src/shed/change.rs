//! What another configuration changes in a listener that stays.

use std::time::Duration;

use backlogd_shed::{Cidr, PerIp, ProxyProtocol, Rate, adaptive::Adaptive};

use super::{Accept, Front, Health};

/// A key that differs, and whether the listener takes it while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// As it is called in `[[shed]]`.
    pub key: &'static str,
    /// Whether it is in force at once, for connections that come from then on.
    pub is_live: bool,
}

/// Where a key is, and whether two listeners differ in it.
type Key = (&'static str, fn(&Front, &Front) -> bool);

/// What the listener takes while it runs.
const LIVE: [Key; 9] = [
    ("backend", |a, b| a.backend != b.backend),
    ("soft", |a, b| a.limits.soft != b.limits.soft),
    ("hard", |a, b| a.limits.hard != b.limits.hard),
    ("fd_reserve", |a, b| a.limits.fd_reserve != b.limits.fd_reserve),
    ("backlog", |a, b| a.backlog != b.backlog),
    ("half_close_seconds", |a, b| a.half_close != b.half_close),
    ("connect_timeout_seconds", |a, b| a.connect_timeout != b.connect_timeout),
    ("drain_delay_seconds", |a, b| a.drain_delay != b.drain_delay),
    ("drain_seconds", |a, b| a.drain != b.drain),
];

/// What is built into it.
const FIXED: [Key; 35] = [
    ("listen", |a, b| a.listen != b.listen),
    ("accept_sockets", |a, b| sockets(a) != sockets(b)),
    ("accept_thread", |a, b| (a.accept == Accept::Thread) != (b.accept == Accept::Thread)),
    ("give_up_after_seconds", |a, b| a.give_up_after != b.give_up_after),
    ("queue_max_wait_seconds", |a, b| a.queue_max_wait != b.queue_max_wait),
    ("on_shed", |a, b| a.on_shed != b.on_shed),
    ("on_shed_for", |a, b| a.on_shed_for != b.on_shed_for),
    ("linger_max", |a, b| a.linger.max != b.linger.max),
    ("linger_seconds", |a, b| a.linger.time != b.linger.time),
    ("linger_bytes", |a, b| a.linger.bytes != b.linger.bytes),
    ("exempt", |a, b| a.exempt != b.exempt),
    ("rate", |a, b| a.rate.map(|it| it.per_second) != b.rate.map(|it| it.per_second)),
    ("burst", |a, b| both(a.rate, b.rate, |it| it.burst)),
    ("per_ip", |a, b| a.per_ip.map(|it| it.connections) != b.per_ip.map(|it| it.connections)),
    ("per_ip_rate", |a, b| peer(a, b, |it| it.rate.map(|it| it.per_second))),
    ("per_ip_burst", |a, b| both(peer_rate(a), peer_rate(b), |it| it.burst)),
    ("per_ip_capacity", |a, b| peer(a, b, |it| it.capacity)),
    ("per_ip_when_full", |a, b| peer(a, b, |it| it.when_full)),
    ("ipv6_prefix", |a, b| peer(a, b, |it| it.ipv6_prefix)),
    ("proxy_protocol_from", |a, b| proxies(a) != proxies(b)),
    ("proxy_protocol_seconds", |a, b| proxy(a, b, |it| it.deadline)),
    ("proxy_protocol_max", |a, b| proxy(a, b, |it| it.max)),
    ("adaptive", |a, b| a.adaptive.is_some() != b.adaptive.is_some()),
    ("adaptive_target_seconds", |a, b| both(a.adaptive, b.adaptive, |it| codel(it).0)),
    ("adaptive_interval_seconds", |a, b| both(a.adaptive, b.adaptive, |it| codel(it).1)),
    ("first_byte_seconds", |a, b| a.deadlines.first_byte != b.deadlines.first_byte),
    ("idle_seconds", |a, b| a.deadlines.idle != b.deadlines.idle),
    ("write_stall_seconds", |a, b| a.deadlines.write_stall != b.deadlines.write_stall),
    ("lifetime_seconds", |a, b| a.deadlines.lifetime != b.deadlines.lifetime),
    ("min_rate", |a, b| a.deadlines.min_rate != b.deadlines.min_rate),
    ("health_listen", |a, b| {
        a.health.as_ref().map(|it| it.listen) != b.health.as_ref().map(|it| it.listen)
    }),
    ("health_fail_at", |a, b| health(a, b, |it| it.config.fail_at)),
    ("health_fail_after_seconds", |a, b| health(a, b, |it| it.config.fail_after)),
    ("health_recover_after_seconds", |a, b| health(a, b, |it| it.config.recover_after)),
    ("health_probe_seconds", |a, b| health(a, b, |it| it.config.probe)),
];

impl Front {
    /// The keys in which `new` differs, but for the name, by which both are the same listener.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let of = |keys: &[Key], is_live| {
            let differs = keys.iter().filter(|(_, differs)| differs(self, new));
            differs.map(|&(key, _)| Change { key, is_live }).collect::<Vec<_>>()
        };
        of(&LIVE, true).into_iter().chain(of(&FIXED, false)).collect()
    }

    /// This one with what of `new` is taken while it runs, but for the limits.
    #[must_use]
    pub fn changed(&self, new: &Self) -> Self {
        Self {
            backend: new.backend.clone(),
            backlog: new.backlog,
            half_close: new.half_close,
            connect_timeout: new.connect_timeout,
            drain_delay: new.drain_delay,
            drain: new.drain,
            ..self.clone()
        }
    }
}

/// Whether there are both, and a part of them differs: that one of them is missing is another
/// key's.
fn both<T, P: PartialEq>(a: Option<T>, b: Option<T>, part: impl Fn(T) -> P) -> bool {
    a.zip(b).is_some_and(|(a, b)| part(a) != part(b))
}

fn sockets(front: &Front) -> Option<usize> {
    match front.accept {
        Accept::Sockets(n) => Some(n),
        Accept::Cores => None,
        Accept::Thread => Some(1),
    }
}

fn peer<P: PartialEq>(a: &Front, b: &Front, part: impl Fn(PerIp) -> P) -> bool {
    both(a.per_ip, b.per_ip, part)
}

fn peer_rate(front: &Front) -> Option<Rate> {
    front.per_ip.and_then(|it| it.rate)
}

fn proxies(front: &Front) -> Option<&[Cidr]> {
    front.proxy_protocol.as_ref().map(|it| &*it.from)
}

fn proxy<P: PartialEq>(a: &Front, b: &Front, part: impl Fn(&ProxyProtocol) -> P) -> bool {
    both(a.proxy_protocol.as_ref(), b.proxy_protocol.as_ref(), part)
}

fn health<P: PartialEq>(a: &Front, b: &Front, part: impl Fn(&Health) -> P) -> bool {
    both(a.health.as_ref(), b.health.as_ref(), part)
}

/// Target and interval.
fn codel(adaptive: Adaptive) -> (Duration, Duration) {
    match adaptive {
        Adaptive::Codel { target, interval } => (target, interval),
        Adaptive::Gradient { window, .. } => (Duration::ZERO, window),
    }
}
