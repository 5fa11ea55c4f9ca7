//! An agent that is held against the kernel's ListenDrops at every look, and listeners for each way
//! to reach one: IPv4, IPv6, an IPv4 client of a dual-stack listener.

use std::{net::SocketAddr, time::Instant};

use backlogd::{
    input::{Absent, Known},
    model::snapshot::{DropsBy, Listener, Snapshot},
};
use socket2::Socket;

use crate::{
    agent::{Agent, own},
    clients::Clients,
    namespace::{DEADLINE, own_netns},
    offenders::NeverAccepts,
    truth::Seen,
};

/// An agent whose every look is held against the kernel's count of the same instant.
pub(crate) struct Watched(Agent);

/// Listen drops by what the kernel, not the agent, says of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reasons {
    pub(crate) full_syn: u64,
    pub(crate) full_ack: u64,
    pub(crate) syn_queue_full: u64,
    pub(crate) other: u64,
}

/// One listener for each way to reach one.
pub(crate) struct Servers(pub(crate) Vec<(NeverAccepts, SocketAddr)>);

impl Watched {
    pub(crate) fn start() -> Self {
        Self::of(Agent::start())
    }

    pub(crate) fn of(agent: Agent) -> Self {
        Self(agent)
    }

    pub(crate) fn agent(&mut self) -> &mut Agent {
        &mut self.0
    }

    /// How often the kernel counted `field`.
    pub(crate) fn count(&self, field: &str) -> u64 {
        self.0.count(field)
    }

    /// A look; the drops over listeners and reasons are ListenDrops of the same sample. A
    /// namespace of the test's own begins at 0.
    #[track_caller]
    pub(crate) fn look(&mut self) -> Snapshot {
        let snapshot = self.0.look();
        agree(&snapshot);
        snapshot
    }

    /// Looks until `happened`.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut happened: impl FnMut(&Agent) -> bool) {
        let start = Instant::now();
        while !happened(&self.0) {
            self.look();
            assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        }
    }

    /// A look while nothing moves.
    #[track_caller]
    pub(crate) fn settled(&mut self) -> (Snapshot, Seen) {
        let (snapshot, seen) = self.0.settled();
        agree(&snapshot);
        (snapshot, seen)
    }

    /// What the agent tells of the reasons, as far as hooks are served, is what the kernel says.
    #[track_caller]
    pub(crate) fn check(&self, snapshot: &Snapshot, expected: Reasons) {
        let by: Vec<DropsBy> = own(snapshot).map(|listener| listener.counters.drops_by).collect();
        let sum = |reason: fn(&DropsBy) -> Known<u64>| by.iter().map(reason).sum::<Known<u64>>();
        let shown = DropsBy {
            accept_queue_full_syn: sum(|it| it.accept_queue_full_syn),
            accept_queue_full_ack: sum(|it| it.accept_queue_full_ack),
            syn_queue_full: sum(|it| it.syn_queue_full),
            other: sum(|it| it.other),
            unspecified: sum(|it| it.unspecified),
        };
        assert_eq!(shown, expected.shown(self.0.serves("syn_drop"), self.0.serves("ack_drop")));
    }

    /// The SYNs and cookies of all listeners together are the kernel's.
    #[track_caller]
    pub(crate) fn check_syns(&self, snapshot: &Snapshot, seen: &Seen) {
        let sum = |count: fn(&Listener) -> Known<u64>| own(snapshot).map(count).sum();
        let expected = |event, n| if self.0.serves(event) { Ok(n) } else { NOT_SERVED };
        let syns: Known<u64> = sum(|listener| listener.counters.syns);
        let sent = seen.count("ActiveOpens") + seen.count("TCPSynRetrans");
        assert_eq!(syns, expected("syn", sent), "SYNs");
        let cookies: Known<u64> = sum(|listener| listener.counters.syncookies);
        assert_eq!(cookies, expected("syn_cookie", seen.count("SyncookiesSent")), "cookies");
    }
}

const NOT_SERVED: Known<u64> = Err(Absent::NotOnThisKernel);

impl Reasons {
    fn shown(self, syn_drop: bool, ack_drop: bool) -> DropsBy {
        let Self { full_syn, full_ack, syn_queue_full, other } = self;
        let mut untold = other;
        let mut known = |is_served, n| {
            if is_served {
                return Ok(n);
            }
            untold += n;
            NOT_SERVED
        };
        let accept_queue_full_syn = known(syn_drop, full_syn);
        let accept_queue_full_ack = known(ack_drop, full_ack);
        let syn_queue_full = known(syn_drop, syn_queue_full);
        let (other, unspecified) =
            if syn_drop && ack_drop { (Ok(untold), NOT_SERVED) } else { (NOT_SERVED, Ok(untold)) };
        DropsBy { accept_queue_full_syn, accept_queue_full_ack, syn_queue_full, other, unspecified }
    }
}

#[track_caller]
fn agree(snapshot: &Snapshot) {
    let counted = |drops: Known<u64>| drops.expect("counted for every listener");
    let mut sum = 0;
    for Listener { key, counters, .. } in own(snapshot) {
        let by = counters.drops_by;
        let told = [by.accept_queue_full_syn, by.accept_queue_full_ack, by.syn_queue_full];
        let rest = [by.other, by.unspecified];
        let told: u64 = told.into_iter().chain(rest).map(Known::unwrap_or_default).sum();
        assert_eq!(told, counted(counters.drops), "reasons of {key:?}: {by:?}");
        sum += told;
    }
    let by: Vec<_> = own(snapshot).map(|it| (it.key.port, it.counters.drops_by)).collect();
    assert_eq!(sum, count(snapshot, "ListenDrops"), "sum over listeners and reasons: {by:?}");
}

/// The kernel's count, as the sample has it.
pub(crate) fn count(snapshot: &Snapshot, field: &str) -> u64 {
    let own = snapshot.namespaces.iter().find(|namespace| namespace.netns == own_netns());
    own.expect("our namespace").netstat.as_ref().expect("readable")[field]
}

impl Servers {
    pub(crate) fn listen(backlog: i32, prepare: fn(&Socket)) -> Self {
        Self::made(|addr| NeverAccepts::prepared(addr, backlog, prepare))
    }

    /// Those that `listen` makes, on an address each.
    pub(crate) fn made(listen: impl Fn(&str) -> NeverAccepts) -> Self {
        let ways = [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1")];
        let listen = |(at, from)| {
            let server = listen(&format!("{at}:0"));
            let target = format!("{from}:{}", server.addr.port());
            (server, target.parse().expect("an address"))
        };
        Self(ways.map(listen).into())
    }

    /// `n` clients of each.
    pub(crate) fn start(&self, n: usize) -> Vec<Clients> {
        self.0.iter().map(|(_, target)| Clients::start(n, *target)).collect()
    }

    /// `n` clients of each, all connected as far as they know.
    #[track_caller]
    pub(crate) fn connect(&self, n: usize) -> Vec<Clients> {
        self.0.iter().map(|(_, target)| Clients::connect(n, *target)).collect()
    }

    pub(crate) fn listen_again(&self, backlog: i32) {
        self.0.iter().for_each(|(server, _)| server.listen_again(backlog));
    }

    pub(crate) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(server, _)| server.addr)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len().try_into().expect("few")
    }
}
