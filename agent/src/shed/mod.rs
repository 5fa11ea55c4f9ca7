//! The enforcing mode in user space: listeners of this process that shed, each in front of a
//! backend.
//!
//! In: [`Front`]s of the configuration. Out: connections passed on to the backends, and counters
//! ([`Counted`]). What is admitted and what becomes of the rest is the crate `backlogd-shed`'s;
//! here bytes go to and fro. Cost: a task for each connection, and up to 8 KiB for each direction
//! in which bytes wait. Not here: pools, HTTP, TLS.

mod address;
mod change;
mod checks;
mod dial;
mod live;
mod relay;
mod restart;
mod run;
mod settings;
mod tell;

use std::{
    fmt,
    net::{SocketAddr, SocketAddrV6},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use backlogd_shed::{
    Bounds, Cidr, Deadline, Deadlines, LimitError, Limits, Linger, MAX_LIMIT, OnShed, PerIp,
    ProxyProtocol, Rate, Reason, adaptive::Adaptive,
};

pub use self::{
    address::{check_backend, clash, elsewhere, leads_back},
    change::Change,
    live::Live,
    restart::{Generations, GivenUp, Restart, SCRAPES},
    run::{Counted, Dead, Fronts, StartError, Watch},
    settings::{Accept, Health, bounds},
};

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
    /// Who accepts.
    pub accept: Accept,
    /// After so long without descriptors or memory for one connection it ends; `None`: never.
    pub give_up_after: Option<Duration>,
    /// After a pause, who waited longer in the accept queue is shed.
    pub queue_max_wait: Duration,
    /// What shed connections get.
    pub on_shed: OnShed,
    /// What those get that are shed for a reason of these.
    pub on_shed_for: Vec<(Reason, OnShed)>,
    /// Bounds of the wait for an answer to arrive.
    pub linger: Linger,
    /// Who is shed for nothing but the hard limit.
    pub exempt: Vec<Cidr>,
    /// What one peer may have.
    pub per_ip: Option<PerIp>,
    /// How fast connections are admitted.
    pub rate: Option<Rate>,
    /// Who passes connections of others on.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How the soft limit follows the wait in the accept queue, if it does.
    pub adaptive: Option<Adaptive>,
    /// How long connections may take.
    pub deadlines: Deadlines,
    /// How long one direction may go on after the other one ended; `None`: for ever.
    pub half_close: Option<Duration>,
    /// How long the backend may take to accept one.
    pub connect_timeout: Duration,
    /// Where health checks are answered, if they are.
    pub health: Option<Health>,
    /// How long it accepts as before when it is told to stop, so that a balancer learns of it.
    pub drain_delay: Duration,
    /// How long open connections may go on after that; those that are left are reset.
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
            accept: Accept::Sockets(1),
            give_up_after: None,
            queue_max_wait: Duration::from_secs(1),
            on_shed: OnShed::Rst,
            on_shed_for: Vec::new(),
            linger: Linger::default(),
            exempt: Vec::new(),
            per_ip: None,
            rate: None,
            proxy_protocol: None,
            adaptive: None,
            // a silent peer would have its place for ever; clients that connect ahead of their
            // requests have time for the first one
            deadlines: Deadlines {
                first_byte: Some(Duration::from_secs(30)),
                idle: Some(Duration::from_secs(300)),
                write_stall: Some(Duration::from_secs(30)),
                ..Deadlines::default()
            },
            half_close: Some(Duration::from_secs(60)),
            connect_timeout: Duration::from_secs(1),
            health: None,
            drain_delay: Duration::ZERO,
            drain: Duration::from_secs(20),
        }
    }

    /// The deadlines that there are, for people: `idle 300s, half_close 60s`.
    #[must_use]
    pub fn deadlines(&self) -> String {
        let of = |deadline: Deadline| match deadline {
            Deadline::HalfClose => self.half_close,
            _ => self.deadlines.of(deadline),
        };
        let said = Deadline::ALL.into_iter().filter_map(|it| Some(format!("{it} {:?}", of(it)?)));
        said.collect::<Vec<_>>().join(", ")
    }
}

