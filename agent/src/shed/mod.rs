//! The enforcing mode in user space: listeners of this process that shed, each in front of a backend.
//!
//! In: [`Front`]s of the configuration. Out: connections passed on to the backends, and counters
//! ([`Counted`]). What is admitted and what becomes of the rest is the crate `backlogd-shed`'s; here
//! bytes go to and fro. Cost: a task and two buffers of 8 KiB for each connection. Not here: pools,
//! HTTP, TLS.

mod relay;
mod run;

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use backlogd_shed::{Cidr, Deadlines, Limits, OnShed, PerIp, ProxyProtocol, Rate};

pub use self::run::{Counted, Fronts, StartError, counted};

/// A listener, and where its connections go.
#[derive(Clone, Debug, PartialEq)]
pub struct Front {
    /// The label `listener` of its counters.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its connections go.
    pub backend: Backend,
    /// How many may be open.
    pub limits: Limits,
    /// The limit of its accept queue; `None`: the largest that the kernel gives.
    pub backlog: Option<u16>,
    /// What shed connections get.
    pub on_shed: OnShed,
    /// Who is shed for nothing but the hard limit.
    pub exempt: Vec<Cidr>,
    /// What one peer may have.
    pub per_ip: Option<PerIp>,
    /// How fast connections are admitted.
    pub rate: Option<Rate>,
    /// Who passes connections of others on.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How long connections may take.
    pub deadlines: Deadlines,
    /// How long the backend may take to accept one.
    pub connect_timeout: Duration,
    /// How long open connections may go on when it is told to stop.
    pub drain: Duration,
}

impl Front {
    /// Descriptors of a connection: the client's and the backend's.
    pub const FDS: usize = 2;

    /// A front with everything else as it is unsaid.
    #[must_use]
    pub fn new(listen: SocketAddr, backend: Backend, soft: usize) -> Self {
        Self {
            name: listen.to_string(),
            listen,
            backend,
            limits: Limits { fds_per_connection: Self::FDS, ..Limits::soft(soft) },
            backlog: None,
            on_shed: OnShed::Rst,
            exempt: Vec::new(),
            per_ip: None,
            rate: None,
            proxy_protocol: None,
            deadlines: Deadlines::default(),
            connect_timeout: Duration::from_secs(1),
            drain: Duration::from_secs(20),
        }
    }
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// HOST:PORT; a name is looked up for each connection.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Backend {
    /// What it is written like.
    pub const EXPECTED: &str = "HOST:PORT, such as 127.0.0.1:9000, or unix:/PATH";
}

impl FromStr for Backend {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            // sun_path holds 108 bytes, the ending zero included
            let is_path = path.starts_with('/') && path.len() <= 107 && !path.contains('\0');
            return if is_path { Ok(Self::Unix(path.into())) } else { Err(Self::EXPECTED) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(Self::EXPECTED)?;
        let is_bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        match port.parse::<u16>() {
            Ok(1..) if !host.is_empty() && !is_bare_ipv6 => Ok(Self::Tcp(text.to_owned())),
            _ => Err(Self::EXPECTED),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_a_host_with_a_port_or_a_path() {
        for text in ["127.0.0.1:9000", "[::1]:80", "app.svc:8080", "unix:/run/app.sock"] {
            let backend: Backend = text.parse().expect("a backend");
            assert_eq!(backend.to_string(), text);
        }
        for text in ["", ":80", "app", "app:", "app:0", "app:70000", "::1:80", "unix:app.sock"] {
            assert_eq!(text.parse::<Backend>(), Err(Backend::EXPECTED), "{text}");
        }
    }
}
