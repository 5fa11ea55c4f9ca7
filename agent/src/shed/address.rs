//! Addresses on which a process cannot listen at once, and backends that are no others. Pure: what
//! other processes have is not looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Backend, Wrong};

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
    let leads_back = |target: SocketAddr| {
        let is_ip = takes(listen.ip(), target.ip()) && target.ip().to_canonical().is_loopback();
        (is_ip || is_same(listen, target)) && listen.port() == target.port()
    };
    if !targets(backend).into_iter().any(leads_back) {
        return Ok(());
    }
    let expected = format!("an address that does not lead back to listen, which is {listen}");
    Err(Wrong { key: "backend", got: backend.to_string(), expected })
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
}