/// The most that a soft limit can be: there is room for a hard one above it.
pub const MAX_SOFT: usize = MAX_LIMIT * 5 / 6;

/// A value that cannot be, wherever it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Of which key, or flag.
    pub key: &'static str,
    /// What it was.
    pub got: String,
    /// What it may be.
    pub expected: String,
}

/// Whether `limits` can hold in a process that has enough descriptors.
///
/// # Errors
/// The limit that cannot.
pub fn check_limits(limits: Limits) -> Result<(), Wrong> {
    let Limits { soft, hard, .. } = limits;
    if !(1..=MAX_SOFT).contains(&soft) {
        let expected = format!("connections, 1 to {MAX_SOFT}");
        return Err(Wrong { key: "soft", got: soft.to_string(), expected });
    }
    let Some(got) = hard else { return Ok(()) };
    let expected = match Bounds::new(limits, usize::MAX) {
        Err(LimitError::Hard { least, .. }) => {
            format!("at least {least}: 20 % above the soft limit, which is {soft}")
        }
        _ if MAX_LIMIT < got => format!("at most {MAX_LIMIT} connections"),
        _ => return Ok(()),
    };
    Err(Wrong { key: "hard", got: got.to_string(), expected })
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// HOST:PORT; a name is looked up for each connection, for those that come together once.
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
        // a name for getaddrinfo(3), which takes more than DNS does
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let is_name = !host.is_empty() && host.chars().all(is_of_name);
        let is_host = is_name || text.parse::<SocketAddrV6>().is_ok();
        match port.parse::<u16>() {
            Ok(1..) if is_host => Ok(Self::Tcp(text.to_owned())),
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

    #[track_caller]
    fn check(soft: usize, hard: Option<usize>, expected: Result<(), (&str, &str)>) {
        let got = check_limits(Limits { hard, ..Limits::soft(soft) });
        let got = got.as_ref().map_err(|wrong| (wrong.key, wrong.expected.as_str()));
        assert_eq!(got.copied(), expected, "soft {soft}, hard {hard:?}");
    }

    #[test]
    fn limits_can_hold_or_the_one_that_cannot_is_named() {
        check(1, Some(2), Ok(()));
        check(MAX_SOFT, None, Ok(()));
        check(MAX_SOFT, Some(MAX_LIMIT), Ok(()));
        check(0, None, Err(("soft", "connections, 1 to 1747625")));
        check(MAX_SOFT + 1, Some(MAX_LIMIT), Err(("soft", "connections, 1 to 1747625")));
        let least = "at least 12: 20 % above the soft limit, which is 10";
        check(10, Some(11), Err(("hard", least)));
        check(10, Some(0), Err(("hard", least)));
        check(10, Some(MAX_LIMIT + 1), Err(("hard", "at most 2097151 connections")));
    }

    #[test]
    fn a_backend_is_a_host_with_a_port_or_a_path() {
        let ipv6 = ["[::1]:80", "[fe80::1%2]:80"];
        let names = ["127.0.0.1:9000", "app.svc:8080", "my_app-1:8080", "unix:/run/app.sock"];
        for text in ipv6.into_iter().chain(names) {
            let backend: Backend = text.parse().expect("a backend");
            assert_eq!(backend.to_string(), text);
        }
        for text in ["", ":80", "app", "app:", "app:0", "app:70000", "::1:80", "unix:app.sock"] {
            assert_eq!(text.parse::<Backend>(), Err(Backend::EXPECTED), "{text}");
        }
        for host in ["a b", "[app]", "[::1", "[127.0.0.1]", "[::1%lo]", "http://app", "a\tb", "é"]
        {
            let text = format!("{host}:80");
            assert_eq!(text.parse::<Backend>(), Err(Backend::EXPECTED), "{text}");
        }
    }
}
