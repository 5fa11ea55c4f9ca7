//! Which listeners somebody asks about: an address, a port, both, or a process.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::{
    id::Pid,
    model::snapshot::{Listener, Snapshot},
};

/// One listener, or those of one address or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// At this address alone; `*` is `::`.
    pub addr: Option<IpAddr>,
    /// On this port alone.
    pub port: Option<u16>,
}

impl Wanted {
    /// Whether a listener at this address and port is asked for.
    #[must_use]
    pub fn takes(&self, addr: IpAddr, port: u16) -> bool {
        self.addr.is_none_or(|it| it == addr) && self.port.is_none_or(|it| it == port)
    }
}

/// What a story is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A port, or where no listener has that, a process.
    Number(u32),
    /// Listeners of a process.
    Process(Pid),
    /// Listeners at an address, or an address and a port.
    Place(Wanted),
}

impl Asked {
    /// The listeners; those where nobody listens any more are last.
    #[must_use]
    pub fn of<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a Listener> {
        let at = |wanted: Wanted| select(snapshot, |it| wanted.takes(it.key.addr, it.key.port));
        let by = |pid| select(snapshot, |it| it.owners.contains(&pid));
        match *self {
            Self::Process(pid) => by(pid),
            Self::Place(wanted) => at(wanted),
            Self::Number(n) => {
                let port = u16::try_from(n).ok();
                let there = port.map(|port| at(Wanted { addr: None, port: Some(port) }));
                there.filter(|it| !it.is_empty()).unwrap_or_else(|| by(Pid(n)))
            }
        }
    }
}

fn select(snapshot: &Snapshot, takes: impl Fn(&Listener) -> bool) -> Vec<&Listener> {
    let mut listeners: Vec<_> = snapshot.listeners.iter().filter(|it| takes(it)).collect();
    listeners.sort_by_key(|it| it.members.is_empty());
    listeners
}

impl FromStr for Asked {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(0) => Err("expected a port or a process id, from 1"),
            Ok(n) => Ok(Self::Number(n)),
            Err(_) => text.parse().map(Self::Place),
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Process(pid) => pid.fmt(f),
            Self::Place(wanted) => wanted.fmt(f),
        }
    }
}

impl FromStr for Wanted {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected a port, an address, or both, such as 443, 10.0.0.1 or [::1]:443";
        let addr = |text: &str| {
            let inner = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
            let text = if inner == "*" { "::" } else { inner };
            text.parse().map_err(|_| expected)
        };
        let port = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(expected),
            Ok(port) => Ok(port),
        };
        if let Ok(port) = port(text) {
            return Ok(Self { addr: None, port: Some(port) });
        }
        if let Ok(addr) = addr(text) {
            return Ok(Self { addr: Some(addr), port: None });
        }
        let (head, tail) = text.rsplit_once(':').ok_or(expected)?;
        Ok(Self { addr: Some(addr(head)?), port: Some(port(tail)?) })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addr, self.port) {
            (Some(IpAddr::V6(addr)), Some(port)) => write!(f, "[{addr}]:{port}"),
            (Some(addr), Some(port)) => write!(f, "{addr}:{port}"),
            (Some(addr), None) => addr.fmt(f),
            (None, Some(port)) => port.fmt(f),
            (None, None) => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let got = text.parse::<Wanted>().ok().map(|it| it.to_string());
        assert_eq!(expected, got.as_deref(), "{text:?}");
    }

    #[test]
    fn an_address_a_port_or_both() {
        check("443", Some("443"));
        check("10.0.0.1", Some("10.0.0.1"));
        check("10.0.0.1:443", Some("10.0.0.1:443"));
        check("[::1]:443", Some("[::1]:443"));
        check("::1", Some("::1"));
        check("[::1]", Some("::1"));
        check("*:80", Some("[::]:80"));
        check("*", Some("::"));
        for wrong in ["", "0", "65536", "nginx", "10.0.0.1:0", "10.0.0.1:", ":80", "[::1]:", "é"] {
            check(wrong, None);
        }
    }
}
