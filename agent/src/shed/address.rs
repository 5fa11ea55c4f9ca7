//! Addresses on which a process cannot listen at once, and backends that are no others. Pure: what
//! other processes have is not looked at.

use std::{
    collections::VecDeque,
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Backend, Front, Wrong};

/// Whether one process cannot listen on both: they are the same, or one takes what is for the
/// other. Port 0 stands for another one each time.
#[must_use]
pub fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let is_ip = takes(one.ip(), other.ip()) || takes(other.ip(), one.ip()) || is_same(one, other);
    is_ip && one.port() == other.port() && one.port() != 0
}

/// Whether connections to `backend` are none to the listener on `listen`, as far as addresses say:
/// such a one would be its own client until it has no place left.
///
/// # Errors
/// They are.
pub fn check_backend(listen: SocketAddr, backend: &Backend) -> Result<(), Wrong> {
    if !targets(backend).into_iter().any(|target| gets(listen, target)) {
        return Ok(());
    }
    let expected = elsewhere(listen, &[]);
    Err(Wrong { key: "backend", got: backend.to_string(), expected })
}

/// The shortest way by which connections to the first of `fronts` that has one come back to it through
/// others, as far as addresses say: its place, and theirs.
#[must_use]
pub fn leads_back(fronts: &[Front]) -> Option<Vec<usize>> {
    (0..fronts.len()).find_map(|first| way_back(fronts, first))
}

/// What is expected of a backend whose connections come back to `listen`, through others if there are
/// some.
#[must_use]
pub fn elsewhere(listen: SocketAddr, others: &[String]) -> String {
    let through = match others {
        [] => String::new(),
        _ => format!(", through {}", others.join(", then ")),
    };
    format!("an address that does not lead back to listen, which is {listen}{through}")
}

fn way_back(fronts: &[Front], first: usize) -> Option<Vec<usize>> {
    let (mut ways, mut is_known) = (VecDeque::from([vec![first]]), vec![false; fronts.len()]);
    while let Some(way) = ways.pop_front() {
        let last = way.last().expect("a way begins at the first");
        let targets = targets(&fronts[*last].backend);
        let follows = |front: &Front| targets.iter().any(|&target| gets(front.listen, target));
        for (next, _) in fronts.iter().enumerate().filter(|(_, front)| follows(front)) {
            if next == first {
                return Some(way);
            }
            if !mem::replace(&mut is_known[next], true) {
                ways.push_back([&way[..], &[next]].concat());
            }
        }
    }
    None
}

/// Whether a listener on `listen` gets connections to `target`.
fn gets(listen: SocketAddr, target: SocketAddr) -> bool {
    let is_ip = takes(listen.ip(), target.ip()) && target.ip().to_canonical().is_loopback();
    (is_ip || is_same(listen, target)) && listen.port() == target.port()
}

/// Where connections to a backend go, if that is known without asking anybody.
fn targets(backend: &Backend) -> Vec<SocketAddr> {
    let Backend::Tcp(text) = backend else { return Vec::new() };
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    if let Ok(mut target) = text.parse::<SocketAddr>() {
        // connect(2) takes the unspecified address for the loopback one
        // (`ip_route_output_key_hash_rcu`, net/ipv4/route.c; `tcp_v6_connect`, net/ipv6/tcp_ipv6.c)
        if target.ip().to_canonical().is_unspecified() {
            target.set_ip(loopback[usize::from(target.ip().to_canonical().is_ipv6())]);
        }
        return vec![target];
    }
    match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) if host.eq_ignore_ascii_case("localhost") => {
            loopback.map(|ip| SocketAddr::new(ip, port)).into()
        }
        _ => Vec::new(),
    }
}

/// Whether a listener on all addresses, if `all` stands for that, has `one`, too. Ours on `[::]`
/// have those of IPv4.
fn takes(all: IpAddr, one: IpAddr) -> bool {
    let (all, one) = (all.to_canonical(), one.to_canonical());
    all.is_unspecified() && (all.is_ipv6() || one.is_ipv4())
}

fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    let zone = |address| match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    };
    (one.ip().to_canonical(), zone(one)) == (other.ip().to_canonical(), zone(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[track_caller]
    fn check_clash(one: &str, other: &str, expected: bool) {
        let got = [(one, other), (other, one)].map(|(a, b)| clash(address(a), address(b)));
        assert_eq!(got, [expected; 2], "{one} {other}");
    }

    #[test]
    fn one_process_listens_on_an_address_once() {
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("0.0.0.0:80", "192.0.2.1:80"),
            ("0.0.0.0:80", "[::ffff:192.0.2.1]:80"),
            ("[::]:80", "192.0.2.1:80"),
            ("[::]:80", "0.0.0.0:80"),
            ("[::]:80", "[::1]:80"),
            ("[fe80::1%2]:80", "[fe80::1%2]:80"),
        ] {
            check_clash(one, other, true);
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("127.0.0.1:80", "[::1]:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("0.0.0.0:80", "[::]:81"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::]:0", "0.0.0.0:0"),
            ("[fe80::1%2]:80", "[fe80::1%3]:80"),
        ] {
            check_clash(one, other, false);
        }
    }

    #[track_caller]
    fn check_loop(listen: &str, backend: &str, expected: bool) {
        let got = check_backend(address(listen), &backend.parse().expect("a backend"));
        let wrong = || Wrong {
            key: "backend",
            got: backend.to_owned(),
            expected: format!("an address that does not lead back to listen, which is {listen}"),
        };
        assert_eq!(got, if expected { Err(wrong()) } else { Ok(()) }, "{listen} {backend}");
    }

    #[test]
    fn a_listener_is_not_its_own_backend() {
        for (listen, backend) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8:0::1]:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.9.9.9:80"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("[::]:80", "[::]:80"),
            ("[::]:80", "0.0.0.0:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("[::1]:80", "[::]:80"),
            ("127.0.0.1:80", "localhost:80"),
            ("[::1]:80", "LocalHost:80"),
            ("0.0.0.0:80", "localhost:80"),
            ("[::]:80", "localhost:80"),
        ] {
            check_loop(listen, backend, true);
        }
        for (listen, backend) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("127.0.0.1:80", "[::1]:80"),
            // of another host
            ("0.0.0.0:80", "192.0.2.1:80"),
            ("[::]:80", "[2001:db8::1]:80"),
            ("[::]:80", "app.example:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("[::1]:80", "0.0.0.0:80"),
            ("192.0.2.1:80", "localhost:80"),
            ("127.0.0.1:80", "localhost:81"),
            ("127.0.0.1:0", "127.0.0.1:80"),
            ("127.0.0.1:80", "unix:/run/app.sock"),
        ] {
            check_loop(listen, backend, false);
        }
    }

    #[track_caller]
    fn check_way(fronts: &[(&str, &str)], expected: Option<&[usize]>) {
        let front = |&(listen, backend): &(&str, &str)| {
            Front::new(address(listen), backend.parse().expect("a backend"), 1)
        };
        let all: Vec<_> = fronts.iter().map(front).collect();
        assert_eq!(leads_back(&all).as_deref(), expected, "{fronts:?}");
    }

    #[test]
    fn listeners_are_not_each_others_backends() {
        let (a, b) = (("127.0.0.1:80", "127.0.0.1:81"), ("127.0.0.1:81", "127.0.0.1:82"));
        check_way(&[], None);
        check_way(&[a, b], None);
        check_way(&[a, ("0.0.0.0:81", "localhost:80")], Some(&[0, 1]));
        check_way(&[a, b, ("127.0.0.1:82", "127.0.0.1:80")], Some(&[0, 1, 2]));
        // not by the one that leads there
        check_way(&[a, b, ("127.0.0.1:82", "127.0.0.1:81")], Some(&[1, 2]));
        check_way(&[a, ("127.0.0.1:82", "127.0.0.1:81"), b], Some(&[1, 2]));
        // two ways to one backend
        let localhost = ("127.0.0.1:80", "localhost:81");
        check_way(&[localhost, ("[::1]:81", "app:80"), b], None);
        check_way(&[localhost, b, ("[::1]:81", "127.0.0.1:80")], Some(&[0, 2]));
        check_way(&[a, ("127.0.0.1:81", "unix:/run/app.sock")], None);
    }
}
