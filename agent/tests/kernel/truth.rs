//! What the kernel itself says of this network namespace: its counters, and `ss`.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command};

/// The kernel's counters as they were at the start.
pub(crate) struct Truth {
    start: BTreeMap<&'static str, u64>,
}

/// What the kernel says at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// How far each of [`FIELDS`] has come since the start.
    counts: BTreeMap<&'static str, u64>,
    /// Each listening socket.
    pub(crate) sockets: Vec<Ss>,
}

/// A listening socket as `ss -ltnm` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ss {
    /// Where it listens; `*` is `::`.
    pub(crate) addr: SocketAddr,
    /// Recv-Q.
    pub(crate) length: u64,
    /// Send-Q.
    pub(crate) limit: u64,
    /// `d` of `skmem`.
    pub(crate) drops: u64,
}

/// The counters that the tests compare with.
const FIELDS: [&str; 12] = [
    "ActiveOpens",
    "EmbryonicRsts",
    "ListenDrops",
    "ListenOverflows",
    "PassiveOpens",
    "SyncookiesRecv",
    "SyncookiesSent",
    "TCPDeferAcceptDrop",
    "TCPFastOpenPassive",
    "TCPReqQFullDoCookies",
    "TCPReqQFullDrop",
    "TCPSynRetrans",
];

impl Truth {
    /// Counts from here on.
    pub(crate) fn start() -> Self {
        Self { start: counters() }
    }

    /// How often the kernel counted `field`; quicker than all of its view.
    pub(crate) fn count(&self, field: &str) -> u64 {
        counters()[field] - self.start[field]
    }

    /// The kernel's view at this instant.
    pub(crate) fn now(&self) -> Seen {
        let counts = counters().into_iter().map(|(name, n)| (name, n - self.start[name])).collect();
        Seen { counts, sockets: ss() }
    }
}

impl Seen {
    /// How often the kernel counted `field`.
    pub(crate) fn count(&self, field: &str) -> u64 {
        self.counts[field]
    }

    /// The sockets that listen on `addr`, taken together.
    pub(crate) fn at(&self, addr: SocketAddr) -> Ss {
        let mut sum = Ss { addr, length: 0, limit: 0, drops: 0 };
        for socket in self.sockets.iter().filter(|socket| socket.addr == addr) {
            sum.length += socket.length;
            sum.limit += socket.limit;
            sum.drops += socket.drops;
        }
        sum
    }
}

/// Reads [`FIELDS`]: pairs of lines, names above values.
fn counters() -> BTreeMap<&'static str, u64> {
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    let text = read("netstat").expect("netstat") + &read("snmp").expect("snmp");
    let lines: Vec<&str> = text.lines().collect();
    let all = lines.chunks(2).flat_map(|pair| pair[0].split(' ').zip(pair[1].split(' ')));
    let wanted = |(name, value): (&str, &str)| {
        let field = FIELDS.into_iter().find(|&field| field == name)?;
        Some((field, value.parse().expect("a number")))
    };
    let found: BTreeMap<_, _> = all.filter_map(wanted).collect();
    assert_eq!(found.len(), FIELDS.len(), "the kernel has all of {FIELDS:?}");
    found
}

fn ss() -> Vec<Ss> {
    let output = Command::new("ss").arg("-ltnmHO").output().expect("ss");
    assert!(output.status.success(), "ss: {output:?}");
    let text = String::from_utf8(output.stdout).expect("ss writes ASCII");
    let mut sockets: Vec<Ss> = text.lines().map(parse).collect();
    sockets.sort_by_key(|socket| (socket.addr, socket.length, socket.limit, socket.drops));
    sockets
}

/// `LISTEN 6 5 127.0.0.1:80 0.0.0.0:* skmem:(r0,rb131072,…,d14)`
fn parse(line: &str) -> Ss {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("ss: {line:?}"));
    let drops = words[5].trim_end_matches(')').rsplit_once(",d").expect("skmem ends with drops").1;
    let addr = words[3].replacen('*', "[::]", 1);
    Ss {
        addr: addr.parse().unwrap_or_else(|_| panic!("ss: {line:?}")),
        length: number(words[1]),
        limit: number(words[2]),
        drops: number(drops),
    }
}
